// The table of jobs: search, filters, sorting, and the arrow keys.

import { arrange, attribute, byId, h, say } from "./dom.js";
import { age, count, duration } from "./format.js";
import { Rows } from "./rows.js";
import { ALL_KINDS, kindOf, stateWord } from "./states.js";

const waited = (job, now) => (job.started ?? (job.final ? job.ended : now)) - job.created;
const ran = (job, now) => (job.started === null ? null : (job.ended ?? now) - job.started);

const COLUMNS = [
  { name: "state", title: "State", by: (job) => ALL_KINDS.indexOf(kindOf(job.state)) },
  { name: "name", title: "Name", by: (job) => job.name },
  { name: "site", title: "Site", by: (job) => job.site },
  { name: "id", title: "Slurm id", by: (job) => Number.parseInt(job.slurmId, 10) || 0 },
  { name: "partition", title: "Partition", by: (job) => job.partition },
  { name: "nodes", title: "Nodes", by: (job) => job.nodes },
  { name: "waited", title: "Waited", by: (job, now) => waited(job, now), figure: true },
  { name: "ran", title: "Ran", by: (job, now) => ran(job, now) ?? -1, figure: true },
  { name: "age", title: "Submitted", by: (job) => -job.created, figure: true },
  { name: "reason", title: "Reason", by: (job) => job.reason },
];
const CLASSES = { state: "status", site: "site-name dim", id: "dim", partition: "partition dim", nodes: "nodes dim", waited: "waited figure", ran: "figure", age: "age figure dim", reason: "reason dim" };

class JobRow {
  constructor(table) {
    this.table = table;
    this.state = h("span", { class: "state" });
    this.button = h("button", { type: "button", class: "link", tabindex: -1 });
    this.cells = Object.fromEntries(
      COLUMNS.map(({ name }) => [name, h("div", { role: "cell", class: CLASSES[name] ?? name }, name === "state" ? this.state : name === "name" ? this.button : null)]),
    );
    this.element = h("div", { class: "row", role: "row", onclick: () => table.open(this.job.id) }, ...Object.values(this.cells));
  }

  show(job) {
    this.job = job;
    const now = this.table.store.now();
    attribute(this.state, "data-kind", kindOf(job.state));
    say(this.state, stateWord(job));
    say(this.button, job.name);
    say(this.cells.site, job.site);
    say(this.cells.id, job.slurmId);
    say(this.cells.partition, job.partition);
    say(this.cells.nodes, job.nodes);
    attribute(this.cells.nodes, "title", job.nodes || null);
    say(this.cells.waited, duration(waited(job, now)));
    say(this.cells.ran, duration(ran(job, now)));
    say(this.cells.age, `${age(now - job.created)}${now - job.created < 1 ? "" : " ago"}`);
    say(this.cells.reason, job.reason);
    attribute(this.cells.reason, "title", job.reason || null);
    this.element.classList.toggle("chosen", job.id === this.table.chosen);
  }
}

export class Jobs {
  constructor(store, open) {
    this.store = store;
    this.open = open;
    this.chosen = null;
    this.kind = null;
    this.sort = { column: COLUMNS[8], descending: false };
    this.scroller = byId("scroller");
    this.#makeHead();
    this.rows = new Rows(this.scroller, this.head, byId("sizer"), () => new JobRow(this));
    this.#makeFilters();
    this.scroller.addEventListener("keydown", (event) => this.#key(event));
    store.listen((kinds) => kinds.has("jobs") && this.show());
    setInterval(() => this.#tick(), 1000);
  }

  #makeHead() {
    this.heads = COLUMNS.map((column) => {
      const button = h("button", { type: "button", onclick: () => this.#sortBy(column) }, column.title);
      return h("div", { role: "columnheader", class: CLASSES[column.name] ?? column.name, "aria-sort": "none" }, button);
    });
    this.head = byId("table-head");
    arrange(this.head, this.heads);
    this.#showSort();
  }

  #sortBy(column) {
    this.sort = { column, descending: this.sort.column === column && !this.sort.descending };
    this.#showSort();
    this.show();
  }

  #showSort() {
    COLUMNS.forEach((column, index) => {
      const direction = this.sort.descending ? "descending" : "ascending";
      attribute(this.heads[index], "aria-sort", column === this.sort.column ? direction : "none");
    });
  }

  #makeFilters() {
    this.search = byId("search");
    this.search.addEventListener("input", () => this.show(true));
    this.site = byId("site-filter");
    this.site.addEventListener("change", () => this.show(true));
    this.kinds = new Map(
      [null, ...ALL_KINDS].map((kind) => {
        const figure = h("span", { class: "count" });
        const button = h("button", { type: "button", "aria-pressed": kind === null, onclick: () => this.filter(kind) }, `${kind ?? "all"} `, figure);
        return [kind, { button, figure }];
      }),
    );
    arrange(byId("state-filter"), [...this.kinds.values()].map((entry) => entry.button));
  }

