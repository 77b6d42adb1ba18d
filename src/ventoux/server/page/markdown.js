// Markdown as nodes, block by block, while it comes. Every text becomes a text node: there is no HTML to sanitise.

import { copyButton, element } from "./element.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 6; // of lists and quotes within each other; what is deeper is a paragraph
const EAGER = 4000; // characters of an unfinished block that are drawn anew with each piece
const LONG = 1000; // characters
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/**
 * Draws a text that grows into an element. The blocks before the last are drawn once; the last one anew, and when it is
 * long only after it has grown by a tenth, so that the cost is linear in the text. What came since is shown as it is.
 */
export class Markdown {
  constructor(parent) {
    this.parent = parent;
    this.tail = ""; // the text of the blocks that may still change
    this.drawn = 0; // characters of the tail that are drawn as markdown
    this.settled = 0; // children that stay
  }

  push(text) {
    this.tail += text;
    if (this.tail.length > EAGER && this.tail.length < this.drawn * 1.1) deepest(this.parent).append(text);
    else this.draw();
  }

  /** After the last piece. */
  finish() {
    if (this.drawn < this.tail.length) this.draw();
  }

  draw() {
    const lines = this.tail.split("\n");
    const blocks = parse(lines, 0);
    let from = 0; // the first block that may change: the last that begins in a complete line
    for (let i = 1; i < blocks.length && blocks[i].line < lines.length - 1; i++) from = i;
    while (this.parent.childNodes.length > this.settled) this.parent.lastChild.remove();
    for (const block of blocks) this.parent.append(block.draw());
    if (from) {
      this.tail = lines.slice(blocks[from].line).join("\n");
      this.settled += from;
    }
    this.drawn = this.tail.length;
  }
}

/** The block at whose end text is being written. */
function deepest(node) {
  while (node.lastChild?.matches?.("p, ul, ol, li, blockquote, figure, pre, pre > code")) node = node.lastChild;
  return node;
}

/** Lines -> [{line, draw}], where each block begins and how it becomes a node. */
function parse(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [end, draw] = block(lines, at, depth);
    blocks.push({ line: at, draw });
    at = end;
  }
  return blocks;
}

function drawn(parent, lines, depth) {
  for (const each of parse(lines, depth)) parent.append(each.draw());
  return parent;
}

