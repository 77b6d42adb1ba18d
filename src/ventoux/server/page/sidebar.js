// The list of conversations: choose, rename, delete.

import { element, iconButton } from "./element.js";
import { titleOf } from "./store.js";

export class Sidebar {
  /** `actions`: choose(conversation), rename(conversation, title), remove(conversation). */
  constructor(actions) {
    this.actions = actions;
    this.list = document.getElementById("conversations");
    this.opener = document.getElementById("open-sidebar");
    this.opener.addEventListener("click", () => this.open(!document.body.classList.contains("aside")));
    document.getElementById("close-sidebar").addEventListener("click", () => this.open(false));
    document.getElementById("shade").addEventListener("click", () => this.open(false));
  }

  get isOpen() {
    return document.body.classList.contains("aside") && getComputedStyle(this.opener).display !== "none";
  }

  /** On a narrow screen; on a wide one it is always there. */
  open(opened) {
    document.body.classList.toggle("aside", opened);
    this.opener.setAttribute("aria-expanded", String(opened));
    if (opened) document.getElementById("new").focus();
    else if (document.activeElement?.closest("#sidebar")) this.opener.focus();
  }

  /** `running`: the ids of those that are being answered. */
  show(conversations, current, running) {
    if (this.list.querySelector("input")) return; // a name is being written
    this.list.replaceChildren(...conversations.map((each) => this.entry(each, each === current, running.has(each.id))));
  }

  entry(conversation, current, running) {
    const title = titleOf(conversation);
    const choose = element("button", { type: "button", class: "title", dir: "auto", title }, title);
    choose.addEventListener("click", () => this.actions.choose(conversation));
    choose.addEventListener("dblclick", () => this.rename(entry, conversation));
    if (current) choose.setAttribute("aria-current", "true");
    const entry = element(
      "li",
      { class: running ? "running" : "" },
      choose,
      iconButton("edit", `Rename ${title}`, () => this.rename(entry, conversation)),
      iconButton("remove", `Delete ${title}`, () => this.actions.remove(conversation)),
    );
    return entry;
  }

  rename(entry, conversation) {
    const field = element("input", { type: "text", maxlength: "200", "aria-label": "Name of the conversation" });
    field.value = titleOf(conversation);
    let over = false; // taking the field away is one more blur
    const done = (keep) => {
      if (over) return;
      over = true;
      const title = field.value.trim();
      field.remove();
      this.actions.rename(conversation, keep && title ? title : conversation.title);
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.stopPropagation();
      done(event.key === "Enter");
    });
    field.addEventListener("blur", () => done(true));
    entry.replaceChildren(field);
    field.select();
  }
}
