// What an agent has used of a budget, as a thin meter with words.

import { bytes, duration } from "./format.js";
import { attribute, h, say } from "./dom.js";

const TITLES = { "cpu-time": "CPU time", memory: "memory", calls: "calls", "stat-calls": "file looks" };

export const budgetTitle = (budget) => TITLES[budget.name] ?? budget.name.replaceAll("-", " ");

export function amount(value, unit) {
  if (unit === "s") return duration(value);
  if (unit === "B") return bytes(value);
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${unit}`;
}

/** `12.1 s of 72.0 s in 1 h 00`. */
export function budgetWords(budget) {
  const over = budget.window_seconds ? ` in ${duration(budget.window_seconds)}` : "";
  return `${amount(budget.used ?? 0, budget.unit)} of ${amount(budget.limit, budget.unit)}${over}`;
}

export class BudgetMeter {
  constructor({ long = false } = {}) {
    this.long = long;
    this.title = h("span");
    this.words = h("span");
    this.fill = h("i");
    this.meter = h("div", { class: "meter", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100 }, this.fill);
    this.element = h("div", { class: "budget" }, this.title, long ? this.words : null, this.meter);
  }

  show(budget) {
    const share = budget.limit > 0 ? budget.used / budget.limit : 0;
    const percent = Math.round(100 * share);
    say(this.title, this.long ? budgetTitle(budget) : `${budgetTitle(budget)} ${percent} %`);
    say(this.words, budgetWords(budget));
    this.element.title = budgetWords(budget);
    this.fill.style.width = `${Math.min(100, Math.max(share > 0 ? 2 : 0, percent))}%`;
    attribute(this.meter, "data-level", share >= 1 ? "bad" : share >= 0.8 ? "warning" : null);
    attribute(this.meter, "aria-valuenow", Math.min(100, percent));
    attribute(this.meter, "aria-valuetext", budgetWords(budget));
    attribute(this.meter, "aria-label", budgetTitle(budget));
  }
}
