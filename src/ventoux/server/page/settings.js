// The settings of a conversation, the choice of a model, and the colours.

import { element } from "./element.js";

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const THEMES = { "": "as the system has them", light: "light", dark: "dark" };

export class Settings {
  /** `changed(system, options)` when something was set. */
  constructor(changed) {
    this.changed = changed;
    this.form = document.getElementById("settings");
    this.model = document.getElementById("model");
    this.system = document.getElementById("system");
    this.fields = NUMBERS.map((name) => document.getElementById(name));
    this.opener = document.getElementById("open-settings");
    this.opener.addEventListener("click", () => this.open(this.form.hidden));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("input", () => this.read());
    this.model.addEventListener("change", () => this.read());
  }

  /** Names of the models that can be chosen. */
  get offered() {
    return [...this.model.options].map((each) => each.value);
  }

  open(opened) {
    this.form.hidden = !opened;
    this.opener.setAttribute("aria-expanded", String(opened));
    if (opened) this.system.focus();
    else if (document.activeElement === document.body) this.opener.focus();
  }

  show({ system, options }) {
    this.system.value = system;
    for (const field of this.fields) field.value = options[field.id] ?? "";
    this.model.selectedIndex = Math.max(0, this.offered.indexOf(options.model)); // one that is gone is not asked for
    this.complain();
  }

  /** The models that there are; the first answers where none was chosen. */
  offer(names) {
    this.model.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  }

  read() {
    const options = { model: this.model.selectedIndex > 0 ? this.model.value : undefined };
    for (const field of this.fields) {
      if (field.value !== "" && field.validity.valid) options[field.id] = field.valueAsNumber;
    }
    this.complain();
    this.changed(this.system.value, options);
  }

  /** Which number is none that can be used, and is left out. */
  complain() {
    const wrong = this.fields.find((field) => !field.validity.valid);
    const said = wrong ? `${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}` : "";
    document.getElementById("wrong").textContent = said;
    for (const field of this.fields) field.setAttribute("aria-invalid", String(!field.validity.valid));
  }
}

/** The button that goes through the system's colours, light and dark. */
export function themes(button) {
  const root = document.documentElement;
  const label = () => button.setAttribute("aria-label", `Colours: ${THEMES[root.dataset.theme ?? ""]}`);
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(root.dataset.theme ?? "") + 1) % names.length];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    try {
      localStorage.setItem("ventoux.theme", next);
    } catch {
      // chosen for this visit
    }
    label();
  });
  label();
}
