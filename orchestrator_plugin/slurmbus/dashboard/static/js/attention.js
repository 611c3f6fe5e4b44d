// What needs attention, on top; the server works it out.

import { announce, arrange, attribute, byId, h, say } from "./dom.js";
import { age } from "./format.js";

const WORDS = { bad: "Problem", warning: "Warning", note: "Note" };

export class Attention {
  constructor(store, openSite, openJob) {
    this.store = store;
    this.openSite = openSite;
    this.openJob = openJob;
    this.items = new Map();
    this.place = byId("attention");
    this.calm = h("li", { class: "calm" }, "Nothing needs attention.");
    store.listen((kinds) => (kinds.has("attention") || kinds.has("live")) && this.show());
    setInterval(() => this.tick(), 1000);
  }

  show() {
    const known = new Map(this.items);
    const elements = this.store.attention.map((item) => {
      const entry = this.items.get(item.id) ?? this.#made(item);
      entry.item = item;
      this.items.set(item.id, entry);
      known.delete(item.id);
      attribute(entry.element, "data-level", item.level);
      say(entry.word, WORDS[item.level]);
      say(entry.text, item.text);
      say(entry.hint, item.hint);
      entry.hint.hidden = !item.hint;
      return entry.element;
    });
    known.forEach((_, id) => this.items.delete(id));
    arrange(this.place, elements.length || !this.store.live ? elements : [this.calm]);
    this.place.hidden = this.place.childElementCount === 0;
    this.tick();
  }

  #made(item) {
    const text = h("button", { type: "button", class: "link text" });
    const entry = { word: h("span", { class: "word" }), text, hint: h("span", { class: "hint" }), since: h("span", { class: "since" }) };
    entry.element = h("li", {}, entry.word, text, entry.hint, entry.since);
    text.addEventListener("click", () => {
      const [job] = entry.item.jobs ?? [];
      if (job) this.openJob(job);
      else if (entry.item.site) this.openSite(entry.item.site);
    });
    if (item.level === "bad") announce(item.text);
    return entry;
  }

  tick() {
    for (const { item, since } of this.items.values()) {
      say(since, item.since ? age(this.store.now() - item.since) : "");
    }
  }
}
