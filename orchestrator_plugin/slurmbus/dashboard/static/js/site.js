// One site in the panel: its agents, what they use, and its partitions.

import { BudgetMeter } from "./budget.js";
import { arrange, h, say } from "./dom.js";
import { age, bytes, count, duration, latency, moment } from "./format.js";
import { conditionOf } from "./store.js";

export class SiteDetails {
  constructor(store, feed, site) {
    Object.assign(this, { store, feed, site, title: site });
    this.bus = h("p", { class: "sub" });
    this.agents = h("div", { class: "agents" });
    this.partitions = h("div", {}, h("p", { class: "soft" }, "Asking the agent…"));
    this.elements = [
      this.bus,
      h("section", {}, h("h3", {}, "Nodes and partitions"), this.partitions),
      h("section", {}, h("h3", {}, "Agents"), this.agents),
    ];
    feed.wish("partitions", { type: "partitions", site });
    this.show();
  }

  close() {
    this.feed.wish("partitions", null);
  }

  restart() {}

  take(message) {
    if (message.type !== "partitions" || message.site !== this.site) return;
    this.partitions.replaceChildren(message.problem ? h("p", { class: "soft" }, message.problem) : partitionTable(message.partitions));
  }

  tick() {
    this.show();
  }

  show() {
    const bus = this.store.busOf(this.site);
    say(this.bus, bus ? `bus: ${bus.id} · ${bus.reachable ? `round trip ${latency(bus.roundTrip)}` : bus.problem || "not reachable"}` : "");
    const agents = this.store.agentsOf(this.site);
    const elements = agents.map((agent) => this.#agent(agent));
    const there = [...this.agents.children];
    elements.forEach((element, index) => {
      if (there[index]?.isEqualNode(element)) elements[index] = there[index];
    });
    arrange(this.agents, elements.length ? elements : [h("p", { class: "soft" }, "None has been heard of yet.")]);
  }

  #agent(agent) {
    const now = this.store.now();
    const { vitals, scheduler } = agent;
    const calls = Object.values(scheduler.calls ?? {}).reduce((sum, some) => sum + some, 0);
    const facts = {
      heartbeat: `${age(now - agent.at)}${now - agent.at < 1 ? "" : " ago"}, every ${agent.interval} s`,
      "running for": duration(now - agent.startedAt),
      "started": moment(agent.startedAt, now),
      version: agent.version,
      process: `${agent.pid} of ${agent.user}`,
      "lease epoch": count(agent.epoch),
      scheduler: `${scheduler.kind}${scheduler.version ? ` ${scheduler.version}` : ""}`,
      controller: scheduler.asked === false ? "not asked yet" : scheduler.responding ? `answers${scheduler.latency ? ` in ${latency(scheduler.latency)}` : ""}` : `silent for ${duration(now - scheduler.since)}`,
      "controller calls": count(calls),
      "bus round trip": latency(vitals.bus_latency),
      backlog: bytes(vitals.backlog ?? 0),
      runners: vitals.link_connections ? count(vitals.link_connections) : null,
      "CPU time": duration(vitals.cpu_seconds ?? 0),
      memory: `${bytes(vitals.rss ?? 0)}${vitals.scheduler_rss ? ` + ${bytes(vitals.scheduler_rss)}` : ""}`,
      "open files": count(vitals.open_files ?? 0),
      "from and to the bus": vitals.bus_bytes_in ? `${bytes(vitals.bus_bytes_in)} · ${bytes(vitals.bus_bytes_out)}` : null,
      authority: agent.authorityUntil ? (agent.authorityUntil > now ? `for ${duration(agent.authorityUntil - now)}` : "expired") : null,
      handovers: vitals.handovers || null,
      "slowed down": vitals.slowed || null,
      alarms: agent.alarms.join(" · ") || null,
    };
    const shown = Object.entries(facts).filter(([, value]) => value !== null);
    const budgets = (vitals.budgets ?? []).map((budget) => {
      const meter = new BudgetMeter({ long: true });
      meter.show(budget);
      return meter.element;
    });
    return h(
      "article",
      { class: "agent", "data-condition": conditionOf(agent, now) },
      h("header", {}, h("strong", {}, agent.host), h("span", { class: `role${agent.leader ? " leader" : ""}` }, agent.released ? "led last" : agent.leader ? "leader" : "standby"), h("span", { class: "condition" }, h("b", {}, conditionOf(agent, now)))),
      budgets.length ? h("div", { class: "budgets" }, ...budgets) : null,
      h("dl", { class: "facts" }, ...shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))),
    );
  }
}

function partitionTable(partitions) {
  if (partitions.length === 0) return h("p", { class: "soft" }, "The site has none.");
  const head = ["partition", "state", "nodes", "CPUs", "longest"];
  const nodes = (one) => {
    const states = Object.entries(one.node_states ?? {}).map(([state, some]) => `${count(some)} ${state.toLowerCase()}`);
    return states.length ? `${count(one.nodes)}: ${states.join(", ")}` : count(one.nodes);
  };
  const row = (one) => [
    `${one.name}${one.default ? " (default)" : ""}`,
    one.state.toLowerCase(),
    nodes(one),
    count(one.cpus),
    one.max_time_minutes ? duration(60 * one.max_time_minutes) : "no limit",
  ];
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ...head.map((title, index) => h("th", { scope: "col", class: index > 1 ? "figure" : null }, title)))),
    h("tbody", {}, ...partitions.map((one) => h("tr", {}, ...row(one).map((text, index) => h("td", { class: index > 1 ? "figure" : null }, text))))),
  );
}