  /** Show only jobs of this kind; null shows all. */
  filter(kind) {
    this.kind = kind;
    for (const [one, { button }] of this.kinds) attribute(button, "aria-pressed", one === kind);
    this.show(true);
  }

  #found() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const site = this.site.value;
    const fits = (job) => {
      if (site && job.site !== site) return false;
      if (words.length === 0) return true;
      const text = `${job.name} ${job.key} ${job.slurmId} ${job.nodes} ${job.partition} ${job.reason} ${job.site} ${job.state} ${job.labels}`.toLowerCase();
      return words.every((word) => text.includes(word));
    };
    return [...this.store.jobs.values()].filter(fits);
  }

  show(fromTop = false) {
    const found = this.#found();
    const counts = new Map([[null, found.length]]);
    for (const job of found) counts.set(kindOf(job.state), (counts.get(kindOf(job.state)) ?? 0) + 1);
    for (const [kind, { figure }] of this.kinds) say(figure, count(counts.get(kind) ?? 0));
    const items = this.kind === null ? found : found.filter((job) => kindOf(job.state) === this.kind);
    const now = this.store.now();
    const { column, descending } = this.sort;
    const keyed = items.map((job) => [column.by(job, now), job]);
    const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    keyed.sort((a, b) => (descending ? -1 : 1) * order(a[0], b[0]) || order(b[1].key, a[1].key) || order(a[1].task, b[1].task));
    if (fromTop) this.scroller.scrollTop = 0;
    this.rows.set(keyed.map(([, job]) => job));
    this.#showNumbers(items.length);
  }

  #showNumbers(shown) {
    const all = this.store.jobs.size;
    say(byId("job-count"), all === 0 ? "" : shown === all ? count(all) : `${count(shown)} of ${count(all)}`);
    attribute(this.scroller, "aria-rowcount", shown + 1);
    const empty = byId("no-jobs");
    empty.hidden = shown > 0;
    this.scroller.hidden = shown === 0;
    say(empty, all > 0 ? "No job fits this search." : this.store.hello ? "No jobs yet. They appear here the moment they are accepted." : "");
    const sites = ["", ...this.store.sites()];
    if (sites.length !== this.site.options.length || sites.some((site, index) => this.site.options[index].value !== site)) {
      const chosen = this.site.value;
      this.site.replaceChildren(...sites.map((site) => h("option", { value: site }, site || "All sites")));
      this.site.value = sites.includes(chosen) ? chosen : "";
    }
    this.scroller.tabIndex = shown > 0 ? 0 : -1;
  }

  #tick() {
    if (document.visibilityState === "visible") this.rows.render();
  }

  choose(id) {
    this.chosen = id;
    this.rows.render();
  }

  #key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (event.key === "Enter" && event.target === this.scroller) this.#focus(0);
    if (step === undefined || this.rows.items.length === 0) return;
    event.preventDefault();
    const row = document.activeElement?.closest(".sizer .row");
    const here = row ? Number(row.getAttribute("aria-rowindex")) - 2 : step > 0 ? -1 : 0;
    this.#focus(Math.min(this.rows.items.length - 1, Math.max(0, here + step)));
  }

  #focus(index) {
    if (this.rows.items.length > 0) this.rows.reveal(index)?.querySelector("button").focus({ preventScroll: true });
  }

  /** Put the keyboard back where a job stands in the table. */
  focusJob(id) {
    const index = this.rows.index?.get(id);
    if (index !== undefined) this.#focus(index);
    else this.scroller.focus();
  }
}
