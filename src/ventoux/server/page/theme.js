// Before anything is drawn: the colours that were chosen. "" is the system's choice.
"use strict";
try {
  const theme = localStorage.getItem("ventoux.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // a browser that keeps nothing has no choice of ours either
}
