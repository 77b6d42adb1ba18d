// Markdown within a line or paragraph, as nodes. Linear in its text whatever that is: one pass, stacks, no backtracking.

import { element } from "./element.js";

const SCHEMES = new Set(["http:", "https:", "mailto:"]);
const MAX_URL = 4096; // characters; a link with more is shown as text
const MAX_DEPTH = 8; // of emphasis within emphasis: browsers end in deep trees
const TAGS = { "*": "em", "_": "em", "**": "strong", "__": "strong", "~~": "del" };
const SPECIAL = /[\\`*_~[\]<\n]|!(?=\[)|h(?=ttps?:\/\/)/g;
const WORD = /[\p{L}\p{N}]/u;

/** Append a text's inline markdown to an element. */
export function inline(parent, text) {
  fill(parent, new Inline(text).nodes());
}

/** An address that may be followed, normalised; undefined for all others: javascript:, data:, relative ones. */
export function safeUrl(address) {
  try {
    const url = new URL(address);
    return SCHEMES.has(url.protocol) ? url.href : undefined;
  } catch {
    return undefined;
  }
}

/** Append one by one: a call cannot have as many arguments as a text may have pieces. */
function fill(parent, children) {
  for (const child of children) parent.append(child);
  return parent;
}

function link(url, children) {
  return fill(element("a", { href: url, title: url, target: "_blank", rel: "noopener noreferrer nofollow" }), children);
}

class Inline {
  constructor(text) {
    this.text = text;
    this.items = []; // strings, nodes, and openers, which are strings where nothing closes them
    this.openers = { "*": [], "_": [], "**": [], "__": [], "~~": [] }; // indices of items
    this.brackets = []; // indices of items
    this.ticks = undefined; // tickRuns and parentheses of the text, once they are needed
    this.pairs = undefined;
  }

  nodes() {
    const { text } = this;
    let at = 0;
    while (at < text.length) {
      SPECIAL.lastIndex = at;
      const found = SPECIAL.exec(text)?.index ?? text.length;
      if (found > at) this.items.push(text.slice(at, found));
      at = found < text.length ? this.special(found) : found;
    }
    return texts(this.items);
  }

  /** Take what begins at a character that may mean something -> where to go on. */
  special(at) {
    const { text } = this;
    const char = text[at];
    if (char === "\\") return this.escape(at);
    if (char === "`") return this.code(at);
    if (char === "*" || char === "_" || char === "~") return this.emphasis(at, char);
    if (char === "[" || char === "!") {
      const opener = char === "!" ? "![" : "[";
      this.brackets.push(this.items.length);
      this.items.push({ opener });
      return at + opener.length;
    }
    if (char === "]") return this.bracket(at);
    if (char === "<" || char === "h") return this.address(at, char);
    this.items.push(element("br")); // models mean the lines that they write
    return at + 1;
  }

  escape(at) {
    const next = this.text[at + 1] ?? "";
    const escaped = /[!-/:-@[-`{-~]/.test(next);
    this.items.push(escaped ? next : "\\");
    return at + (escaped ? 2 : 1);
  }

  code(at) {
    const { text } = this;
    const end = runEnd(text, at, "`");
    const length = end - at;
    this.ticks ??= tickRuns(text);
    const places = this.ticks.get(length) ?? [];
    while (places.at(-1) < end) places.pop();
    if (!places.length) {
      this.items.push(text.slice(at, end));
      return end;
    }
    let code = text.slice(end, places.at(-1)).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
    this.items.push(element("code", {}, code));
    return places.at(-1) + length;
  }

  /** "***": closes what is open, innermost first, then opens. */
  emphasis(at, char) {
    const { text } = this;
    const end = runEnd(text, at, char);
    let left = end - at;
    if (left > 3 || (char === "~" && left !== 2)) {
      this.items.push(text.slice(at, end));
      return end;
    }
    const before = text[at - 1] ?? " ";
    const after = text[end] ?? " ";
    const inWord = char === "_" && WORD.test(before) && WORD.test(after);
    while (left && !inWord && before.trim()) {
      const kind = this.innermost(char, left);
      if (!kind || !this.close(kind)) break;
      left -= kind.length;
    }
    while (left) {
      const kind = left >= 2 ? char + char : char;
      if (after.trim() && !inWord) {
        this.openers[kind].push(this.items.length);
        this.items.push({ opener: kind });
      } else this.items.push(kind);
      left -= kind.length;
    }
    return end;
  }

  innermost(char, length) {
    const kinds = [char, char + char].filter((kind) => kind.length <= length && this.openers[kind]?.length);
    return kinds.sort((a, b) => this.openers[b].at(-1) - this.openers[a].at(-1))[0];
  }

  /** Wrap what came since the opener. Nothing that is too deep is wrapped, nor what would hold it. */
  close(kind) {
    const from = this.openers[kind].pop();
    if (from + 1 === this.items.length) return false;
    let depth = 1;
    for (let i = from + 1; i < this.items.length; i++) depth = Math.max(depth, 1 + (this.items[i].depth ?? 0));
    if (depth > MAX_DEPTH) {
      for (const stack of Object.values(this.openers)) stack.length = 0;
      return false;
    }
    this.wrap(from, depth, (children) => fill(element(TAGS[kind]), children));
    return true;
  }

  /** Make one item of all from `from` on; what was open within stays text. */
  wrap(from, depth, make) {
    for (const stack of [...Object.values(this.openers), this.brackets]) {
      while (stack.length && stack.at(-1) >= from) stack.pop();
    }
    const inner = this.items.splice(from).slice(1);
    const made = make(texts(inner));
    made.depth = depth;
    this.items.push(made);
  }

  /** "](address)" makes a link of what came since its bracket. An image is a link as well: loading it would tell. */
  bracket(at) {
    const { text } = this;
    const from = this.brackets.pop();
    this.pairs ??= parentheses(text);
    const close = from === undefined || text[at + 1] !== "(" ? undefined : this.pairs.get(at + 1);
    const url = close - at < MAX_URL ? safeUrl(destination(text.slice(at + 2, close))) : undefined;
    if (url === undefined) {
      this.items.push("]");
      return at + 1;
    }
    const image = this.items[from].opener === "![";
    this.wrap(from, 1, (children) => {
      const said = children.map((child) => child.textContent ?? child).join("") || url; // no link within a link
      return link(url, [image ? `image: ${said}` : said]);
    });
    return close + 1;
  }

  /** <https://...>, or an address as it stands. */
  address(at, char) {
    const { text } = this;
    if (char === "h" && WORD.test(text[at - 1] ?? " ")) {
      this.items.push("h");
      return at + 1;
    }
    const start = char === "<" ? at + 1 : at;
    let end = start;
    while (end < text.length && end - start < MAX_URL && !/[\s<>"`|\\]/.test(text[end])) end++;
    if (char === "h") while (/[.,;:!?'"*_~)\]]/.test(text[end - 1])) end--;
    const complete = char === "h" || text[end] === ">";
    const url = complete && /^(https?:\/\/|mailto:)/.test(text.slice(start, start + 8)) ? safeUrl(text.slice(start, end)) : undefined;
    if (url === undefined) {
      this.items.push(char);
      return at + 1;
    }
    this.items.push(link(url, [text.slice(start, end)]));
    return char === "<" ? end + 1 : end;
  }
}

/** Items, with openers that nothing closed as the text that they are, and texts in a row as one. */
function texts(items) {
  const joined = [];
  let parts = [];
  for (const item of items) {
    const text = typeof item === "string" ? item : item.opener;
    if (text !== undefined) parts.push(text);
    else {
      if (parts.length) joined.push(parts.join(""));
      joined.push(item);
      parts = [];
    }
  }
  if (parts.length) joined.push(parts.join(""));
  return joined;
}

function runEnd(text, at, char) {
  while (text[at] === char) at++;
  return at;
}

/** Where runs of backticks begin, by their length, the first last. */
function tickRuns(text) {
  const runs = new Map();
  for (const run of [...text.matchAll(/`+/g)].reverse()) {
    const places = runs.get(run[0].length) ?? [];
    places.push(run.index);
    runs.set(run[0].length, places);
  }
  return runs;
}

/** Where the parentheses close that are opened in a line, by where they are opened. */
function parentheses(text) {
  const pairs = new Map();
  const opened = [];
  for (const { 0: char, index } of text.matchAll(/[()\n]/g)) {
    if (char === "(") opened.push(index);
    else if (char === "\n") opened.length = 0;
    else if (opened.length) pairs.set(opened.pop(), index);
  }
  return pairs;
}

/** `<address> "title"` -> address */
function destination(inside) {
  const trimmed = inside.trim();
  return trimmed.startsWith("<") ? trimmed.slice(1).split(">", 1)[0] : trimmed.split(/\s/, 1)[0];
}
