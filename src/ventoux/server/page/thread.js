// The messages of a conversation on the screen.

import { copyButton, element, iconButton } from "./element.js";
import { Markdown } from "./markdown.js";
import { told } from "./run.js";

const NEAR = 80; // pixels from the end, within which the view follows what comes

export class Thread {
  /** `actions`: regenerate(index), edit(index, text), retry(). */
  constructor(actions) {
    this.actions = actions;
    this.list = document.getElementById("thread");
    this.scroller = document.getElementById("scroll");
    this.latest = document.getElementById("latest");
    this.follows = true;
    this.scroller.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.scroller;
      this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
      this.latest.hidden = this.follows;
    }, { passive: true });
    this.latest.addEventListener("click", () => this.toEnd());
  }

  /** All messages; `run` where the last of them is still being written, `failure` where it did not come. */
  show(messages, { run, failure } = {}) {
    this.writing = undefined;
    this.list.replaceChildren();
    messages.forEach((message, index) => {
      if (message !== run?.message) this.list.append(this.drawn(message, index, messages));
    });
    if (run) this.begin(run);
    else if (failure || messages.at(-1)?.role === "user") this.fail(failure ?? "There is no answer yet.");
    this.toEnd();
  }

  drawn(message, index, messages) {
    const article = frame(message.role);
    const body = article.firstChild;
    const below = element("div", { class: "below" });
    if (message.role === "user") {
      body.textContent = message.content;
      body.dir = "auto";
    } else {
      new Markdown(body).push(message.content);
      if (!message.content.trim()) body.append(element("p", { class: "small" }, "The model had nothing to say."));
      below.append(element("span", { class: "figures" }, told(message)));
    }
    below.append(copyButton("Copy the message", () => message.content));
    if (message.role === "user") below.append(iconButton("edit", "Edit the message", () => this.edit(article, message, index)));
    else if (index === messages.length - 1) below.append(iconButton("again", "Answer again", () => this.actions.regenerate(index)));
    article.append(below);
    return article;
  }

  /** The message's text becomes a field. What comes after it will be gone once it is sent. */
  edit(article, message, index) {
    const area = element("textarea", { "aria-label": "Edited message", dir: "auto" });
    area.value = message.content;
    const cancel = () => {
      form.replaceWith(...hidden);
      article.classList.remove("edited");
      article.querySelector(".below button:last-child").focus();
    };
    const send = () => area.value.trim() && this.actions.edit(index, area.value);
    const form = element(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          send();
        },
        onkeydown: (event) => {
          if (event.isComposing) return;
          if (event.key === "Escape") {
            event.stopPropagation();
            cancel();
          } else if (event.key === "Enter" && !event.shiftKey && event.target === area) {
            event.preventDefault();
            send();
          }
        },
      },
      area,
      element("button", { type: "button", onclick: cancel }, "Cancel"),
      element("button", { type: "submit", class: "main" }, "Send"),
    );
    const hidden = [...article.childNodes];
    article.classList.add("edited");
    article.replaceChildren(form);
    grow(area);
    area.addEventListener("input", () => grow(area));
    area.focus();
  }

  /** An answer that is being written. */
  begin(run) {
    const article = frame("assistant");
    const figures = element("span", { class: "figures" });
    article.append(element("div", { class: "below" }, figures));
    article.classList.add("writing");
    this.list.setAttribute("aria-busy", "true"); // read out when it is complete, not piece by piece
    this.list.append(article);
    const markdown = new Markdown(article.firstChild);
    this.writing = { run, article, figures, markdown, pending: run.message.content, frame: 0 };
    this.flush();
    this.toEnd();
  }

  /** A piece more: drawn with the browser's next frame, however many come until then. */
  push(run, piece) {
    const writing = this.writing;
    if (writing?.run !== run) return;
    writing.pending += piece;
    writing.frame ||= requestAnimationFrame(() => this.writing === writing && this.flush());
  }

  flush() {
    const { writing } = this;
    if (writing.pending) {
      writing.markdown.push(writing.pending);
      writing.figures.textContent = writing.run.progress;
    }
    writing.pending = "";
    writing.frame = 0;
    if (this.follows) this.toEnd();
  }

  /** The answer is complete, or will not be. */
  end(run, messages, failure) {
    const { writing } = this;
    if (writing?.run !== run) return;
    this.writing = undefined;
    cancelAnimationFrame(writing.frame);
    const index = messages.indexOf(run.message);
    writing.article.remove();
    this.list.setAttribute("aria-busy", "false");
    if (index >= 0) this.list.append(this.drawn(run.message, index, messages));
    if (failure) this.fail(failure);
    else if (index < 0) this.fail("Stopped before there was an answer.");
    if (this.follows) this.toEnd();
  }

  fail(text) {
    const again = element("button", { type: "button", onclick: () => this.actions.retry() }, "Try again");
    this.list.append(element("div", { class: "failure", role: "alert" }, element("p", {}, text), again));
  }

  toEnd() {
    this.follows = true;
    this.latest.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

function frame(role) {
  const label = role === "user" ? "You" : "The model";
  return element("article", { class: role, "aria-label": label }, element("div", { class: "body" }));
}

/** As high as its text, up to what the style allows. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}
