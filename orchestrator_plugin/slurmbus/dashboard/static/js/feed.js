// The one WebSocket to the server: everything that the page shows is pushed over it.

const SILENCE = 4000; // the server says something at least once a second
const CONNECTING = 20000; // a server or a browser that is busy may take its time
const DELAYS = [250, 500, 1000, 2000, 4000];
const NOT_SIGNED_IN = 4401;

export class Feed {
  /**
   * @param store what is told of changes
   * @param onmessage called with messages that the store doesn't take
   */
  constructor(store, onmessage) {
    this.store = store;
    this.onmessage = onmessage;
    this.attempt = 0;
    this.wishes = new Map();
  }

  /** Connect, or connect again: who is signed in is known by then. */
  connect() {
    this.checking ??= setInterval(() => this.#check(), 1000);
    clearTimeout(this.retry);
    this.#drop();
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/feed`);
    this.socket = socket;
    this.opened = Date.now();
    socket.onopen = () => (this.opened = Date.now());
    socket.onmessage = (event) => this.#take(JSON.parse(event.data));
    socket.onclose = (event) => this.#lost(event.code);
  }

  /** Ask for something, and again after the connection was made anew; null stops asking. */
  wish(kind, message) {
    if (message === null) this.wishes.delete(kind);
    else this.wishes.set(kind, message);
    if (message !== null) this.send(message);
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  #take(message) {
    this.store.heardAt = Date.now();
    if (message.type === "hello") {
      this.attempt = 0;
      this.store.hello = message;
      this.store.changed("session");
      this.wishes.forEach((wish) => this.send(wish));
    } else if (message.type === "changes") {
      this.store.apply(message);
    } else {
      this.onmessage(message);
    }
    this.#say(true);
  }

  #check() {
    const silence = Date.now() - Math.max(this.store.heardAt, this.opened);
    const patience = { [WebSocket.CONNECTING]: CONNECTING, [WebSocket.OPEN]: SILENCE }[this.socket.readyState];
    if (silence > patience) this.connect(); // frozen: what comes too late isn't waited for
    if (Date.now() - this.store.heardAt > SILENCE / 2) this.#say(false);
  }

  #drop() {
    if (!this.socket) return;
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
  }

  #lost(code) {
    if (code === NOT_SIGNED_IN && this.store.hello) location.reload(); // nothing that was shown stays
    this.#say(false, code === NOT_SIGNED_IN);
    if (code === NOT_SIGNED_IN) return; // signing in connects again
    this.retry = setTimeout(() => this.connect(), DELAYS[Math.min(this.attempt, DELAYS.length - 1)]);
    this.attempt += 1;
  }

  #say(live, locked = false) {
    if (this.store.live === live && this.store.locked === locked) return;
    this.store.live = live;
    this.store.locked = locked;
    this.store.changed("live");
  }
}
