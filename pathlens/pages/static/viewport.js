// A part of a larger drawing: moved by dragging, zoomed by wheel, fingers, buttons and keys.

class Viewport {
  /**
   * Content of `width` by `height` units; `most` pixels to a unit at most; with `stretch` both ways have their own scale.
   * `pads` are pixels of the stage on the left, top, right and bottom that show no content.
   */
  constructor(stage, { width, height, most, stretch = false, pads = [0, 0, 0, 0], home, changed, hovered, left, tapped }) {
    Object.assign(this, { stage, size: [width, height], most, stretch, pads, home, changed });
    this.scale = [1, 1];
    this.shift = [0, 0];
    this.pointers = new Map();
    const at = (event) => {
      const frame = stage.getBoundingClientRect();
      return [event.clientX - frame.left, event.clientY - frame.top];
    };
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      stage.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, at(event));
      if (this.pointers.size === 1) [this.began, this.moved] = [at(event), false];
    });
    stage.addEventListener("pointermove", (event) => (this.pointers.has(event.pointerId) ? this.drag(event.pointerId, at(event)) : hovered(...at(event))));
    const lift = (event) => {
      if (this.pointers.delete(event.pointerId) && !this.moved && event.type === "pointerup") tapped(...at(event));
      stage.classList.toggle("dragged", this.pointers.size > 0 && this.moved);
    };
    stage.addEventListener("pointerup", lift);
    stage.addEventListener("pointercancel", lift);
    stage.addEventListener("pointerleave", left);
    stage.addEventListener(
      "wheel",
      (event) => {
        const pixels = event.deltaY * (event.deltaMode ? 33 : 1);
        if (this.zoom(Math.exp(clamp(-pixels, -240, 240) * 0.0022), ...at(event))) event.preventDefault(); // else the page scrolls
      },
      { passive: false },
    );
  }

  get area() {
    const [left, top, right, bottom] = this.pads;
    return [Math.max(1, this.width - left - right), Math.max(1, this.height - top - bottom)];
  }

  resize(width, height) {
    const first = this.width === undefined;
    Object.assign(this, { width, height });
    const whole = [0, 1].map((axis) => this.area[axis] / this.size[axis]);
    this.least = (this.stretch ? whole : whole.map(() => Math.min(...whole))).map((scale) => Math.min(scale, this.most));
    if (first) this.goHome();
    else this.set(this.scale, this.shift);
  }

  goHome() {
    const { scale, shift } = this.home(this);
    this.set(scale, shift);
  }

  /** Everything at once. */
  fit() {
    this.set(this.least, [0, 0]);
  }

  set(scale, shift) {
    this.scale = scale.map((value, axis) => clamp(value, this.least[axis], this.most));
    this.shift = shift.map((value, axis) => {
      const [start, room, length] = [this.pads[axis], this.area[axis], this.scale[axis] * this.size[axis]];
      return length <= room ? start + (room - length) / 2 : clamp(value, start + room - length, start);
    });
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.changed();
    });
  }

  /** Whether there was room to zoom. */
  zoom(factor, x = this.pads[0] + this.area[0] / 2, y = this.pads[1] + this.area[1] / 2) {
    const next = this.scale.map((value, axis) => clamp(value * factor, this.least[axis], this.most));
    if (next.every((value, axis) => Math.abs(value / this.scale[axis] - 1) < 1e-6)) return false;
    this.set(next, this.shift.map((value, axis) => [x, y][axis] - (([x, y][axis] - value) * next[axis]) / this.scale[axis]));
    return true;
  }

  pan(right, down) {
    this.set(this.scale, [this.shift[0] + right, this.shift[1] + down]);
  }

  drag(id, [x, y]) {
    const [fromX, fromY] = this.pointers.get(id);
    const others = [...this.pointers].filter(([other]) => other !== id).map(([, place]) => place);
    if (!this.moved && !others.length && Math.hypot(x - this.began[0], y - this.began[1]) < 4) return;
    this.moved = true;
    this.stage.classList.add("dragged");
    this.pointers.set(id, [x, y]);
    if (others.length === 1) {
      const [[otherX, otherY]] = others;
      const spread = Math.hypot(x - otherX, y - otherY) / Math.max(1, Math.hypot(fromX - otherX, fromY - otherY));
      this.zoom(spread, (x + otherX) / 2, (y + otherY) / 2);
      this.pan((x - fromX) / 2, (y - fromY) / 2);
    } else if (!others.length) this.pan(x - fromX, y - fromY);
  }

  toContent(x, y) {
    return [(x - this.shift[0]) / this.scale[0], (y - this.shift[1]) / this.scale[1]];
  }

  toStage(x, y) {
    return [x * this.scale[0] + this.shift[0], y * this.scale[1] + this.shift[1]];
  }

  /** Move by as little as brings a place well into view. */
  reveal(x, y) {
    const shift = this.toStage(x, y).map((value, axis) => {
      const margin = Math.min(70, this.area[axis] / 3);
      return this.shift[axis] + clamp(value, this.pads[axis] + margin, this.pads[axis] + this.area[axis] - margin) - value;
    });
    if (shift.some((value, axis) => Math.abs(value - this.shift[axis]) > 0.5)) this.set(this.scale, shift);
  }
}
