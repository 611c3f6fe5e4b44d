// One job in the panel: its facts, its way from request to result, its figures and the end of its output.

import { h, say } from "./dom.js";
import { bytes, duration, moment } from "./format.js";
import { Log } from "./log.js";
import { kindOf, stateWord } from "./states.js";
import { timeline } from "./timeline.js";

export class JobDetails {
  /**
   * @param id the job: site/key/task
   * @param actions makes the buttons for what may be done with a job
   */
  constructor(store, feed, id, actions) {
    const [site, key, task] = id.split("/");
    Object.assign(this, { store, feed, id, site, key, actions });
    this.title = store.jobs.get(id)?.name ?? key;
    this.log = new Log();
    this.body = h("div", { class: "job-body" }, h("p", { class: "soft" }, "Reading…"));
    this.problem = h("p", { class: "saying", "data-level": "bad", role: "alert", hidden: "" });
    this.elements = [this.problem, this.body, this.log.element];
    feed.wish("watch", { type: "watch", site, key, task: Number(task) });
  }

  close() {
    this.feed.wish("watch", null);
    this.feed.send({ type: "unwatch" });
  }

  /** The connection is another one: everything is told again from the beginning. */
  restart() {
    this.log.clear();
  }

  take(message) {
    if (message.type === "record" || message.type === "finished") {
      this.problem.hidden = true;
      this.record = message.record;
      this.show();
      if (message.type === "finished") this.log.ended();
    } else if (message.type === "output") this.log.add(message.stream, message.text);
    else if (message.type === "gap") this.log.gap(message);
    else if (message.type === "left-out") this.log.leftOut(message);
    else if (message.type === "job-problem") {
      this.problem.hidden = false;
      say(this.problem, [message.message, message.hint].filter(Boolean).join(" · "));
    }
  }

  tick() {
    if (this.record && !this.record.summary.final) this.show();
  }

  show() {
    const { record } = this;
    const { summary } = record;
    const now = this.store.now();
    const state = h("span", { class: "state", "data-kind": kindOf(record.state) }, stateWord(summary));
    const again = record.requeues?.at(-1);
    const refused = !summary.final && record.refused?.at >= (again?.at ?? 0) ? record.refused : null;
    const saying = [record.hint, summary.reason].filter(Boolean).join(" · ");
    const words = [
      h("p", { class: "sub" }, state, summary.slurmId && h("span", {}, `${record.scheduler === "local" ? "job" : "Slurm"} ${summary.slurmId}`), h("span", {}, record.site), h("span", { class: "mono" }, record.key)),
      saying && h("p", { class: "saying", "data-level": kindOf(record.state) === "failed" ? "bad" : null }, saying),
      record.cancel && h("p", { class: "saying" }, `${record.cancel.submitter} asked for its end ${moment(record.cancel.at)}${record.cancel.reason ? `: ${record.cancel.reason}` : ""}`),
      again && h("p", { class: "saying" }, `${again.submitter} asked for another start ${moment(again.at)}${again.reason ? `: ${again.reason}` : ""}${again.outcome === "unknown" ? ` · it isn't known whether Slurm did it: ${again.message}` : ""}`),
      refused && h("p", { class: "saying", "data-level": "bad" }, `Refused: ${[refused.message, refused.hint].filter(Boolean).join(" · ")}`),
    ];
    const parts = [
      h("div", { class: "words" }, ...words.filter(Boolean)),
      this.actions(summary) ?? h("p", { class: "actions", hidden: "" }),
      h("section", {}, h("h3", {}, "From request to result"), timeline(record, now)),
      h("section", {}, h("h3", {}, "Facts"), this.#facts(record)),
    ];
    this.#replace(parts);
  }

  /** Replace what has changed only, so that what a person has selected or focused stays; but for buttons that have. */
  #replace(parts) {
    parts.forEach((part, index) => {
      const there = this.body.children[index];
      if (!there) this.body.append(part);
      else if (!there.isEqualNode(part) && (part.matches(".actions") || !there.contains(document.activeElement))) there.replaceWith(part);
    });
    while (this.body.children.length > parts.length) this.body.lastElementChild.remove();
  }

  #facts(record) {
    const { options = {}, accounting, summary } = record;
    const start = record.starts?.at(-1);
    const live = start?.live;
    const usage = start?.usage;
    const cpu = accounting ? accounting.cpu_seconds / (accounting.elapsed * accounting.alloc_cpus || 1) : null;
    const facts = {
      submitted: `${moment(record.created_at)} by ${record.submitter}`,
      partition: summary.partition,
      account: options.account,
      QOS: options.qos,
      nodes: record.node_list,
      CPUs: record.alloc_cpus ?? accounting?.alloc_cpus,
      "expected to start": record.state === "PENDING" && record.estimated_start ? moment(record.estimated_start) : null,
      "CPU now": live && !summary.final ? `${Math.round(live.cpu_percent)} % of ${live.cpus}` : null,
      "memory now": live && !summary.final ? `${bytes(live.rss)}${live.memory_limit ? ` of ${bytes(live.memory_limit)}` : ""}` : null,
      "CPU time": accounting ? `${duration(accounting.cpu_seconds)} · ${Math.round(100 * cpu)} %` : usage ? duration(usage.cpu_seconds) : null,
      "most memory": bytesOf(Math.max(accounting?.max_rss ?? 0, usage?.max_rss ?? 0, live?.peak_rss ?? 0)),
      "exit code": record.exit_code !== undefined && record.exit_code !== null ? `${record.exit_code}${record.signal ? ` (signal ${record.signal})` : ""}` : null,
      scheduler: record.scheduler,
      environment: record.environment?.slice(0, 12),
      "came back": record.outputs?.length ? record.outputs.map((file) => `${file.path} (${bytes(file.size)})`).join(", ") : null,
      folder: record.work_dir,
      ...start?.facts,
      ...record.labels,
    };
    const shown = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "");
    return h("dl", { class: "facts" }, ...shown.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))));
  }
}

const bytesOf = (value) => (value ? bytes(value) : null);
