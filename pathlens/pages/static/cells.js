// The lattice of an unraveled network: places and path lengths as cells, and from near as nodes and edges.
// Numbers of paths are computed here, exactly, from the number of blocks.

const NODES = [30, 26]; // pixels of a cell from which nodes and edges are drawn

class Cells extends View {
  constructor(stage, panel, readout, data) {
    super(stage, panel, readout);
    const { blocks } = data;
    Object.assign(this, data, { wide: blocks + 1, unit: "blocks", total: blocks });
    this.read(data.norms);
    this.paintSmall();
    this.canvas = make("canvas", { "aria-hidden": "true" });
    stage.prepend(this.canvas);
    this.legend = this.makeLegend();
    this.view = new Viewport(stage, { width: this.wide, height: this.wide, most: 110, stretch: true, pads: [56, 10, 22, 40], home: (view) => this.home(view), ...this.events });
    onWidth(stage, (width) => {
      const scale = window.devicePixelRatio || 1;
      Object.assign(this.canvas, { width: Math.round(width * scale), height: Math.round(stage.clientHeight * scale) });
      Object.assign(this.canvas.style, { width: `${width}px`, height: `${stage.clientHeight}px` });
      this.view.resize(width, stage.clientHeight);
    });
    // canvases do not follow the theme by themselves
    new MutationObserver(() => this.draw()).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** The sizes that colours stand for: norms, or else logarithms of numbers of paths. */
  read(norms) {
    const { wide, blocks } = this;
    this.norms = null;
    this.sizes = new Float64Array(wide * wide).fill(NaN);
    if (norms) {
      const bytes = Uint8Array.from(atob(norms), (letter) => letter.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      this.norms = this.sizes.map((_, at) => view.getFloat64(8 * at, true));
      for (let at = 0; at < this.sizes.length; at += 1) if (this.norms[at] > 0) this.sizes[at] = Math.log10(this.norms[at]);
    } else {
      const factorials = [0];
      for (let at = 1; at <= blocks; at += 1) factorials.push(factorials[at - 1] + Math.log10(at));
      for (let place = 0; place < wide; place += 1) {
        const after = blocks - place;
        for (let length = 0; length <= after; length += 1) this.sizes[length * wide + place] = place * Math.log10(2) + factorials[after] - factorials[length] - factorials[after - length];
      }
    }
  }

  exists(place, length) {
    return place >= 0 && length >= 0 && place + length <= this.blocks;
  }

  share(place, length) {
    const size = this.sizes[length * this.wide + place];
    return Number.isNaN(size) ? null : this.top > this.floor ? clamp((size - this.floor) / (this.top - this.floor), 0, 1) : 1;
  }

  paintSmall() {
    const { wide } = this;
    const colours = Array.from({ length: 256 }, (_, at) => viridis(at / 255));
    this.small = make("canvas", { width: wide, height: wide });
    const pixels = new ImageData(wide, wide);
    for (let length = 0; length < wide; length += 1) {
      for (let place = 0; place + length < wide; place += 1) {
        const share = this.share(place, length);
        if (share === null) continue;
        const [at, colour] = [4 * ((wide - 1 - length) * wide + place), colours[Math.round(255 * share)]];
        [pixels.data[at], pixels.data[at + 1], pixels.data[at + 2], pixels.data[at + 3]] = [...colour, 255];
      }
    }
    this.small.getContext("2d").putImageData(pixels, 0, 0);
  }

  makeLegend() {
    const value = (size) => (this.norms ? digits(10 ** size, 2) : size < 6 ? grouped(Math.round(10 ** size)) : power(Math.round(size)));
    const word = this.norms ? "gradient norm" : "paths through it";
    const line = (look) => draw("svg", { width: 24, height: 12, "aria-hidden": "true" }, draw("path", { class: `sample ${look}`, d: "M1 6H23" }));
    const ridge = draw("svg", { width: 24, height: 8, "aria-hidden": "true" }, draw("path", { class: "ridge-under", d: "M1 4H23" }), draw("path", { class: "ridge", d: "M1 4H23" }));
    const entry = (...parts) => make("span", { class: "entry" }, ...parts);
    return make("div", { class: "legend" }, entry(`${word} ${this.cut ? "≤ " : ""}${value(this.floor)}`, ramp(), value(this.top)), entry(ridge, this.ridge_label), entry(line(""), "through the shortcut"), entry(line("dashed"), "through the branch"));
  }

  home(view) {
    const [across, up] = view.area;
    const scale = [across / this.wide, up / (this.shown + 1)];
    return { scale, shift: [0, view.pads[1] + up - Math.min(scale[1], view.most) * this.wide] };
  }

  /** The middle of a node in pixels. */
  at(place, length) {
    return this.view.toStage(place + 0.5, this.blocks - length + 0.5);
  }

  draw() {
    const { view, wide, canvas } = this;
    if (!view || !view.width) return;
    const context = canvas.getContext("2d");
    const look = getComputedStyle(this.stage);
    const colour = (name) => look.getPropertyValue(`--${name}`);
    const [left, top] = view.pads;
    const [across, up] = view.area;
    const scale = window.devicePixelRatio || 1;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    context.save();
    context.beginPath();
    context.rect(left, top, across, up);
    context.clip();
    this.near = view.scale[0] >= NODES[0] && view.scale[1] >= NODES[1];
    const [x, y] = view.shift;
    if (!this.near) {
      context.imageSmoothingEnabled = view.scale[0] * scale < 1;
      context.drawImage(this.small, x, y, wide * view.scale[0], wide * view.scale[1]);
    }
    this.drawStages(context, colour);
    if (this.near) this.drawEdges(context, colour);
    else this.drawRidge(context);
    if (this.target) this.drawThrough(context, colour);
    if (this.near) this.drawNodes(context, colour);
    if (this.target && !this.target.role) this.drawFrame(context);
    this.drawFilter(context, colour);
    context.restore();
    this.drawAxes(context, colour);
  }

  /** First and last place and length in view. */
  get seen() {
    const [x0, y0] = this.view.toContent(this.view.pads[0], this.view.pads[1]);
    const [x1, y1] = this.view.toContent(this.view.pads[0] + this.view.area[0], this.view.pads[1] + this.view.area[1]);
    const inside = (value) => clamp(value, 0, this.blocks);
    return { from: inside(Math.floor(x0)), to: inside(Math.ceil(x1)), low: inside(Math.floor(this.blocks + 1 - y1)), high: inside(Math.ceil(this.blocks + 1 - y0)) };
  }

  drawEdges(context, colour) {
    const { from, to, low, high } = this.seen;
    context.strokeStyle = colour("soft");
    context.lineWidth = 1.2;
    for (const role of ["shortcut", "branch"]) {
      context.setLineDash(role === "branch" ? [4, 3] : []);
      context.beginPath();
      for (let place = Math.max(0, from - 1); place <= Math.min(to, this.blocks - 1); place += 1) {
        for (let length = low; length <= Math.min(high + 1, this.blocks - place); length += 1) {
          const end = role === "branch" ? length - 1 : length;
          if (!this.exists(place + 1, end)) continue;
          context.moveTo(...this.at(place, length));
          context.lineTo(...this.at(place + 1, end));
        }
      }
      context.stroke();
    }
    context.setLineDash([]);
  }

  drawNodes(context, colour) {
    const { from, to, low, high } = this.seen;
    const radius = this.radius;
    context.strokeStyle = colour("soft");
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let place = from; place <= to; place += 1) {
      for (let length = low; length <= Math.min(high, this.blocks - place); length += 1) {
        const share = this.share(place, length);
        const [x, y] = this.at(place, length);
        context.beginPath();
        context.arc(x, y, radius, 0, 2 * Math.PI);
        context.fillStyle = share === null ? colour("shade") : `rgb(${viridis(share).join(" ")})`;
        context.fill();
        context.lineWidth = 1;
        context.stroke();
        const text = shortened(choose(this.blocks - place, length));
        context.font = `${clamp(Math.min(12, (2.9 * radius) / text.length), 5, 12)}px ${this.font}`;
        context.fillStyle = share === null ? colour("ink") : share > 0.55 ? "#14171a" : "#ffffff";
        context.fillText(text, x, y + 0.5);
      }
    }
  }

  get font() {
    return getComputedStyle(this.stage).fontFamily;
  }

  get radius() {
    return 0.36 * Math.min(...this.view.scale);
  }

  drawStages(context, colour) {
    context.strokeStyle = colour("soft");
    context.setLineDash([3, 3]);
    context.lineWidth = 1;
    context.beginPath();
    for (const place of this.partings) {
      const [x] = this.view.toStage(place + 0.5, 0);
      context.moveTo(x, 0);
      context.lineTo(x, this.view.height);
    }
    context.stroke();
    context.setLineDash([]);
  }

  drawRidge(context) {
    context.beginPath();
    for (const [place, length] of this.ridge) context.lineTo(...this.at(place, length));
    for (const [width, ink] of [[3.2, "#ffffff"], [1.3, "#1b1f23"]]) {
      context.lineWidth = width;
      context.strokeStyle = ink;
      context.stroke();
    }
  }

  /** Everything that paths through the target pass, and its own edges. */
  drawThrough(context, colour) {
    const { target, blocks } = this;
    const ends = target.role ? [this.end(target), target] : [target, target];
    const [last, first] = ends;
    const outline = (points) => {
      context.beginPath();
      for (const point of points) context.lineTo(...this.at(...point));
      context.closePath();
      context.fill();
      context.stroke();
    };
    context.fillStyle = colour("lens");
    context.strokeStyle = colour("accent");
    context.lineWidth = 1.5;
    outline([[first.place, first.length], [0, first.length], [0, first.length + first.place]]);
    outline([[last.place, last.length], [blocks - last.length, last.length], [blocks, 0], [last.place + last.length, 0]]);
    context.lineWidth = 4;
    context.lineCap = "round";
    const edges = target.role ? [target] : [...this.into(target), ...this.from(target)];
    if (Math.min(...this.view.scale) >= 5 || target.role) {
      for (const edge of edges) {
        context.beginPath();
        context.moveTo(...this.at(edge.place, edge.length));
        context.lineTo(...this.at(this.end(edge).place, this.end(edge).length));
        context.stroke();
      }
    }
  }

  drawFrame(context) {
    const [x, y] = this.at(this.target.place, this.target.length);
    context.beginPath();
    if (this.near) context.arc(x, y, this.radius + 2, 0, 2 * Math.PI);
    else {
      const [w, h] = this.view.scale.map((size) => Math.max(size, 6));
      context.rect(x - w / 2, y - h / 2, w, h);
    }
    for (const [width, ink] of [[5, "#000000"], [2, "#ffffff"]]) {
      context.lineWidth = this.near ? width * 0.8 : width;
      context.strokeStyle = ink;
      context.stroke();
    }
  }

  drawFilter(context, colour) {
    if (!this.filtered) return;
    const found = new Set(this.found);
    context.fillStyle = colour("paper");
    context.globalAlpha = 0.78;
    for (let place = 0; place <= this.blocks; place += 1) {
      if (found.has(place)) continue;
      const [x] = this.view.toStage(place, 0);
      context.fillRect(x, 0, this.view.scale[0] + 0.5, this.view.height);
    }
    context.globalAlpha = 1;
  }

  drawAxes(context, colour) {
    const { view, first } = this;
    const [left, top] = view.pads;
    const [across, up] = view.area;
    const { from, to, low, high } = this.seen;
    context.strokeStyle = colour("soft");
    context.fillStyle = colour("soft");
    context.lineWidth = 1;
    context.font = `11.5px ${this.font}`;
    context.beginPath();
    context.moveTo(left + 0.5, top);
    context.lineTo(left + 0.5, top + up + 0.5);
    context.lineTo(left + across, top + up + 0.5);
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const value of steps(from + first, to + first, clamp(across / 70, 2, 12), true)) {
      const [x] = this.at(value - first, 0);
      if (x < left || x > left + across) continue;
      context.moveTo(x, top + up);
      context.lineTo(x, top + up + 4);
      context.fillText(String(value), x, top + up + 7);
    }
    context.stroke();
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of steps(low, high, clamp(up / 50, 2, 10), true)) {
      const [, y] = this.at(0, value);
      if (y > top && y < top + up) context.fillText(String(value), left - 7, y);
    }
    context.fillStyle = colour("ink");
    context.font = `12.5px ${this.font}`;
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    context.fillText(this.axes[0], left + across / 2, view.height - 5);
    context.translate(17, top + up / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(this.axes[1], 0, 0);
  }

