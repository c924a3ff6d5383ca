// The network as it is, or all of its paths, as boxes and lines.

const LEGIBLE = 0.62; // pixels to a unit, below which texts are too small to begin with
const FAR = 0.3; // and below which they are left out

class Drawn extends View {
  constructor(stage, panel, readout, data) {
    super(stage, panel, readout);
    Object.assign(this, { data, nodes: data.nodes, edges: data.edges, unit: "nodes", total: data.nodes.length });
    this.into = data.nodes.map(() => []);
    this.from = data.nodes.map(() => []);
    data.edges.forEach(({ ends: [start, end] }, edge) => {
      this.from[start].push(edge);
      this.into[end].push(edge);
    });
    this.lines = data.edges.map((edge) => edge.pieces.map((piece) => (data.curved ? flattened(piece) : piece)));
    this.make();
    this.view = new Viewport(stage, { width: data.width, height: data.height, most: 4, home: (view) => this.home(view), ...this.events });
    onWidth(stage, (width) => {
      for (const [name, value] of Object.entries({ width, height: stage.clientHeight })) this.svg.setAttribute(name, value);
      this.view.resize(width, stage.clientHeight);
    });
  }

  home(view) {
    const scale = clamp(view.least[0], LEGIBLE, 1.3);
    const [x, y] = this.nodes[this.data.input].box;
    const shift = this.data.direction === "right" ? [0, view.height / 2 - scale * y] : [view.width / 2 - scale * x, 0];
    return { scale: [scale, scale], shift };
  }

  make() {
    const { data } = this;
    const join = (piece) => `M${piece.slice(0, 2)}${data.curved ? "C" : "L"}${piece.slice(2)}`;
    this.lineParts = data.edges.map(({ pieces, skip }) => {
      return draw("path", { class: `edge${["add", "concat"].includes(skip) ? ` skip-${skip}` : ""}`, d: pieces.map(join).join("") });
    });
    this.boxParts = data.nodes.map((node) => box(node));
    const notes = data.notes.map(([x, y, text]) => draw("text", { class: "note", x, y }, text));
    const stubs = data.stubs.map((piece) => draw("path", { class: "stub", d: join(piece) }));
    const dots = data.dots.map(([cx, cy]) => draw("circle", { class: "dot", cx, cy, r: 2 }));
    this.world = draw("g", { class: "world" }, ...this.lineParts, ...stubs, ...dots, ...this.boxParts, ...notes);
    this.svg = draw("svg", { "aria-hidden": "true" }, this.world);
    this.stage.prepend(this.svg);
  }

  draw() {
    const { scale, shift } = this.view;
    this.world.setAttribute("transform", `translate(${shift.map((value) => value.toFixed(2))}) scale(${scale[0].toFixed(4)})`);
    this.world.classList.toggle("far", scale[0] < FAR);
  }

  hit(x, y) {
    const [at, up] = this.view.toContent(x, y);
    const near = 1 / this.view.scale[0];
    const node = this.nodes.findIndex(({ box: [middle, centre, wide, high] }) => Math.abs(at - middle) <= wide / 2 + 2 * near && Math.abs(up - centre) <= high / 2 + 2 * near);
    if (node >= 0) return { node };
    let [best, edge] = [7 * near, -1];
    this.lines.forEach((pieces, index) => {
      for (const line of pieces) {
        for (let i = 0; i + 3 < line.length; i += 2) {
          const far = distance(at, up, line[i], line[i + 1], line[i + 2], line[i + 3]);
          if (far < best) [best, edge] = [far, index];
        }
      }
    });
    return edge < 0 ? null : { edge };
  }

  name({ node, edge }) {
    return node !== undefined ? this.nodes[node].id : this.edges[edge].ends.map((end) => this.nodes[end].id).join(" → ");
  }

  middle({ node, edge }) {
    if (node !== undefined) return this.nodes[node].box;
    const [start, end] = this.edges[edge].ends.map((one) => this.nodes[one].box);
    return [(start[0] + end[0]) / 2, (start[1] + end[1]) / 2];
  }

  title(node) {
    const { id, label } = this.nodes[node];
    return label === id || label === "+" ? id : `${label} (${id})`;
  }

  describe(target) {
    const { node, edge } = target;
    const link = (index) => ({ text: this.title(index), go: () => this.follow({ node: index }) });
    const item = node !== undefined ? this.nodes[node] : this.edges[edge];
    const told = new Map(item.facts);
    const paths = `${item.paths} ${item.paths === "1" ? "path" : "paths"} through it`;
    const lines = [told.get("Output shape"), told.has("Parameters") && told.get("Parameters") !== "0" ? `${told.get("Parameters")} parameters` : null, cut(told.get("Applied as")), paths];
    const shown = lines.filter((line) => line !== null && line !== undefined);
    if (node === undefined) {
      const [start, end] = item.ends;
      const links = [{ label: "From", items: [link(start)] }, { label: "To", items: [link(end)] }];
      return { title: `${this.title(start)} → ${this.title(end)}`, facts: item.facts, lines: shown, links };
    }
    const links = [
      { label: "From", items: this.into[node].map((at) => link(this.edges[at].ends[0])) },
      { label: "To", items: this.from[node].map((at) => link(this.edges[at].ends[1])) },
    ];
    return { title: this.title(node), facts: [["Name", item.id], ...item.facts], lines: shown, links };
  }

