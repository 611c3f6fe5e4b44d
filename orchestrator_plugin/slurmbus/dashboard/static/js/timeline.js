// A job's way from request to result: what took how long.

import { h } from "./dom.js";
import { duration, moment } from "./format.js";

/** The steps of a record: `{what, from, until, kind}` in the order of time. */
export function stepsOf(record) {
  const t = record.timings ?? {};
  const { summary } = record;
  const steps = [];
  const step = (what, from, until, kind = "") => {
    if (from !== undefined && from !== null && until !== undefined && until !== null) steps.push({ what, from, until: Math.max(from, until), kind });
  };
  const accepted = t.accepted ?? record.created_at;
  step("request on its way", t.requested, accepted);
  if (t.environment) step("environment made ready", accepted, t.environment);
  step("staged", t.environment ?? accepted, t.staged);
  step(record.scheduler === "local" ? "submitted" : "submitted to Slurm", t.staged ?? accepted, t.submitted);
  const starts = record.starts ?? [];
  let waitsFrom = t.submitted ?? record.submit_time ?? t.staged ?? accepted;
  for (const start of starts) {
    const began = start.started_at ?? (start.number === 0 ? summary.started : null);
    const many = starts.length > 1 ? ` (start ${start.number + 1})` : "";
    step(`in the queue${many}`, waitsFrom, began, "waiting");
    if (began) {
      const over = start.ended_at ?? (summary.final ? summary.ended : null);
      steps.push({ what: `ran on ${start.node}${many}`, from: began, until: over, kind: over === null ? "now" : "running" });
      waitsFrom = over;
    }
  }
  if (starts.length === 0 && summary.started) step("in the queue", waitsFrom, summary.started, "waiting");
  else if (starts.length === 0 && !summary.final) steps.push({ what: "in the queue", from: waitsFrom, until: null, kind: "waiting" });
  const ended = starts.at(-1)?.ended_at ?? t.ended;
  step("end known to the agent", ended, t.ended);
  step("output complete", t.ended ?? ended, t.drained);
  step("files brought back", t.drained, t.outputs);
  const last = t.outputs ?? t.drained ?? t.ended;
  if (summary.final) step("result", last, Math.max(last ?? 0, record.updated_at));
  return steps;
}

/** The list of steps with their bars. */
export function timeline(record, now) {
  const steps = stepsOf(record);
  if (steps.length === 0) return h("p", { class: "soft" }, "Nothing has happened yet.");
  const begin = Math.min(...steps.map((step) => step.from));
  const end = Math.max(begin + 0.001, ...steps.map((step) => step.until ?? now));
  const place = (at) => (100 * (at - begin)) / (end - begin);
  const bars = steps.map(({ what, from, until, kind }) => {
    const fill = h("i");
    fill.style.left = `${Math.min(99, place(from))}%`;
    fill.style.width = `${Math.max(0, place(until ?? now) - place(from))}%`;
    return h(
      "li",
      { "data-kind": kind, title: `${moment(from)} – ${until === null ? "now" : moment(until)}` },
      h("span", { class: "what" }, what),
      h("span", { class: "took" }, duration((until ?? now) - from)),
      h("span", { class: "bar" }, fill),
    );
  });
  return h("ol", { class: "timeline" }, ...bars);
}
