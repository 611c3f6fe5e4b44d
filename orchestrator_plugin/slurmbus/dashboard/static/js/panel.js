// The panel beside the page (over it on a phone): one job or one site. The address says which, so that it can be kept.

import { attribute, byId, h } from "./dom.js";
import { JobDetails } from "./job.js";
import { SiteDetails } from "./site.js";

export class Panel {
  constructor(store, feed, jobs, actions) {
    Object.assign(this, { store, feed, jobs, actions, shown: null, from: null });
    this.place = byId("panel");
    this.columns = document.querySelector(".columns");
    this.place.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
    addEventListener("hashchange", () => this.follow());
    store.listen((kinds) => kinds.has("session") && this.shown?.restart());
    setInterval(() => this.shown?.tick(), 1000);
    this.follow();
  }

  openJob(id) {
    location.hash = `job/${id}`;
  }

  openSite(site) {
    location.hash = `site/${site}`;
  }

  close() {
    history.pushState(null, "", location.pathname);
    this.follow();
  }

  take(message) {
    this.shown?.take(message);
  }

  /** Show what the address says. */
  follow() {
    const [, kind, id] = /^#(job|site)\/(.+)$/.exec(decodeURIComponent(location.hash)) ?? [];
    const focused = document.activeElement;
    this.shown?.close();
    this.shown = null;
    if (kind === "job" && id.split("/").length === 3) this.shown = new JobDetails(this.store, this.feed, id, this.actions);
    else if (kind === "site") this.shown = new SiteDetails(this.store, this.feed, id);
    this.jobs.choose(kind === "job" ? id : null);
    this.columns.classList.toggle("open", this.shown !== null);
    if (this.shown === null) this.#hide();
    else this.#show(focused);
  }

  #show(focused) {
    if (this.place.hidden) this.from = focused;
    const close = h("button", { type: "button", class: "quiet", "aria-label": "Close the details", onclick: () => this.close() }, "Close");
    this.place.replaceChildren(h("header", {}, h("h2", {}, this.shown.title), close), ...this.shown.elements);
    attribute(this.place, "aria-label", `Details of ${this.shown.title}`);
    this.place.hidden = false;
    this.place.scrollTop = 0;
    this.place.focus({ preventScroll: true });
  }

  #hide() {
    if (this.place.hidden) return;
    this.place.hidden = true;
    this.place.replaceChildren();
    if (this.from?.isConnected && this.from !== document.body) this.from.focus({ preventScroll: true });
    this.from = null;
  }
}
