// Signing in, and what may be done then.

import { announce, byId, h, say } from "./dom.js";

const RETRIES = 5;
const RETRY = 500;

/** Give the token that the address brings, and leave it neither there nor in the history. */
function takeToken() {
  const [, token] = /^#token=(.+)$/.exec(location.hash) ?? [];
  if (token) history.replaceState(null, "", location.pathname);
  return token;
}

export class Session {
  constructor(store, feed) {
    this.store = store;
    this.feed = feed;
    this.dialog = byId("sign-in");
    this.button = byId("session");
    this.button.addEventListener("click", () => (this.signedIn ? this.#signOut() : this.ask()));
    byId("sign-in-close").addEventListener("click", () => this.dialog.close());
    byId("sign-in-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#signIn(byId("token").value.trim().replace(/^.*#token=/, ""));
    });
    addEventListener("hashchange", () => {
      const token = takeToken(); // a link that was pasted into this very tab loads nothing anew
      if (token) this.#signIn(token);
    });
    store.listen((kinds) => (kinds.has("session") || kinds.has("live")) && this.#show());
  }

  /** Connect; before that sign in, when the address brings the token. */
  async start() {
    const token = takeToken();
    if (!token || !(await this.#signIn(token))) this.feed.connect(); // a cookie of an earlier link may do
  }

  get signedIn() {
    return Boolean(this.store.hello?.forgery);
  }

  ask() {
    say(byId("sign-in-problem"), "");
    if (!this.dialog.open) this.dialog.showModal();
  }

  async #signIn(token) {
    // A link works once: when the answer was lost, the server knows by this word that it is the same attempt again.
    const attempt = [...crypto.getRandomValues(new Uint32Array(4))].join("-");
    let answer = await post("/sign-in", { token, attempt });
    for (let again = 0; answer.lost && again < RETRIES; again += 1) {
      await new Promise((resolve) => setTimeout(resolve, RETRY));
      answer = await post("/sign-in", { token, attempt });
    }
    const { ok, problem } = answer;
    byId("token").value = "";
    if (ok) {
      this.dialog.close();
      this.feed.connect(); // the server sees who we are when we connect
      announce("Signed in");
    } else {
      this.ask();
      say(byId("sign-in-problem"), problem);
    }
    return ok;
  }

  async #signOut() {
    await post("/sign-out", {}, this.store.hello.forgery);
    this.feed.connect(); // where looking needs a session, the answer locks this page
    announce("Signed out");
  }

  #show() {
    say(this.button, this.signedIn ? "Sign out" : "Sign in");
    if (this.store.locked && !this.dialog.open) this.ask();
    if (this.signedIn) this.dialog.close(); // by the cookie, though the link was used before
  }

  /** The buttons for what may be done with a job; null when nothing may. */
  actions(job) {
    if (!this.signedIn || job.final) return null;
    const cancel = h("button", { type: "button", class: "danger" }, "Cancel job…");
    cancel.addEventListener("click", () => this.#cancel(job));
    cancel.disabled = job.cancelling;
    const requeue = h("button", { type: "button", title: job.requeueable ? null : "Only jobs that were submitted with requeue=True" }, "Requeue job…");
    requeue.addEventListener("click", () => this.#requeue(job));
    requeue.disabled = !job.requeueable || job.state !== "RUNNING" || job.cancelling || job.requeueing;
    return h("p", { class: "actions" }, requeue, cancel);
  }

  async #requeue(job) {
    const sure = await confirmed(`Requeue ${job.name}?`, `The job ${job.slurmId || job.key} on ${job.site} goes back to the queue and starts again from its beginning. What it has computed and not saved is lost.`, "Requeue the job");
    if (!sure) return;
    const { ok, problem } = await post("/requeue", { site: job.site, key: job.key, task: job.task }, this.store.hello.forgery);
    announce(ok ? `Asked for another start of ${job.name}` : problem);
    if (!ok) await confirmed("It wasn't requeued", problem, "OK");
  }

  async #cancel(job) {
    const sure = await confirmed(`Cancel ${job.name}?`, `The job ${job.slurmId || job.key} on ${job.site} is ended. What it has computed and not saved is lost.`, "Cancel the job");
    if (!sure) return;
    const { ok, problem } = await post("/cancel", { site: job.site, key: job.key, task: job.task }, this.store.hello.forgery);
    announce(ok ? `Asked for the end of ${job.name}` : problem);
    if (!ok) await confirmed("It wasn't cancelled", problem, "OK");
  }
}

/** Ask a person; true when they are sure. */
function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  say(byId("confirm-title"), title);
  say(byId("confirm-text"), text);
  say(byId("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function post(path, body, forgery = "") {
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Slurmbus-Page": forgery },
      body: JSON.stringify(body),
    });
    const told = answer.headers.get("Content-Type")?.includes("json") ? await answer.json() : { problem: await answer.text() };
    return { ok: answer.ok, problem: [told.problem, told.hint].filter(Boolean).join(" · ") };
  } catch {
    return { ok: false, lost: true, problem: "The dashboard's server doesn't answer." };
  }
}
