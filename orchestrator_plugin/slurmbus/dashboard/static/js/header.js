// The bar on top: how much there is, and whether what is shown is of this moment.

import { attribute, byId, h, say } from "./dom.js";
import { age, count } from "./format.js";
import { kindOf } from "./states.js";

export class Header {
  constructor(store) {
    this.store = store;
    store.listen((kinds) => (kinds.has("jobs") || kinds.has("sites")) && this.#showTotals());
    store.listen((kinds) => (kinds.has("live") || kinds.has("sites")) && this.#showLive());
    setInterval(() => this.#showLive(), 1000);
  }

  #showTotals() {
    const counts = { running: 0, waiting: 0 };
    for (const job of this.store.jobs.values()) {
      const kind = kindOf(job.state);
      if (kind in counts) counts[kind] += 1;
    }
    const sites = this.store.sites().length;
    const figure = (value, word) => [h("b", {}, count(value)), ` ${word}`];
    byId("totals").replaceChildren(...figure(sites, sites === 1 ? "site" : "sites"), " · ", ...figure(counts.running, "running"), " · ", ...figure(counts.waiting, "waiting"));
    document.title = counts.running + counts.waiting ? `${counts.running} running, ${counts.waiting} waiting · Slurmbus` : "Slurmbus";
  }

  #showLive() {
    const { store } = this;
    const lost = [...store.buses.values()].filter((bus) => !bus.reachable);
    const all = lost.length > 0 && lost.length === store.buses.size;
    const fresh = store.live && !all;
    document.body.classList.toggle("stale", !fresh && store.hello !== null);
    const live = byId("live");
    attribute(live, "data-live", store.live ? (lost.length ? "no" : "yes") : store.hello ? "no" : null);
    say(live, store.live ? (lost.length ? "bus lost" : "live") : store.hello ? "not connected" : store.locked ? "signed out" : "connecting…");
    const bar = byId("stale-bar");
    bar.hidden = fresh || store.hello === null;
    const since = store.live ? Math.min(...lost.map((bus) => bus.since)) : store.heardAt / 1000 + store.ahead;
    if (!bar.hidden) {
      this.#showStale(bar, store.live ? "The bus isn't reachable" : "The dashboard's server doesn't answer", store.now() - since);
    }
  }

  #showStale(bar, why, seconds) {
    this.why ??= h("span");
    this.ago ??= h("span", { "aria-hidden": "true" });
    if (this.why.parentNode !== bar) bar.replaceChildren(this.why, " ", this.ago);
    say(this.why, `${why}. What is shown is how things were before.`);
    say(this.ago, `(${age(seconds)} old)`);
  }
}
