// A card for each site: its agent's living line, and how agent, scheduler and bus are.

import { BudgetMeter } from "./budget.js";
import { arrange, attribute, byId, h, say } from "./dom.js";
import { age, bytes, count, latency } from "./format.js";
import { Lifeline } from "./lifeline.js";
import { conditionOf } from "./store.js";

const MANY = 9;
const WORDS = { alive: "alive", late: "late", silent: "silent", stopped: "stopped", never: "never seen", unreachable: "bus lost" };

class SiteCard {
  constructor(store, site, open) {
    this.store = store;
    this.site = site;
    this.line = new Lifeline(() => store.now());
    this.word = h("b");
    this.ago = h("span");
    this.who = h("p", { class: "who" });
    this.figures = Object.fromEntries(["scheduler", "bus", "backlog", "jobs"].map((name) => [name, h("dd")]));
    this.budgets = h("div", { class: "budgets" });
    this.meters = new Map();
    this.element = h(
      "article",
      { class: "site card", "data-site": site },
      h(
        "header",
        {},
        h("h3", {}, h("button", { type: "button", class: "link", onclick: () => open(site) }, site)),
        h("p", { class: "condition" }, this.word, " ", this.ago),
      ),
      this.line.canvas,
      this.who,
      h("dl", { class: "figures" }, ...Object.entries(this.figures).map(([name, dd]) => h("div", {}, h("dt", {}, name), dd))),
      this.budgets,
    );
  }

  remove() {
    this.line.remove();
  }

  show() {
    const { store, site } = this;
    const agents = store.agentsOf(site);
    const [agent] = agents;
    const bus = store.busOf(site);
    this.line.beats = agent?.beats ?? [];
    this.line.interval = agent?.interval ?? 10;
    this.agent = agent;
    const health = agent?.scheduler;
    const standby = agents.filter((one) => !one.leader && ["alive", "late"].includes(conditionOf(one, store.now())));
    say(
      this.who,
      agent
        ? [
            `${agent.user}@${agent.host}`,
            standby.length ? `${standby.length} standing by` : "no standby",
            `v${agent.version}`,
          ].join(" · ")
        : bus?.reachable === false
          ? bus.problem
          : `start an agent: slurmbus-agent run --site ${site}`,
    );
    const answers = health?.asked === false ? null : health?.responding ?? null;
    say(this.figures.scheduler, !health ? "–" : answers !== false ? `${health.kind}${health.latency ? ` ${latency(health.latency)}` : ""}` : `${health.kind}: silent`);
    attribute(this.figures.scheduler, "data-level", answers === false ? "bad" : null);
    say(this.figures.bus, latency(agent?.vitals.bus_latency ?? bus?.roundTrip));
    say(this.figures.backlog, agent ? bytes(agent.vitals.backlog ?? 0) : "–");
    const jobs = agent?.vitals.jobs ?? {};
    say(this.figures.jobs, agent ? count(Object.values(jobs).reduce((sum, some) => sum + some, 0)) : "–");
    this.#showBudgets(agent?.vitals.budgets ?? []);
    this.tick();
  }

  #showBudgets(budgets) {
    const meters = budgets.map((budget) => {
      if (!this.meters.has(budget.name)) this.meters.set(budget.name, new BudgetMeter());
      const meter = this.meters.get(budget.name);
      meter.show(budget);
      return meter.element;
    });
    arrange(this.budgets, meters);
    this.budgets.hidden = meters.length === 0;
  }

  /** Once a second: ages go on while nothing comes. */
  tick() {
    const { store, agent } = this;
    const lost = store.busOf(this.site)?.reachable === false || !store.live;
    const condition = lost && agent ? "unreachable" : conditionOf(agent, store.now());
    if (this.element.dataset.condition !== condition) {
      this.element.dataset.condition = condition;
      requestAnimationFrame(() => this.line.recolour());
    }
    this.line.frozen = lost ? (this.line.frozen ?? store.now()) : null;
    say(this.word, store.live ? WORDS[condition] : "unknown");
    say(this.ago, agent ? age(store.now() - agent.at) + (store.now() - agent.at < 1 ? "" : " ago") : "");
    const label = agent
      ? `Heartbeat of ${this.site}: ${WORDS[condition]}, every ${agent.interval} s`
      : `No heartbeat of ${this.site} yet`;
    attribute(this.line.canvas, "aria-label", label);
  }
}

export class Sites {
  constructor(store, open) {
    this.store = store;
    this.open = open;
    this.cards = new Map();
    this.place = byId("sites");
    this.nothing = h("p", { class: "no-sites card" }, "No site yet. Make one with ", h("code", {}, "slurmbus up SITE"), ", or run a job with ", h("code", {}, "slurmbus submit --local -- hostname"), ".");
    store.listen((kinds, touched) => {
      const all = kinds.has("sites") || kinds.has("live") || [...touched].some((site) => !this.cards.has(site));
      if (all) this.show();
      else touched.forEach((site) => this.cards.get(site).show());
    });
    setInterval(() => this.cards.forEach((card) => card.tick()), 1000);
  }

  show() {
    const names = this.store.sites();
    for (const [name, card] of this.cards) {
      if (names.includes(name)) continue;
      card.remove();
      this.cards.delete(name);
    }
    for (const name of names) {
      if (!this.cards.has(name)) this.cards.set(name, new SiteCard(this.store, name, this.open));
      this.cards.get(name).show();
    }
    const cards = names.map((name) => this.cards.get(name).element);
    arrange(this.place, cards.length || !this.store.hello ? cards : [this.nothing]);
    this.place.classList.toggle("many", names.length >= MANY);
    say(byId("site-count"), names.length ? count(names.length) : "");
  }
}