/** The block that begins at a line -> [the line after it, how to draw it] */
function block(lines, at, depth) {
  const line = lines[at];
  const fence = short(FENCE, line);
  if (fence) return code(lines, at, fence);
  const heading = short(HEADING, line);
  if (heading) return [at + 1, () => inlined(`h${heading[1].length}`, (heading[2] ?? "").replace(/[ \t]+#+[ \t]*$/, ""))];
  if (RULE.test(line)) return [at + 1, () => element("hr")];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  let end = at + 1;
  while (end < lines.length && !interrupts(lines, end, depth)) end++;
  return [end, () => inlined("p", lines.slice(at, end).map((each) => each.trim()).join("\n"))];
}

/** A match within a line that is not so long that backtracking would be felt; what is longer means nothing special. */
function short(pattern, line) {
  return line.length < LONG ? pattern.exec(line) : null;
}

function inlined(tag, text) {
  const made = element(tag);
  inline(made, text);
  made.dir = "auto"; // now, or the browser would look for the first letter with each child
  return made;
}

/** Whether a line ends the paragraph before it. A number other than 1 may be a year at the beginning of a line. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (!line.trim() || short(FENCE, line) || short(HEADING, line) || RULE.test(line) || isTable(lines, at)) return true;
  if (depth >= MAX_DEPTH) return false;
  const item = ITEM.exec(line);
  return QUOTE.test(line) || Boolean(item && item[3] && (/[-*+]/.test(item[2]) || /^1[.)]/.test(item[2])));
}

function code(lines, at, [, fence, info]) {
  const indent = lines[at].length - lines[at].trimStart().length;
  const closes = new RegExp(`^ {0,3}${fence[0]}{${fence.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !closes.test(lines[end])) end++;
  const draw = () => {
    const text = lines.slice(at + 1, end).map((line) => outdented(line, indent)).join("\n");
    const language = info.trim().split(/\s/, 1)[0].slice(0, 40);
    const pre = element("pre", { tabindex: "0" }, element("code", {}, text));
    const head = element("figcaption", {}, element("span", {}, language), copyButton("Copy the code", () => pre.textContent));
    return element("figure", { class: "code" }, head, pre);
  };
  return [Math.min(end + 1, lines.length), draw];
}

function outdented(line, columns) {
  const spaces = line.length - line.trimStart().length;
  return line.slice(Math.min(spaces, columns));
}

function quote(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && (QUOTE.test(lines[end]) || !interrupts(lines, end, depth))) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => drawn(element("blockquote"), inner, depth + 1)];
}

/** Items of one kind, each with the lines that are indented below it. */
function list(lines, at, depth) {
  const kind = kindOf(ITEM.exec(lines[at]));
  const items = [];
  let end = at;
  while (end < lines.length) {
    const match = ITEM.exec(lines[end]);
    if (!match || kindOf(match) !== kind || RULE.test(lines[end])) break;
    const [next, inner] = item(lines, end, match, depth);
    items.push(inner);
    end = next;
  }
  const ordered = /\d/.test(kind) ? Number.parseInt(ITEM.exec(lines[at])[2], 10) : undefined;
  const draw = () => {
    const made = ordered === undefined ? element("ul") : element("ol", { start: ordered });
    for (const inner of items) made.append(entry(inner, depth));
    return made;
  };
  return [end, draw];
}

/** "-", "*", "+"; "0." and "0)" for numbers */
function kindOf(match) {
  return match[2].replace(/\d+/, "0");
}

function item(lines, at, match, depth) {
  const width = match[1].length + match[2].length + (match[3].length > 4 || !match[3] ? 1 : match[3].length);
  const inner = [lines[at].slice(width)];
  let end = at + 1;
  let blank = 0;
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (!line.trim()) {
      blank++;
      continue;
    }
    const indent = line.length - line.trimStart().length;
    const within = indent >= Math.min(width, 2 + match[1].length); // models indent by two where four were due
    if (!within && (blank || ITEM.test(line) || interrupts(lines, end, depth))) break;
    for (; blank; blank--) inner.push("");
    inner.push(within ? outdented(line, width) : line);
  }
  return [end, inner];
}

/** An item's first paragraph stands without a <p>, and "[ ]" is a box. */
function entry(inner, depth) {
  const task = /^\[([ xX])\][ \t]+/.exec(inner[0]);
  if (task) inner = [inner[0].slice(task[0].length), ...inner.slice(1)];
  const made = drawn(element("li"), inner, depth + 1);
  const first = made.firstChild;
  if (first?.tagName === "P") {
    while (first.firstChild) first.before(first.firstChild);
    first.remove();
    made.dir = "auto";
  }
  if (task) made.prepend(element("input", { type: "checkbox", disabled: "", ...(task[1] === " " ? {} : { checked: "" }) }));
  return made;
}

function isTable(lines, at) {
  const below = lines[at + 1];
  return below !== undefined && lines[at].includes("|") && below.includes("-") && short(DELIMITERS, below)
    && (below.includes("|") || below.includes(":")) && cells(lines[at]).length === cells(below).length;
}

/** "| a | `b|c` | d\|e |" -> ["a", "`b|c`", "d|e"]: a bar in code or after a backslash is text. */
function cells(line) {
  const found = [""];
  let ticks = false;
  for (const [piece] of line.trim().replace(/^\|/, "").matchAll(/\\\||[^\\|`]+|[^]/g)) {
    if (piece === "`") ticks = !ticks;
    if (piece === "|" && !ticks) found.push("");
    else found[found.length - 1] += piece === "\\|" ? "|" : piece;
  }
  if (found.length > 1 && !found.at(-1).trim()) found.pop();
  return found.map((cell) => cell.trim());
}

function table(lines, at) {
  const heads = cells(lines[at]);
  const sides = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : undefined));
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const row = (tag, texts) => {
    const made = element("tr");
    for (let i = 0; i < heads.length; i++) {
      const cell = inlined(tag, texts[i] ?? "");
      if (sides[i]) cell.classList.add(sides[i]);
      made.append(cell);
    }
    return made;
  };
  const draw = () => {
    const body = element("tbody");
    for (const line of lines.slice(at + 2, end)) body.append(row("td", cells(line)));
    const made = element("table", {}, element("thead", {}, row("th", heads)), body);
    return element("div", { class: "table", tabindex: "0" }, made); // which scrolls by itself when it is wide
  };
  return [end, draw];
}
