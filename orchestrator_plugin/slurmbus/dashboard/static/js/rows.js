// A long list of which only the rows in sight are elements; rows keep their element while they are in sight.

const OVERSCAN = 6;

export class Rows {
  /**
   * @param scroller scrolls
   * @param head stays on top, over the rows
   * @param sizer is as high as all rows together
   * @param make makes a row: {element, show(item)}
   */
  constructor(scroller, head, sizer, make) {
    this.scroller = scroller;
    this.head = head;
    this.sizer = sizer;
    this.make = make;
    this.items = [];
    this.shown = new Map();
    this.spare = [];
    scroller.addEventListener("scroll", () => this.#later(), { passive: true });
    new ResizeObserver(() => this.render()).observe(scroller);
  }

  get rowHeight() {
    return matchMedia("(width < 760px)").matches ? 58 : 34;
  }

  get #sight() {
    return this.scroller.clientHeight - this.head.offsetHeight;
  }

  /** Show these items, in this order; what is at the top of the sight stays there. */
  set(items) {
    const anchor = this.scroller.scrollTop > 0 ? this.#first() : null;
    this.items = items;
    this.index = new Map(items.map((item, index) => [item.id, index]));
    this.sizer.style.height = `${items.length * this.rowHeight}px`;
    const at = anchor ? this.index.get(anchor.id) : undefined;
    if (at !== undefined && at !== anchor.index) this.scroller.scrollTop += (at - anchor.index) * this.rowHeight;
    this.render();
  }

  #first() {
    const index = Math.floor(this.scroller.scrollTop / this.rowHeight);
    return this.items[index] ? { id: this.items[index].id, index } : null;
  }

  #later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.render();
    });
  }

  render() {
    const height = this.rowHeight;
    const from = Math.max(0, Math.floor(this.scroller.scrollTop / height) - OVERSCAN);
    const until = Math.min(this.items.length, Math.ceil((this.scroller.scrollTop + this.#sight) / height) + OVERSCAN);
    const wanted = new Map(this.items.slice(from, until).map((item, offset) => [item.id, from + offset]));
    for (const [id, row] of this.shown) {
      if (wanted.has(id)) continue;
      if (row.element.contains(document.activeElement) && this.index.has(id)) {
        wanted.set(id, this.index.get(id)); // whoever is there by keyboard stays there
        continue;
      }
      row.element.remove();
      this.shown.delete(id);
      this.spare.push(row);
    }
    this.spare.length = Math.min(this.spare.length, 40);
    for (const [id, index] of wanted) {
      let row = this.shown.get(id);
      if (!row) {
        row = this.spare.pop() ?? this.make();
        this.shown.set(id, row);
        this.sizer.append(row.element);
      }
      row.element.style.transform = `translateY(${index * height}px)`;
      row.element.setAttribute("aria-rowindex", index + 2);
      row.show(this.items[index]);
    }
  }

  /** Bring an item into sight and give its element. */
  reveal(index) {
    const height = this.rowHeight;
    const { scrollTop } = this.scroller;
    if (index * height < scrollTop) this.scroller.scrollTop = index * height;
    else if ((index + 1) * height > scrollTop + this.#sight) this.scroller.scrollTop = (index + 1) * height - this.#sight;
    this.render();
    return this.shown.get(this.items[index].id)?.element;
  }
}
