// The lattice: place of the network across, path length up, the norm of the gradient as colour.

const VIRIDIS = ["440154", "481467", "482576", "453781", "404688", "39568c", "33638d", "2d708e", "287d8e", "238a8d", "1f968b", "20a387", "29af7f", "3cbb75", "55c667", "73d055", "95d840", "b8de29", "dce319", "fde725"]
  .map((text) => [0, 2, 4].map((at) => parseInt(text.slice(at, at + 2), 16)));
const DECADES = 12; // of the colours, as in the figure; smaller norms look like the smallest

function viridis(share) {
  const place = clamp(share, 0, 1) * (VIRIDIS.length - 1);
  const at = Math.min(VIRIDIS.length - 2, Math.floor(place));
  return VIRIDIS[at].map((value, index) => Math.round(value + (place - at) * (VIRIDIS[at + 1][index] - value)));
}

/** All colours, from small to large. */
function ramp() {
  const canvas = make("canvas", { width: 200, height: 1, class: "ramp", "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 200; x += 1) {
    context.fillStyle = `rgb(${viridis(x / 199).join(" ")})`;
    context.fillRect(x, 0, 1, 1);
  }
  return canvas;
}

class Lattice {
  constructor(host, table, { names = {}, stages = [] }) {
    this.host = host;
    this.names = names;
    this.stages = stages;
    this.read(table);
    this.at = null;
    this.stage = make("div", {
      class: "stage",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "heat map",
      "aria-label": "Gradient norm by place and path length. Arrow keys walk: left and right by place, up and down by length.",
    });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.readout = make("p", { class: "readout", role: "status" });
    this.all = make("input", { type: "checkbox" });
    const every = make("label", { class: "entry" }, this.all, " all lengths, also those below the colours");
    const ridge = draw("svg", { width: 24, height: 8, "aria-hidden": "true" }, draw("path", { class: "ridge-under", d: "M1 4H23" }), draw("path", { class: "ridge", d: "M1 4H23" }));
    const largest = make("span", { class: "entry" }, ridge, "largest at its place");
    const controls = make("div", { class: "legend" }, this.bar(), largest, this.longest < this.deepest ? every : null);
    this.stage.append(this.canvas);
    host.append(controls, this.stage, this.readout);
    this.tooltip = new Tooltip(this.stage);
    this.readout.textContent = "Hover over the lattice, or walk through it with the arrow keys.";
    onWidth(this.stage, (width) => this.render(width));
    this.all.addEventListener("change", () => this.render(this.width));
    this.stage.addEventListener("pointermove", (event) => this.point(event));
    this.stage.addEventListener("pointerdown", (event) => this.point(event));
    this.stage.addEventListener("pointerleave", () => this.tooltip.hide());
    this.stage.addEventListener("blur", () => this.tooltip.hide());
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  read(table) {
    const [boundary, length, paths, norm] = ["boundary", "length", "n_paths", "norm"].map((name) => table.column(name));
    this.paths = paths;
    this.first = Infinity;
    this.last = -Infinity;
    this.deepest = 0;
    this.top = 0;
    this.least = Infinity;
    for (let row = 0; row < table.rows; row += 1) {
      this.first = Math.min(this.first, boundary.get(row));
      this.last = Math.max(this.last, boundary.get(row));
      this.deepest = Math.max(this.deepest, length.get(row));
      const value = norm.get(row);
      if (value > this.top) this.top = value;
      if (value > 0 && value < this.least) this.least = value;
    }
    this.wide = this.last - this.first + 1;
    this.norms = new Float64Array(this.wide * (this.deepest + 1)).fill(NaN);
    this.rows = new Int32Array(this.norms.length).fill(-1);
    this.sums = new Float64Array(this.wide);
    this.ridge = new Int32Array(this.wide).fill(-1);
    this.floor = Math.max(this.least, this.top * 10 ** -DECADES);
    this.longest = 0;
    for (let row = 0; row < table.rows; row += 1) {
      const [place, deep, value] = [boundary.get(row) - this.first, length.get(row), norm.get(row)];
      this.rows[this.cell(place, deep)] = row;
      this.norms[this.cell(place, deep)] = value;
      this.sums[place] += value;
      if (value >= this.floor) this.longest = Math.max(this.longest, deep);
      if (value > 0 && (this.ridge[place] < 0 || value > this.norms[this.cell(place, this.ridge[place])])) this.ridge[place] = deep;
    }
  }

  cell(place, length) {
    return length * this.wide + place;
  }

  share(value) {
    return this.top > this.floor ? Math.log(value / this.floor) / Math.log(this.top / this.floor) : 1;
  }

  bar() {
    const [from, to] = [this.floor, this.top].map((value) => (Number.isFinite(value) && value > 0 ? digits(value, 2) : "0"));
    return make("span", { class: "entry" }, `norm ${this.least < this.floor ? "≤ " : ""}${from}`, ramp(), to);
  }

  render(width) {
    this.width = width;
    const shown = this.all.checked ? this.deepest : this.longest;
    const height = clamp(Math.round(width * 0.5), 260, 460);
    const box = { left: 50, top: 10, right: width - 14, bottom: height - 40 };
    Object.assign(this, { box, shown, height });
    this.paint();
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    const middle = (box.top + box.bottom) / 2;
    for (const part of this.stages.slice(1)) {
      const x = this.across(part.first + 0.5); // the input of a stage's first block is still of the stage before
      svg.append(draw("path", { class: "parting", d: `M${x} ${box.top}V${box.bottom}` }));
    }
    for (const value of steps(this.first, this.last, clamp(width / 70, 2, 12), true)) {
      svg.append(draw("path", { class: "axis", d: `M${this.across(value)} ${box.bottom}v4` }));
      svg.append(draw("text", { x: this.across(value), y: box.bottom + 16, "text-anchor": "middle" }, String(value)));
    }
    for (const value of steps(0, shown, 6, true)) svg.append(draw("text", { x: box.left - 7, y: this.up(value) + 4, "text-anchor": "end" }, String(value)));
    svg.append(draw("path", { class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
    svg.append(draw("text", { class: "label", x: (box.left + box.right) / 2, y: height - 5, "text-anchor": "middle" }, "place i: gradient at the input of block i"));
    svg.append(draw("text", { class: "label", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, "path length (blocks after the place)"));
    const points = [...this.ridge].map((deep, place) => [place, deep]).filter(([, deep]) => deep >= 0 && deep <= shown);
    const path = points.map(([place, deep]) => `${this.across(place + this.first).toFixed(1)} ${this.up(deep).toFixed(1)}`).join("L");
    if (path) svg.append(draw("path", { class: "ridge-under", d: `M${path}` }), draw("path", { class: "ridge", d: `M${path}` }));
    this.cursor = draw("g", { class: "cursor" });
    svg.append(this.cursor);
    this.stage.querySelector("svg")?.remove();
    this.stage.append(svg);
    if (this.at) this.show(...this.at, false);
  }

  across(place) {
    return this.box.left + ((place - this.first + 0.5) / this.wide) * (this.box.right - this.box.left);
  }

  up(length) {
    return this.box.bottom - ((length + 0.5) / (this.shown + 1)) * (this.box.bottom - this.box.top);
  }

  paint() {
    const { box, wide, shown } = this;
    const small = make("canvas", { width: wide, height: shown + 1 });
    const pixels = new ImageData(wide, shown + 1);
    for (let deep = 0; deep <= shown; deep += 1) {
      for (let place = 0; place < wide; place += 1) {
        const value = this.norms[this.cell(place, deep)];
        if (!(value > 0)) continue;
        pixels.data.set([...viridis(this.share(value)), 255], 4 * ((shown - deep) * wide + place));
      }
    }
    small.getContext("2d").putImageData(pixels, 0, 0);
    const [across, down] = [box.right - box.left, box.bottom - box.top];
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(across * scale);
    this.canvas.height = Math.round(down * scale);
    Object.assign(this.canvas.style, { left: `${box.left}px`, top: `${box.top}px`, width: `${across}px`, height: `${down}px` });
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = wide > this.canvas.width;
    context.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
  }

  point(event) {
    const frame = this.stage.getBoundingClientRect();
    const { box } = this;
    const place = Math.floor(((event.clientX - frame.left - box.left) / (box.right - box.left)) * this.wide);
    const length = Math.floor(((box.bottom - (event.clientY - frame.top)) / (box.bottom - box.top)) * (this.shown + 1));
    if (place >= 0 && place < this.wide && length >= 0 && length <= this.shown && this.rows[this.cell(place, length)] >= 0) this.show(place, length);
    else this.tooltip.hide();
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], PageUp: [0, 10], PageDown: [0, -10], Home: [-Infinity, 0], End: [Infinity, 0] };
    if (event.key === "Escape") this.tooltip.hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    if (!this.at) {
      this.show(0, clamp(this.ridge[0], 0, this.shown));
      return;
    }
    const [right, up] = moves[event.key];
    const place = clamp(this.at[0] + right, 0, this.wide - 1);
    let length = clamp(this.at[1] + up, 0, this.shown);
    while (length > 0 && this.rows[this.cell(place, length)] < 0) length -= 1; // there are no longer paths here
    if (this.rows[this.cell(place, length)] >= 0) this.show(place, length);
  }

  where(place) {
    const at = place + this.first;
    if (at < 0) return "the input of the network";
    const name = (block) => `block ${block}${this.names[block] === undefined ? "" : ` (${this.names[block]})`}`;
    return at === this.last ? `x${sub(at)}, the output of ${at > 0 ? name(at - 1) : "the stem"}` : `x${sub(at)}, the input of ${name(at)}`;
  }

  show(place, length, open = true) {
    this.at = [place, length];
    const cell = this.cell(place, length);
    const [norm, exact] = [this.norms[cell], this.paths.exact(this.rows[cell])];
    const { box } = this;
    const [wide, high] = [(box.right - box.left) / this.wide, (box.bottom - box.top) / (this.shown + 1)];
    if (length <= this.shown) {
      const [w, h] = [Math.max(wide, 5), Math.max(high, 5)];
      const frame = { x: this.across(place + this.first) - w / 2, y: this.up(length) - h / 2, width: w, height: h };
      this.cursor.replaceChildren(draw("rect", { class: "under", ...frame }), draw("rect", frame));
    }
    const brief = exact.length > 15 ? rounded(exact, 2) : grouped(exact);
    const part = this.sums[place] > 0 ? `${percent((100 * norm) / this.sums[place])} of the norms there` : "";
    const where = this.where(place);
    const paths = exact === "1" ? "path" : "paths";
    this.host.dataset.place = place + this.first;
    this.host.dataset.length = length;
    if (open && this.width >= NARROW) {
      const line = (text) => make("span", { class: "row text" }, text);
      const lines = [make("strong", { class: "text" }, where), line(`length ${length}: ${brief} ${paths}`), line(`norm ${digits(norm)}`), line(part)];
      this.tooltip.show(this.across(place + this.first), this.up(length), lines);
    }
    this.readout.textContent = `At ${where}, length ${length}: ${grouped(exact)} ${paths}, norm ${digits(norm)}${part ? `, ${part}` : ""}.`;
  }
}
