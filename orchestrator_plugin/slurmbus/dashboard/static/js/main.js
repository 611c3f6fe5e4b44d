// Wires the page's parts.

import { Attention } from "./attention.js";
import { byId } from "./dom.js";
import { Feed } from "./feed.js";
import { Header } from "./header.js";
import { HistoryView } from "./history.js";
import { Jobs } from "./jobs.js";
import { recolourLifelines } from "./lifeline.js";
import { Panel } from "./panel.js";
import { Session } from "./session.js";
import { Sites } from "./sites.js";
import { Store } from "./store.js";
import { followTheme } from "./theme.js";

const store = new Store();
const feed = new Feed(store, (message) => panel.take(message));
new Header(store);
const history = new HistoryView(store, feed);
followTheme(() => {
  history.recolour();
  recolourLifelines();
});
const session = new Session(store, feed);
const jobs = new Jobs(store, (id) => panel.openJob(id));
const panel = new Panel(store, feed, jobs, (job) => session.actions(job));
new Sites(store, (site) => panel.openSite(site));
new Attention(store, (site) => panel.openSite(site), (job) => panel.openJob(job));

session.start();

addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    byId("search").focus();
  }
});