  hit(x, y) {
    const { view } = this;
    const [left, top] = view.pads;
    if (x < left || y < top || x > left + view.area[0] || y > top + view.area[1]) return null;
    const [across, down] = view.toContent(x, y);
    const [place, length] = [Math.floor(across), Math.floor(this.wide - down)];
    const node = this.exists(place, length) ? { place, length } : null;
    if (!this.near) return node;
    if (node && distanceTo(this.at(place, length), x, y) <= this.radius + 2) return node;
    const [run, rise] = [across - 0.5, this.wide - down - 0.5];
    const start = Math.floor(run);
    const [straight, sloped] = [Math.round(rise), Math.round(rise + run - start)];
    const edges = [
      [Math.abs(rise - straight), { role: "shortcut", place: start, length: straight }],
      [Math.abs(rise - sloped + run - start) * 0.7, { role: "branch", place: start, length: sloped }],
    ];
    const [[far, edge]] = edges.sort(([one], [other]) => one - other);
    return far * view.scale[1] <= 7 && this.exists(edge.place, edge.length) && this.exists(this.end(edge).place, this.end(edge).length) ? edge : null;
  }

  end({ role, place, length }) {
    return { place: place + 1, length: role === "branch" ? length - 1 : length };
  }

  into({ place, length }) {
    const found = [{ role: "shortcut", place: place - 1, length }, { role: "branch", place: place - 1, length: length + 1 }];
    return found.filter((edge) => this.exists(edge.place, edge.length));
  }

