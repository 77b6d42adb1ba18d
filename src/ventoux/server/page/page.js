// The chat page: what happens when something is asked, stopped, edited, chosen.

import { models } from "./api.js";
import { element } from "./element.js";
import { Run } from "./run.js";
import { Settings, themes } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { newConversation, Store, titleOf } from "./store.js";
import { grow, Thread } from "./thread.js";

const LOADING_MS = 1000; // between two looks whether the model is there
const byId = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.runs = new Map(); // by conversation's id: several may be answered at once
    this.failures = new Map();
    this.store = new Store((text) => this.notice(text));
    this.thread = new Thread({
      regenerate: (index) => this.regenerate(index),
      edit: (index, text) => this.edit(index, text),
      retry: () => this.retry(),
    });
    this.sidebar = new Sidebar({
      choose: (conversation) => this.choose(conversation),
      rename: (conversation, title) => this.rename(conversation, title),
      remove: (conversation) => this.remove(conversation),
    });
    this.settings = new Settings((system, options) => this.set(system, options));
    this.conversations = this.store.load();
    this.current = this.conversations[0] ?? newConversation(this.store.choices);
    this.listen();
    this.show();
    this.look();
  }

  listen() {
    const question = byId("question");
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    question.addEventListener("input", () => grow(question));
    question.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new").addEventListener("click", () => this.begin());
    document.addEventListener("keydown", (event) => this.key(event));
    themes(byId("theme"));
    this.store.watch((id) => this.reread(id));
    window.addEventListener("pagehide", () => {
      for (const each of this.conversations) if (this.runs.has(each.id)) this.store.save(each);
    });
  }

  key(event) {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      if (this.sidebar.isOpen) this.sidebar.open(false);
      else if (!byId("settings").hidden) this.settings.open(false);
      else this.stop();
    } else if (event.ctrlKey && event.shiftKey && event.code === "KeyO") {
      event.preventDefault();
      this.begin();
    }
  }

  /** Look for the models until they are there. */
  async look() {
    try {
      const names = await models();
      this.settings.offer(names);
      this.settings.show(this.current);
      byId("served").textContent = names[0] ?? "";
      this.notice("");
    } catch (error) {
      this.notice(error.message);
      if (error.passing) setTimeout(() => this.look(), LOADING_MS);
    }
  }

  show() {
    const { current } = this;
    const run = this.runs.get(current.id);
    byId("welcome").hidden = current.messages.length > 0;
    document.title = current.messages.length ? `${titleOf(current)} - Ventoux` : "Ventoux";
    this.settings.show(current);
    this.thread.show(current.messages, { run, failure: this.failures.get(current.id) });
    this.list();
  }

  /** What does not touch the messages: the list, and whether there is something to stop. */
  list() {
    const running = this.runs.has(this.current.id);
    byId("send").hidden = running;
    byId("stop").hidden = !running;
    this.sidebar.show(this.conversations, this.current, this.runs);
  }

  /** Say something above the field, with an action where there is one; "" clears it. */
  notice(text, label, action) {
    const button = label && element("button", { type: "button", onclick: action }, label);
    byId("notice").replaceChildren(...(text ? [element("span", {}, text)] : []), ...(button ? [button] : []));
  }

  send() {
    const question = byId("question");
    if (!question.value.trim() || this.runs.has(this.current.id)) return;
    this.current.messages.push({ role: "user", content: question.value });
    question.value = "";
    grow(question);
    this.answer();
  }

  edit(index, text) {
    this.runs.get(this.current.id)?.stop();
    this.current.messages.splice(index, Infinity, { role: "user", content: text });
    this.answer();
    byId("question").focus();
  }

  regenerate(index) {
    this.current.messages.splice(index);
    this.answer();
    byId("question").focus();
  }

  /** What had come of an answer that broke off makes room for the next. */
  retry() {
    if (this.current.messages.at(-1)?.role === "assistant") this.current.messages.pop();
    this.answer();
    byId("question").focus();
  }

  stop() {
    if (!this.runs.has(this.current.id)) return;
    this.runs.get(this.current.id).stop();
    byId("question").focus();
  }

  /** Have the current conversation's last message answered. */
  async answer() {
    const conversation = this.current;
    const run = new Run(bodyOf(conversation, this.settings.offered));
    conversation.updated = Date.now();
    this.conversations = [conversation, ...this.conversations.filter((each) => each !== conversation)];
    this.failures.delete(conversation.id);
    this.runs.set(conversation.id, run);
    this.store.save(conversation);
    this.show();
    let saved = performance.now();
    const failure = await run.go((piece) => {
      if (this.runs.get(conversation.id) !== run) return; // stopped, and something came after all
      if (run.message.content === piece) conversation.messages.push(run.message);
      this.thread.push(run, piece);
      const now = performance.now();
      if (now - saved < 400 + run.message.content.length / 50) return; // rarer the more there is to write
      this.store.save(conversation);
      saved = now;
    });
    if (this.runs.get(conversation.id) !== run) return; // another has taken its place
    this.runs.delete(conversation.id);
    this.over(conversation, run, failure?.message);
  }

  over(conversation, run, failure) {
    if (!this.conversations.includes(conversation)) return; // it was deleted
    if (!failure && !run.message.content && run.message.reason !== "stopped") conversation.messages.push(run.message);
    if (failure) this.failures.set(conversation.id, failure);
    this.store.save(conversation);
    this.thread.end(run, conversation.messages, failure);
    this.list();
  }

  begin() {
    this.sidebar.open(false);
    if (this.current.messages.length) this.current = newConversation(this.store.choices);
    this.show();
    byId("question").focus();
  }

  choose(conversation) {
    this.current = conversation;
    this.sidebar.open(false);
    this.show();
    byId("question").focus();
  }

  rename(conversation, title) {
    conversation.title = title;
    this.store.save(conversation);
    this.list();
  }

  remove(conversation) {
    this.runs.get(conversation.id)?.stop();
    this.runs.delete(conversation.id);
    this.store.remove(conversation);
    this.conversations = this.conversations.filter((each) => each !== conversation);
    if (this.current === conversation) this.current = this.conversations[0] ?? newConversation(this.store.choices);
    this.show();
    this.notice(`Deleted: ${titleOf(conversation)}`, "Undo", () => {
      this.store.save(conversation);
      this.notice("");
      this.conversations = [...this.conversations, conversation].sort((a, b) => b.updated - a.updated);
      this.choose(conversation);
    });
  }

  set(system, options) {
    this.current.system = system;
    this.current.options = options;
    this.store.choices = options;
    if (this.current.messages.length) this.store.save(this.current);
  }

  /** Another tab has changed a conversation, or all. What is being answered here stays as it is here. */
  reread(id) {
    const mine = this.conversations.filter((each) => this.runs.has(each.id));
    const same = new Map(this.conversations.filter((each) => id && each.id !== id).map((each) => [each.id, each]));
    const others = this.store.load().filter((each) => !this.runs.has(each.id)).map((each) => same.get(each.id) ?? each);
    this.conversations = [...mine, ...others].sort((a, b) => b.updated - a.updated);
    const found = this.conversations.find((each) => each.id === this.current.id);
    if (found === this.current || !found) return this.list();
    this.current = found;
    this.show();
  }
}

/** A conversation as the server is asked. Messages of one side in a row are one: what failed is asked along. */
function bodyOf({ system, options, messages }, models) {
  const asked = system.trim() ? [{ role: "system", content: system }] : [];
  for (const { role, content } of messages) {
    const last = asked.at(-1);
    if (last?.role === role) last.content += `\n\n${content}`;
    else if (content) asked.push({ role, content });
  }
  return { messages: asked, ...options, model: models.includes(options.model) ? options.model : models[0] };
}

new Page();
