// The one WebSocket to the server: everything that the page shows is pushed over it.

const SILENCE = 4000; // the server says something at least once a second
const CONNECTING = 20000; // a server or a browser that is busy may take its time
const CHECK = 1000;
const STEADY = 60; // messages after which a connection is a good one
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
    this.patience = SILENCE;
    this.wishes = new Map();
  }

  /** Connect, or connect again: who is signed in is known by then. */
  connect() {
    this.checking ??= setInterval(() => this.#check(), CHECK);
    clearTimeout(this.retry);
    this.#drop();
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/feed`);
    this.socket = socket;
    this.silence = 0;
    this.heard = 0;
    socket.onopen = () => (this.silence = 0);
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
    this.silence = 0;
    this.heard += 1;
    if (this.heard === STEADY) this.patience = SILENCE;
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
    // When this page slept or got no CPU, what came meanwhile waits behind this call: that time isn't the server's silence.
    const now = Date.now();
    this.silence += Math.min(now - (this.checkedAt ?? now), 1.5 * CHECK);
    this.checkedAt = now;
    const pending = this.socket.readyState === WebSocket.CONNECTING || this.socket.readyState === WebSocket.OPEN;
    if (pending && this.silence > (this.heard ? this.patience : CONNECTING)) {
      // A server that is slow, not gone, has more work by each new connection: it would never get through.
      this.patience = Math.min(2 * this.patience, CONNECTING);
      this.connect();
    }
    if (now - this.store.heardAt > SILENCE / 2) this.#say(false, this.store.locked);
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