  from({ place, length }) {
    const found = [{ role: "shortcut", place, length }, { role: "branch", place, length }];
    return place < this.blocks ? found.filter((edge) => this.exists(this.end(edge).place, this.end(edge).length)) : [];
  }

  name({ role, place, length }) {
    return `${role ? `${role} ` : ""}${place + this.first},${length}`;
  }

  middle({ role, place, length }) {
    const shift = role ? 0.5 : 0;
    return [place + 0.5 + shift, this.blocks - length + 0.5 + (role === "branch" ? 0.5 : 0)];
  }

  block(place) {
    return `block ${place + this.first} (${this.names[place]})`;
  }

  title({ role, place }) {
    if (role) return `${role} of ${this.block(place)}`;
    return `x${sub(place + this.first)}, the ${place === this.blocks ? `output of ${this.block(place - 1)}` : `input of ${this.block(place)}`}`;
  }

  numbers({ role, place, length }) {
    const { place: later, length: left } = role ? this.end({ role, place, length }) : { place, length };
    const [before, after] = [2n ** BigInt(place), choose(this.blocks - later, left)];
    return { before, after, through: before * after, norm: this.norms && this.exists(later, left) ? this.norms[left * this.wide + later] : NaN };
  }

  describe(target) {
    const { before, after, through, norm } = this.numbers(target);
    const left = (length) => `${length} ${length === 1 ? "branch" : "branches"} from there to the output`;
    const measured = Number.isNaN(norm) ? [] : [["Gradient norm", digits(norm, 6)]];
    const lines = [...(target.role ? [] : [left(target.length)]), `${paths(through)} through it`, ...measured.map(([, value]) => `gradient norm ${value}`)];
    const go = (other, text) => ({ text, go: () => this.follow(other) });
    if (target.role) {
      const end = this.end(target);
      const facts = [["Role", target.role], ["Block", `${target.place + this.first}`], ["Module", this.names[target.place]], ["Stage", `${this.stages[target.place]}`], ["Paths through it", grouped(through)], ...measured];
      const links = [["From", target], ["To", end]].map(([label, { place, length }]) => ({ label, items: [go({ place, length }, `x${sub(place + this.first)}, ${left(length)}`)] }));
      return { title: this.title(target), facts, lines, links };
    }
    const own = Math.min(target.place, this.blocks - 1);
    const facts = [["Place", `x${sub(target.place + this.first)}`], ["Module", this.names[own]], ["Stage", `${this.stages[own]}`], ["Branches to the output", `${target.length}`], ["Paths to it", grouped(before)], ["Paths from it", grouped(after)], ["Paths through it", grouped(through)], ...measured];
    const links = [["Comes from", this.into(target)], ["Leads to", this.from(target)]].map(([label, edges]) => ({ label, items: edges.map((edge) => go(edge, `${edge.role} of block ${edge.place + this.first}: ${paths(this.numbers(edge).through)}`)) }));
    return { title: this.title(target), facts, lines, links };
  }

