// Jobs by state over time: those that wait and run as areas, those that ended as bars below.

import uPlot from "/static/vendor/uplot/uPlot.esm.js";
import { arrange, attribute, byId, h, say } from "./dom.js";
import { count, moment } from "./format.js";
import { ALL_KINDS, kindOf } from "./states.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const CLOCK = (_, times) => times.map((at) => moment(at).slice(0, -3));
const WHOLE = (_, values) => values.map((value) => (Number.isInteger(value) ? count(value) : ""));

export class HistoryView {
  constructor(store, feed) {
    this.store = store;
    this.feed = feed;
    this.place = byId("charts");
    this.legend = new Map(
      ALL_KINDS.map((kind) => {
        const figure = h("b");
        return [kind, { figure, element: h("li", { "data-kind": kind }, h("span", { class: "swatch" }), kind, " ", figure) }];
      }),
    );
    arrange(byId("legend"), [...this.legend.values()].map((entry) => entry.element));
    for (const span of ["hour", "day"]) byId(`span-${span}`).addEventListener("click", () => this.#span(span));
    store.listen((kinds) => {
      if (kinds.has("history")) this.show();
      if (kinds.has("jobs")) this.#showLegend();
    });
    new ResizeObserver(() => this.#resize()).observe(this.place);
  }

  /** Draw again with the theme's colours. */
  recolour() {
    this.charts?.forEach((chart) => chart.destroy());
    this.charts = null;
    if (this.store.history) this.show();
  }

  show() {
    const { end, step, waiting, running, completed, failed, cancelled } = this.store.history;
    const times = waiting.map((_, index) => end - step * (waiting.length - 1 - index));
    const add = (...lines) => lines[0].map((_, index) => lines.reduce((sum, line) => sum + line[index], 0));
    const open = [times, add(running, waiting), running];
    const over = [times, add(failed, cancelled, completed), add(failed, cancelled), failed];
    if (!this.charts) this.charts = [this.#areas(open), this.#bars(over)];
    else {
      this.charts[0].setData(open);
      this.charts[1].setData(over);
    }
    const sum = (line) => count(line.reduce((total, value) => total + value, 0));
    attribute(
      this.place,
      "aria-label",
      `Jobs over the last ${this.store.history.span}: now ${waiting.at(-1)} waiting and ${running.at(-1)} running; ` +
        `${sum(completed)} completed, ${sum(failed)} failed, ${sum(cancelled)} cancelled; at most ${Math.max(...running)} ran at once`,
    );
  }

  #showLegend() {
    const counts = Object.fromEntries(ALL_KINDS.map((kind) => [kind, 0]));
    for (const job of this.store.jobs.values()) counts[kindOf(job.state)] += 1;
    for (const [kind, { figure }] of this.legend) say(figure, count(counts[kind]));
  }

  #span(span) {
    for (const one of ["hour", "day"]) attribute(byId(`span-${one}`), "aria-pressed", one === span);
    this.feed.wish("history", { type: "history", span });
  }

  #areas(data) {
    const stepped = uPlot.paths.stepped({ align: -1 });
    const line = (kind, label) => ({
      label, stroke: colour(kind), fill: colour(`${kind}-fill`), width: 1, paths: stepped, points: { show: false },
    });
    return this.#chart(158, data, [line("waiting", "waiting"), line("running", "running")], { bands: [{ series: [1, 2] }] });
  }

  #bars(data) {
    const bars = uPlot.paths.bars({ size: [0.8, 14], align: -1 });
    const bar = (kind) => ({ label: kind, fill: colour(`${kind}-fill`), width: 0, paths: bars, points: { show: false } });
    return this.#chart(66, data, [bar("completed"), bar("cancelled"), bar("failed")], {});
  }

  #chart(height, data, series, more) {
    const axis = { stroke: colour("soft"), font: `11px ${getComputedStyle(document.body).fontFamily}`, ticks: { show: false } };
    const grid = { stroke: colour("line"), width: 1 };
    const options = {
      width: this.#width(),
      height: height,
      padding: [6, 4, height > 100 ? 0 : 6, 0],
      cursor: { sync: { key: "jobs" }, drag: { x: false, y: false }, points: { show: false }, y: false },
      legend: { show: false },
      scales: { y: { range: (_, __, most) => [0, Math.max(4, most * 1.08)] } },
      axes: [
        { ...axis, grid: { show: false }, size: height > 100 ? 22 : 0, values: height > 100 ? CLOCK : () => [], space: 80 },
        { ...axis, grid, size: 40, splits: height > 100 ? undefined : (_, __, low, high) => [low, Math.round(high / 2)], values: WHOLE, space: 34 },
      ],
      series: [{}, ...series],
      hooks: { setCursor: [(chart) => this.#tip(chart)] },
      ...more,
    };
    return new uPlot(options, data, this.place);
  }

  #tip(chart) {
    this.tip ??= h("div", { class: "chart-tip", "aria-hidden": "true" });
    const { idx, left } = chart.cursor;
    if (idx === null || idx === undefined || left < 0 || !chart.over.matches(":hover")) {
      if (chart.over.contains(this.tip)) this.tip.remove();
      return;
    }
    const at = this.store.history;
    const lines = [moment(at.end - at.step * (at.waiting.length - 1 - idx)), `${at.running[idx]} running`, `${at.waiting[idx]} waiting`];
    for (const kind of ["completed", "failed", "cancelled"]) if (at[kind][idx]) lines.push(`${at[kind][idx]} ${kind}`);
    say(this.tip, lines.join("\n"));
    chart.over.append(this.tip);
    this.tip.style.left = `${Math.min(left + 12, chart.over.clientWidth - 110)}px`;
    this.tip.style.top = "2px";
  }

  #width() {
    return Math.max(200, this.place.clientWidth - 24);
  }

  #resize() {
    this.charts?.forEach((chart) => {
      if (chart.width !== this.#width()) chart.setSize({ width: this.#width(), height: chart.height });
    });
  }
}
