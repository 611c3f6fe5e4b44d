// What the page knows: what the server has told of buses, agents and jobs. Views are told once per frame what changed.

export class Store {
  constructor() {
    this.buses = new Map();
    this.agents = new Map();
    this.jobs = new Map();
    this.attention = [];
    this.history = null;
    this.hello = null;
    this.heardAt = 0;
    this.live = false;
    this.ahead = 0;
    this.partitions = new Map();
    this.listeners = [];
    this.pending = new Set();
    this.touched = new Set();
  }

  /**
   * Call `listener` with the set of what has changed ("sites", "agents", "jobs", "attention", "history", "live", …)
   * and the names of the sites whose agents have.
   */
  listen(listener) {
    this.listeners.push(listener);
  }

  /** Now, by the server's clock. */
  now() {
    return Date.now() / 1000 + this.ahead;
  }

  /** Take what the server tells. */
  apply(message) {
    this.ahead = message.now - Date.now() / 1000;
    if (message.whole) {
      this.buses.clear();
      this.agents.clear();
      this.jobs.clear();
      this.changed("sites", "jobs");
    }
    for (const bus of message.buses ?? []) this.#put(this.buses, bus, "sites");
    for (const agent of message.agents ?? []) this.#putAgent(agent);
    for (const job of message.jobs ?? []) this.#put(this.jobs, job, "jobs");
    for (const id of message.gone ?? []) {
      const gone = [this.buses, this.agents, this.jobs].map((map) => map.delete(id)).some(Boolean);
      if (gone) this.changed("sites", "jobs");
    }
    if (message.attention) {
      this.attention = message.attention;
      this.changed("attention");
    }
    if (message.history) {
      this.history = message.history;
      this.changed("history");
    }
  }

  #put(map, value, kind) {
    map.set(value.id, value);
    this.changed(kind);
  }

  #putAgent(agent) {
    const known = this.agents.get(agent.id);
    if (known && agent.beats.length === 1) {
      const last = known.beats.at(-1);
      agent.beats = last && last[0] >= agent.beats[0][0] ? known.beats : [...known.beats, agent.beats[0]].slice(-120);
    }
    this.#put(this.agents, agent, "agents");
    this.touched.add(agent.site);
  }

  changed(...kinds) {
    if (this.pending.size === 0) queueMicrotask(() => this.#tell());
    for (const kind of kinds) this.pending.add(kind);
  }

  #tell() {
    const kinds = this.pending;
    const sites = this.touched;
    this.pending = new Set();
    this.touched = new Set();
    for (const listener of this.listeners) listener(kinds, sites);
  }

  /** The names of all sites. */
  sites() {
    const names = new Set();
    for (const bus of this.buses.values()) bus.sites.forEach((site) => names.add(site));
    for (const agent of this.agents.values()) names.add(agent.site);
    for (const job of this.jobs.values()) names.add(job.site);
    return [...names].sort();
  }

  /** A site's agents, the leader first. */
  agentsOf(site) {
    return [...this.agents.values()]
      .filter((agent) => agent.site === site)
      .sort((a, b) => b.leader - a.leader || b.at - a.at);
  }

  /** The bus on which a site is. */
  busOf(site) {
    const expected = [...this.buses.values()].find((bus) => bus.sites.includes(site));
    return expected ?? this.buses.get(this.agentsOf(site)[0]?.bus);
  }
}

/** How an agent is: alive, late, silent or stopped. The server works out the same for what needs attention. */
export function conditionOf(agent, now) {
  if (!agent) return "never";
  if (agent.released) return "stopped";
  const silence = now - agent.at;
  if (silence <= 1.5 * agent.interval + 1) return "alive";
  return silence <= agent.leaseSeconds ? "late" : "silent";
}