  light() {
    this.draw();
  }

  /** The length with the largest size at a place. */
  peak(place) {
    let best = 0;
    for (let length = 0; this.exists(place, length); length += 1) if (this.share(place, length) > this.share(place, best)) best = length;
    return { place, length: best };
  }

  walk(key) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], PageUp: [0, 10], PageDown: [0, -10], Home: [-Infinity, 0], End: [Infinity, 0] };
    if (!(key in moves)) return null;
    if (!this.chosen) return this.peak(0);
    const [right, up] = moves[key];
    const place = clamp(this.chosen.place + right, 0, this.blocks);
    return { place, length: clamp(this.chosen.length + up, 0, this.blocks - place) };
  }

  search(fits) {
    return this.names.map((_, place) => place).filter((place) => fits(`${this.names[place]}\nstage ${this.stages[place]}`.toLowerCase()));
  }

  mark(filtered) {
    this.filtered = filtered;
    this.draw();
  }

  targetOf(place) {
    return this.peak(place);
  }
}

function distanceTo([x, y], otherX, otherY) {
  return Math.hypot(x - otherX, y - otherY);
}

function paths(count) {
  const text = String(count);
  return `${text.length > 15 ? shortened(count) : grouped(text)} ${text === "1" ? "path" : "paths"}`;
}

/** 123,456, or 1.2×10⁹. */
function shortened(count) {
  const text = String(count);
  return text.length > 6 ? rounded(text, 1) : grouped(text);
}
