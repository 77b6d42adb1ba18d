// Conversations in the browser's localStorage, one key each. What is read back is believed no more than a model is.

const PREFIX = "ventoux.chat.";
const CHOICES = "ventoux.choices";
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const DEFAULTS = { temperature: 0.7 };

/** A conversation that nobody has said anything in. */
export function newConversation(options = DEFAULTS) {
  return { id: identity(), title: "", updated: Date.now(), system: "", options: { ...options }, messages: [] };
}

// crypto.randomUUID() is for pages that came by https or from this machine.
function identity() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** What the first question begins with, until the conversation is given a name. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.messages.find((message) => message.role === "user");
  return first?.content.trim().split("\n", 1)[0].slice(0, 80) || "New chat";
}

export class Store {
  /** `failed(text)` is told when nothing can be kept. */
  constructor(failed) {
    this.failed = failed;
  }

  /** All conversations, the latest first. What is damaged beyond reading is left out. */
  load() {
    const found = [];
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const key = localStorage.key(i);
        const conversation = key.startsWith(PREFIX) && read(localStorage.getItem(key), key.slice(PREFIX.length));
        if (conversation) found.push(conversation);
      }
    } catch {
      this.failed("This browser keeps nothing for this page: conversations are lost when it is closed.");
    }
    return found.sort((a, b) => b.updated - a.updated);
  }

  save(conversation) {
    try {
      localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
      return true;
    } catch {
      this.failed("The browser's storage is full: this conversation is not kept. Delete others to make room.");
      return false;
    }
  }

  remove(conversation) {
    try {
      localStorage.removeItem(PREFIX + conversation.id);
    } catch {
      // what cannot be reached was not kept
    }
  }

  /** Sampling of the next new conversation: that which was chosen last. */
  get choices() {
    try {
      return options(JSON.parse(localStorage.getItem(CHOICES)) ?? DEFAULTS);
    } catch {
      return { ...DEFAULTS };
    }
  }

  set choices(chosen) {
    try {
      localStorage.setItem(CHOICES, JSON.stringify(chosen));
    } catch {
      // the conversation's own are kept with it, or a notice says that it is not kept
    }
  }

  /** Have another tab's changes told: the conversation's id, or undefined for all. */
  watch(changed) {
    window.addEventListener("storage", (event) => {
      if (event.key === null || event.key.startsWith(PREFIX)) changed(event.key?.slice(PREFIX.length));
    });
  }
}

/** A stored conversation, field by field; undefined where it is none. */
function read(text, id) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null || !Array.isArray(value.messages)) return undefined;
  return {
    id,
    title: string(value.title).slice(0, 200),
    updated: Number.isFinite(value.updated) ? value.updated : 0,
    system: string(value.system),
    options: options(value.options),
    messages: value.messages.map(message).filter(Boolean),
  };
}

function message(value) {
  if (!["user", "assistant"].includes(value?.role) || typeof value.content !== "string") return undefined;
  const { role, content } = value;
  if (role === "user") return { role, content };
  const reason = ["stop", "length", "stopped"].includes(value.reason) ? value.reason : undefined;
  return { role, content, reason, figures: numbers(value.figures, ["prompt", "cached", "tokens", "seconds", "first"]) };
}

function options(value) {
  const model = string(value?.model).slice(0, 256) || undefined;
  return { model, ...numbers(value, NUMBERS) };
}

function numbers(value, names) {
  const pairs = names.map((name) => [name, value?.[name]]);
  return Object.fromEntries(pairs.filter(([, each]) => Number.isFinite(each)));
}

function string(value) {
  return typeof value === "string" ? value : "";
}