  /** Everything that is on a path through the target. */
  light(target) {
    for (const part of this.lit || []) part.classList.remove("on", "at");
    this.world.classList.toggle("lit", Boolean(target));
    this.lit = [];
    if (!target) return;
    const [first, last] = target.node !== undefined ? [target.node, target.node] : this.edges[target.edge].ends;
    const nodes = new Set([first, last]);
    const edges = new Set(target.edge === undefined ? [] : [target.edge]);
    for (const [begin, lists, end] of [[first, this.into, 0], [last, this.from, 1]]) {
      const stack = [begin];
      const seen = new Set(stack);
      while (stack.length) {
        for (const edge of lists[stack.pop()]) {
          const other = this.edges[edge].ends[end];
          edges.add(edge);
          nodes.add(other);
          if (!seen.has(other)) stack.push(other);
          seen.add(other);
        }
      }
    }
    this.lit = [...[...nodes].map((node) => this.boxParts[node]), ...[...edges].map((edge) => this.lineParts[edge])];
    for (const part of this.lit) part.classList.add("on");
    (target.node !== undefined ? this.boxParts[target.node] : this.lineParts[target.edge]).classList.add("at");
  }

  /** Along the paths by the keys of their direction, else to the nearest node on that side. */
  walk(key) {
    const { data } = this;
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(key)) return null;
    if (key === "Home") return { node: data.input };
    if (key === "End") return { node: data.output };
    if (!this.chosen) return { node: data.input };
    const [onward, back] = data.direction === "right" ? ["ArrowRight", "ArrowLeft"] : ["ArrowDown", "ArrowUp"];
    if (this.chosen.edge !== undefined) return { node: this.edges[this.chosen.edge].ends[key === back ? 0 : 1] };
    const { node } = this.chosen;
    // nodes come in the order in which they are computed: the next one, so that none is left out on the way
    if (key === onward) return { node: Math.min(...this.from[node].map((edge) => this.edges[edge].ends[1]), this.from[node].length ? Infinity : node) };
    if (key === back) return { node: Math.max(...this.into[node].map((edge) => this.edges[edge].ends[0]), this.into[node].length ? -1 : node) };
    const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const [x, y] = this.nodes[node].box;
    let [best, nearest] = [Infinity, node];
    this.nodes.forEach(({ box: [otherX, otherY] }, other) => {
      const ahead = (otherX - x) * right + (otherY - y) * down;
      const aside = Math.abs((otherX - x) * down) + Math.abs((otherY - y) * right);
      if (ahead > 1 && ahead + 2 * aside < best) [best, nearest] = [ahead + 2 * aside, other];
    });
    return { node: nearest };
  }

  search(fits) {
    const names = ["Role", "Module", "Operations", "Applied as", "Inside of", "Shortcut"];
    return this.nodes.map((_, node) => node).filter((node) => {
      const { id, label, facts } = this.nodes[node];
      return fits([id, label, ...facts.filter(([label]) => names.includes(label)).map(([, value]) => value)].join("\n").toLowerCase());
    });
  }

  mark(filtered) {
    this.world.classList.toggle("filtered", filtered);
    const found = new Set(this.found);
    this.boxParts.forEach((part, node) => part.classList.toggle("match", found.has(node)));
  }

  targetOf(node) {
    return { node };
  }
}

function box({ box: [x, y, wide, high], lines, tint, filled }) {
  if (lines.length === 1 && lines[0] === "+") {
    const arm = 0.3 * wide;
    return draw("g", { class: "node plus" }, draw("circle", { cx: x, cy: y, r: wide / 2 }), draw("path", { d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}` }));
  }
  const texts = lines.map((line, index) => draw("text", { x, y: y + 4.5 + 15 * (index - (lines.length - 1) / 2), class: index ? "second" : null }, line));
  const look = `${filled ? " filled" : ""}${tint === null ? "" : ` tinted c${tint % 8}`}`;
  return draw("g", { class: `node${look}` }, draw("rect", { x: x - wide / 2, y: y - high / 2, width: wide, height: high, rx: 4 }), ...texts);
}

function cut(text) {
  return text && text.length > 90 ? `${text.slice(0, 88)} …` : text;
}

/** Straight lines near a cubic Bezier spline. */
function flattened(piece) {
  const found = piece.slice(0, 2);
  for (let i = 0; i + 7 < piece.length; i += 6) {
    for (let step = 1; step <= 8; step += 1) {
      const [t, s] = [step / 8, 1 - step / 8];
      for (const axis of [0, 1]) {
        const [a, b, c, d] = [0, 2, 4, 6].map((offset) => piece[i + offset + axis]);
        found.push(s * s * s * a + 3 * s * s * t * b + 3 * s * t * t * c + t * t * t * d);
      }
    }
  }
  return found;
}

function distance(x, y, x0, y0, x1, y1) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const share = clamp(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1), 0, 1);
  return Math.hypot(x - x0 - share * dx, y - y0 - share * dy);
}
