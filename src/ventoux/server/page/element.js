// element("a", {class: "link", href}, "text", child): what is text stays text, whatever it says.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, functions as listeners ({onclick}), and children: nodes, or texts that are no markup. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const ICONS = {
  copy: "M7 7V4h9v9h-3M4 7h9v9H4z",
  done: "m4 10 4 4 8-8",
  again: "M15.5 8A6 6 0 1 0 16 11M16 4v4h-4",
  edit: "m4 16 1-4 8-8 3 3-8 8zM11 6l3 3",
  remove: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.600L14 6",
};

/** A button with an icon, and a label for those who do not see it. */
export function iconButton(icon, label, onclick) {
  const drawn = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  drawn.setAttribute("viewBox", "0 0 20 20");
  drawn.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[icon]);
  drawn.append(path);
  return element("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick }, drawn);
}

/** A button that copies what `text()` says, and tells for a moment that it did. */
export function copyButton(label, text) {
  const button = iconButton("copy", label, async () => {
    const copied = await copy(text());
    button.querySelector("path").setAttribute("d", ICONS[copied ? "done" : "copy"]);
    button.setAttribute("aria-label", copied ? "Copied" : "The browser did not let it be copied");
    setTimeout(() => {
      button.querySelector("path").setAttribute("d", ICONS.copy);
      button.setAttribute("aria-label", label);
    }, 1500);
  });
  return button;
}

/** Whether it was copied. Over plain HTTP from another machine there is no clipboard, but an older way. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}
