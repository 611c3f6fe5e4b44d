// Heartbeats as a living line: one pulse for each, where it came in time; the line goes on flat when none comes.

const FRAME = 90; // milliseconds between two pictures: the line moves by less than a pixel
const MANY_FRAME = 300; // when there are many, a picture of each costs as much as all scripts
const MANY = 8;
const CALM_FRAME = 1000; // for those who want less motion
const SHAPE = [[-3, 0], [-1.6, -0.16], [0, 1], [1.5, -0.38], [2.8, 0.1], [4.2, 0]];

const lines = new Set();
const reduced = matchMedia("(prefers-reduced-motion: reduce)");
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.lifeline.visible = entry.isIntersecting;
});
const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) target.lifeline.resize(contentRect.width, contentRect.height);
});

function draw() {
  for (const line of lines) if (line.visible) line.draw();
  // Not with every frame of the screen: this page is left open all day.
  const pause = reduced.matches ? CALM_FRAME : lines.size > MANY ? MANY_FRAME : FRAME;
  setTimeout(() => requestAnimationFrame(draw), pause);
}
requestAnimationFrame(draw);

/** The theme is another one. */
export function recolourLifelines() {
  for (const line of lines) line.recolour();
}

export class Lifeline {
  /** @param now gives the present by the server's clock */
  constructor(now) {
    this.now = now;
    this.visible = true;
    this.beats = [];
    this.interval = 10;
    this.frozen = null;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "lifeline";
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "No heartbeat yet");
    this.canvas.lifeline = this;
    this.context = this.canvas.getContext("2d");
    seen.observe(this.canvas);
    sizes.observe(this.canvas);
    lines.add(this);
  }

  remove() {
    lines.delete(this);
    seen.unobserve(this.canvas);
    sizes.unobserve(this.canvas);
  }

  /** Look at the colour again: asking for it at every picture would cost more than drawing. */
  recolour() {
    this.colour = getComputedStyle(this.canvas).color;
    this.fade = null;
  }

  resize(width, height) {
    this.ratio = Math.min(2, devicePixelRatio || 1);
    Object.assign(this.canvas, { width: Math.round(width * this.ratio), height: Math.round(height * this.ratio) });
    this.fade = null;
  }

  #stroke(right) {
    if (this.fade) return this.fade;
    this.fade = this.context.createLinearGradient(0, 0, right, 0);
    this.fade.addColorStop(0, "transparent");
    this.fade.addColorStop(0.35, this.colour);
    this.fade.addColorStop(1, this.colour);
    return this.fade;
  }

  draw() {
    const { canvas, context, ratio, colour } = this;
    const { width, height } = canvas;
    if (!ratio || !colour || !width || !height) return;
    const present = this.frozen ?? this.now();
    const seconds = this.interval < 5 ? 60 : 150;
    const right = width - 7 * ratio;
    const base = height * 0.68;
    const rise = height * 0.56;
    const x = (at) => right - ((present - at) / seconds) * right;

    context.clearRect(0, 0, width, height);
    context.lineWidth = 1.5 * ratio;
    context.lineJoin = "round";
    context.strokeStyle = this.#stroke(right);
    context.beginPath();
    context.moveTo(0, base);
    for (const [at] of this.beats) {
      const middle = x(at);
      if (middle < -8 * ratio || at > present) continue;
      for (const [offset, level] of SHAPE) {
        const here = middle + offset * ratio;
        if (here <= right) context.lineTo(here, base - level * rise);
      }
    }
    context.lineTo(right, base);
    context.stroke();
    this.#point(context, colour, right, base, ratio, present);
  }

  #point(context, colour, x, y, ratio, present) {
    const since = present - (this.beats.at(-1)?.[0] ?? 0);
    const glow = reduced.matches ? 0 : Math.max(0, 1 - since / 0.9);
    context.fillStyle = colour;
    if (glow > 0) {
      context.globalAlpha = 0.28 * glow;
      context.beginPath();
      context.arc(x, y, (2.5 + 4.5 * glow) * ratio, 0, 2 * Math.PI);
      context.fill();
      context.globalAlpha = 1;
    }
    context.beginPath();
    context.arc(x, y, 2.4 * ratio, 0, 2 * Math.PI);
    context.fill();
  }
}
