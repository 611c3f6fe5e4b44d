// The end of a job's output, as it comes; only so much is kept as people read.

import { h } from "./dom.js";
import { bytes } from "./format.js";

export const MAX_LINES = 2000;
const MAX_LINE = 4000;
const NEAR_END = 24;

export class Log {
  constructor() {
    this.stream = null;
    this.place = h("div", { class: "log", tabindex: 0, role: "log", "aria-live": "off", "aria-label": "Output" });
    this.select = h("select", { "aria-label": "Which output", onchange: () => this.#choose() }, ...[["", "stdout and stderr"], ["stdout", "stdout"], ["stderr", "stderr"]].map(([value, text]) => h("option", { value }, text)));
    this.element = h("section", { "aria-label": "Output" }, h("div", { class: "log-head" }, h("h3", {}, "Output"), this.select), this.place);
    this.clear();
  }

  clear() {
    this.open = new Map();
    this.place.replaceChildren();
    this.remark("Waiting for output…");
    this.waiting = this.place.firstElementChild;
  }

  #choose() {
    this.stream = this.select.value || null;
    for (const line of this.place.children) this.#filter(line);
    this.place.scrollTop = this.place.scrollHeight;
  }

  #filter(line) {
    line.hidden = this.stream !== null && line.dataset.stream !== undefined && line.dataset.stream !== this.stream;
  }

  /** Add what a stream wrote; a line may come in pieces. */
  add(stream, text) {
    const atEnd = this.place.scrollHeight - this.place.scrollTop - this.place.clientHeight < NEAR_END;
    this.waiting?.remove();
    this.waiting = null;
    const parts = text.split("\n").slice(-MAX_LINES - 1);
    parts.forEach((part, index) => {
      const last = index === parts.length - 1;
      const line = this.open.get(stream);
      if (line) this.#extend(line, part);
      else if (!last || part) this.open.set(stream, this.#line(stream, part));
      if (!last) this.open.delete(stream);
    });
    this.#trim();
    if (atEnd) this.place.scrollTop = this.place.scrollHeight;
  }

  #line(stream, text) {
    const line = h("div", { class: stream, "data-stream": stream }, this.#shown(text));
    this.#filter(line);
    this.place.append(line);
    return line;
  }

  #extend(line, text) {
    if (line.textContent.length < MAX_LINE) line.textContent = this.#shown(line.textContent + text);
  }

  /** As a terminal would: what follows a carriage return stands in the place of what was before. */
  #shown(text) {
    const kept = text.replace(/\r+$/, "");
    return kept.slice(kept.lastIndexOf("\r") + 1).slice(0, MAX_LINE) || "\u200b";
  }

  #trim() {
    while (this.place.childElementCount > MAX_LINES) this.place.firstElementChild.remove();
  }

  remark(text) {
    this.place.append(h("div", { class: "remark" }, text));
    this.#trim();
  }

  leftOut(message) {
    this.remark(`… the first ${bytes(message.bytes)} of ${message.stream} are left out here: slurmbus logs shows them`);
  }

  gap(message) {
    this.remark(`… ${bytes(message.bytes)} of ${message.stream} left out${message.path ? `; all of it: ${message.path}` : `: ${message.reason}`}`);
  }

  ended() {
    if (this.waiting) this.waiting.textContent = "It wrote nothing.";
    this.waiting = null;
  }
}
