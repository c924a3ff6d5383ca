// Loss and error on a plane: colours with contour lines, several surfaces side by side on one scale.

const LEVELS = 14; // lines of a logarithmic layer, as in the figure
const LABELLED = 3; // every so many lines have their height written on them

class ContourMap {
  constructor(host, spec) {
    this.host = host;
    this.spec = spec;
    this.layer = spec.layers[0];
    this.at = null;
    this.switch = make("span", { class: "switch", role: "group", "aria-label": "What the colours are" });
    this.bar = make("span", { class: "entry" });
    const plus = draw("svg", { width: 14, height: 14, "aria-hidden": "true", class: "ink" }, draw("path", { class: "axis", d: "M7 1V13M1 7H13" }));
    this.legend = make("div", { class: "legend" }, this.switch, this.bar, make("span", { class: "entry" }, plus, "the network itself"));
    this.readout = make("p", { class: "readout", role: "status" });
    this.readout.textContent = "Hover over a map, or walk through it with the arrow keys.";
    const sheets = make("div", { class: "sheets" });
    host.append(this.legend, sheets, this.readout);
    this.sheets = spec.surfaces.map((surface) => this.sheet(surface, sheets));
    this.buttons = spec.layers.map((layer) => {
      const button = make("button", { type: "button" }, layer.name);
      button.addEventListener("click", () => this.choose(layer));
      this.switch.append(button);
      return button;
    });
    this.choose(this.layer);
    for (const sheet of this.sheets) onWidth(sheet.stage, (width) => this.render(sheet, width));
  }

  sheet(surface, sheets) {
    const name = surface.name ? `, ${surface.name}` : "";
    const stage = make("div", {
      class: "stage",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "contour map",
      "aria-label": `${this.spec.title}${name}. Arrow keys walk from point to point, Home goes to the network itself and End to the smallest loss.`,
    });
    const canvas = make("canvas", { "aria-hidden": "true" });
    stage.append(canvas);
    sheets.append(make("div", {}, surface.name ? make("h5", { class: "text" }, surface.name) : null, stage));
    const sheet = { surface, stage, canvas, width: 0, tooltip: new Tooltip(stage) };
    stage.addEventListener("pointermove", (event) => this.point(sheet, event));
    stage.addEventListener("pointerdown", (event) => this.point(sheet, event));
    stage.addEventListener("pointerleave", () => this.leave());
    stage.addEventListener("blur", () => this.leave());
    stage.addEventListener("keydown", (event) => this.key(sheet, event));
    return sheet;
  }

  /** Show another layer: its scale is that of all surfaces together. */
  choose(layer) {
    this.layer = layer;
    this.buttons?.forEach((button, index) => button.setAttribute("aria-pressed", String(this.spec.layers[index] === layer)));
    const known = this.sheets.flatMap(({ surface }) => surface[layer.key]).filter((value) => value !== null);
    const [least, most] = known.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
    const missing = this.sheets.some(({ surface }) => surface[layer.key].includes(null));
    const inside = (value) => clamp(value, layer.low ?? -Infinity, layer.high ?? Infinity);
    const top = missing && layer.high !== undefined ? layer.high : inside(most);
    this.scale = layer.log ? Math.log10 : (value) => value;
    [this.least, this.top] = known.length ? [inside(least), top] : [layer.low ?? 0, layer.high ?? 1];
    [this.floor, this.ceiling] = [this.scale(this.least), this.scale(this.top)];
    const ends = [`${least < this.least ? "≤ " : ""}${this.value(this.least)}`, `${most > this.top || missing ? "≥ " : ""}${this.value(this.top)}`];
    this.bar.replaceChildren(`${layer.label.replace(" (%)", "")} ${ends[0]}`, ramp(), ends[1]);
    for (const sheet of this.sheets) if (sheet.width) this.render(sheet, sheet.width);
  }

  value(y) {
    return this.layer.percent ? percent(y) : digits(y, 3);
  }

  /** What is drawn at every point of a surface: what is missing is as high as anything. */
  heights(surface) {
    const scaled = (value) => clamp(value === null ? this.ceiling : this.scale(clamp(value, this.least, this.top)), this.floor, this.ceiling);
    return Float64Array.from(surface[this.layer.key], scaled);
  }

  levels() {
    if (!this.layer.log) return steps(this.floor, this.ceiling, 10);
    return Array.from({ length: LEVELS - 1 }, (_, index) => this.floor + ((index + 1) / LEVELS) * (this.ceiling - this.floor));
  }

  render(sheet, width) {
    const { surface, stage } = sheet;
    const [x, y] = [surface.x, surface.y];
    const ends = [x[0], x.at(-1), y[0], y.at(-1)];
    const box = { left: 56, top: 8, right: width - 12 };
    const wide = Math.max(1, box.right - box.left);
    box.bottom = box.top + clamp((wide * (ends[3] - ends[2])) / (ends[1] - ends[0]), wide / 3, wide * 1.3);
    const height = box.bottom + 40;
    const across = (value) => box.left + ((value - ends[0]) / (ends[1] - ends[0])) * wide;
    const up = (value) => box.bottom - ((value - ends[2]) / (ends[3] - ends[2])) * (box.bottom - box.top);
    Object.assign(sheet, { width, box, across, up, heights: this.heights(surface) });
    this.paint(sheet);
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    this.lines(sheet, svg);
    for (const value of steps(ends[0], ends[1], clamp(wide / 60, 2, 8))) {
      svg.append(draw("path", { class: "axis", d: `M${across(value)} ${box.bottom}v4` }));
      svg.append(draw("text", { x: across(value), y: box.bottom + 16, "text-anchor": "middle" }, digits(value)));
    }
    for (const value of steps(ends[2], ends[3], 6)) svg.append(draw("text", { x: box.left - 6, y: up(value) + 4, "text-anchor": "end" }, digits(value)));
    svg.append(draw("path", { class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
    const middle = (box.top + box.bottom) / 2;
    svg.append(draw("text", { class: "label", x: (box.left + box.right) / 2, y: height - 5, "text-anchor": "middle" }, this.spec.x.label));
    svg.append(draw("text", { class: "label", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, this.spec.y.label));
    if (ends[0] <= 0 && ends[1] >= 0 && ends[2] <= 0 && ends[3] >= 0) {
      const plus = `M${across(0)} ${up(0) - 6}v12M${across(0) - 6} ${up(0)}h12`;
      svg.append(draw("g", { class: "here" }, draw("path", { class: "under", d: plus }), draw("path", { d: plus })));
    }
    sheet.cursor = draw("g", { class: "cursor" });
    svg.append(sheet.cursor);
    stage.querySelector("svg")?.remove();
    stage.append(svg);
  }

  /** Colours between the points, by bilinear interpolation of what is drawn. */
  paint({ surface, canvas, box, heights }) {
    const [wide, high] = [box.right - box.left, box.bottom - box.top].map((size) => Math.max(1, Math.round(size)));
    const between = (places, count, backwards) => {
      const [first, last] = [places[0], places.at(-1)];
      let low = 0;
      return Array.from({ length: count }, (_, pixel) => {
        const value = first + ((pixel + 0.5) / count) * (last - first);
        while (low < places.length - 2 && places[low + 1] < value) low += 1;
        return [low, (value - places[low]) / (places[low + 1] - places[low])];
      })[backwards ? "reverse" : "slice"]();
    };
    const [columns, rows] = [between(surface.x, wide, false), between(surface.y, high, true)];
    const count = surface.x.length;
    const range = this.ceiling - this.floor || 1;
    const colours = Array.from({ length: 256 }, (_, index) => viridis(index / 255));
    const pixels = new ImageData(wide, high);
    rows.forEach(([row, above], down) => {
      columns.forEach(([column, beyond], right) => {
        const corner = row * count + column;
        const lower = heights[corner] * (1 - beyond) + heights[corner + 1] * beyond;
        const upper = heights[corner + count] * (1 - beyond) + heights[corner + count + 1] * beyond;
        const share = (lower * (1 - above) + upper * above - this.floor) / range;
        pixels.data.set(colours[Math.round(255 * clamp(share, 0, 1))], 4 * (down * wide + right));
        pixels.data[4 * (down * wide + right) + 3] = 255;
      });
    });
    canvas.width = wide;
    canvas.height = high;
    Object.assign(canvas.style, { left: `${box.left}px`, top: `${box.top}px`, width: `${wide}px`, height: `${high}px` });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  lines(sheet, svg) {
    const written = [[sheet.across(0), sheet.up(0)]]; // where the network itself is marked
    this.levels().forEach((level, index) => {
      const segments = contour(sheet.surface.x, sheet.surface.y, sheet.heights, level)
        .map((segment) => segment.map(([x, y]) => [sheet.across(x), sheet.up(y)]));
      if (!segments.length) return;
      const path = segments.map((ends) => ends.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")).join("M");
      svg.append(draw("path", { class: "level", d: `M${path}` }));
      if (index % LABELLED) return;
      // on the way from the middle up and to the right, where lines around it follow each other
      const { box } = sheet;
      const [centre, half] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
      const away = ([[x, y]]) => Math.abs(x - centre - (half - y)) + (x < centre ? box.right : 0);
      const [[x, y]] = segments.reduce((best, one) => (away(one) < away(best) ? one : best));
      const fits = x > box.left + 14 && x < box.right - 14 && y > box.top + 8 && y < box.bottom - 8;
      if (!fits || written.some(([a, b]) => Math.abs(a - x) < 34 && Math.abs(b - y) < 13)) return;
      written.push([x, y]);
      const text = this.layer.percent ? `${digits(level, 3)} %` : digits(10 ** level, 2);
      svg.append(draw("text", { class: "height", x, y: y + 4, "text-anchor": "middle" }, text));
    });
  }

  point(sheet, event) {
    const frame = sheet.stage.getBoundingClientRect();
    const [left, top] = [event.clientX - frame.left, event.clientY - frame.top];
    const { box, surface } = sheet;
    if (left < box.left - 4 || left > box.right + 4 || top < box.top - 4 || top > box.bottom + 4) this.leave();
    else this.show(sheet, [nearest(surface.x.map(sheet.across), left), nearest(surface.y.map(sheet.up), top)]);
  }

  key(sheet, event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], PageUp: [0, 5], PageDown: [0, -5] };
    const { surface } = sheet;
    if (event.key === "Escape") this.leave();
    if (!(event.key in moves) && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    const centre = [nearest(surface.x, 0), nearest(surface.y, 0)];
    if (event.key === "Home") this.show(sheet, centre);
    else if (event.key === "End") this.show(sheet, this.smallest(surface) ?? centre);
    else if (!this.at) this.show(sheet, centre);
    else {
      const [right, up] = moves[event.key];
      const [column, row] = [nearest(surface.x, this.at[0]), nearest(surface.y, this.at[1])];
      this.show(sheet, [clamp(column + right, 0, surface.x.length - 1), clamp(row + up, 0, surface.y.length - 1)]);
    }
  }

  smallest(surface) {
    const values = surface[this.spec.layers[0].key];
    let best = -1;
    values.forEach((value, index) => {
      if (value !== null && (best < 0 || value < values[best])) best = index;
    });
    return best < 0 ? null : [best % surface.x.length, Math.floor(best / surface.x.length)];
  }

  /** Tell of a point of one surface, and of the points of the others that are nearest to it. */
  show(sheet, [column, row]) {
    const [x, y] = (this.at = [sheet.surface.x[column], sheet.surface.y[row]]);
    const where = `${digits(x)}, ${digits(y)}`;
    const told = this.sheets.map((other) => {
      const { surface, cursor } = other;
      const [i, j] = [nearest(surface.x, x), nearest(surface.y, y)];
      const spot = { cx: other.across(surface.x[i]), cy: other.up(surface.y[j]), r: 5 };
      cursor.replaceChildren(draw("circle", { class: "under", ...spot }), draw("circle", spot));
      return { other, text: this.words(surface, j * surface.x.length + i), spot };
    });
    for (const { other, text, spot } of told) {
      if (other === sheet && other.width >= 300) {
        const lines = text.map((line) => make("span", { class: "row" }, line));
        other.tooltip.show(spot.cx, spot.cy, [make("strong", {}, `at ${where}`), ...lines]);
      } else other.tooltip.hide();
    }
    const named = told.map(({ other, text }) => `${other.surface.name ? `${other.surface.name}: ` : ""}${text.join(", ")}`);
    this.readout.textContent = `At ${where}. ${named.join("; ")}.`;
  }

  words(surface, cell) {
    return this.spec.layers.map((layer) => {
      const value = surface[layer.key][cell];
      if (value === null) return `${layer.name} is not finite`;
      if (layer.percent) return `${layer.name} ${percent(value)}`;
      const [, name, unit] = layer.label.match(/^(.*?)(?: \((.*)\))?$/s);
      return [name, digits(value), unit].filter(Boolean).join(" ");
    });
  }

  leave() {
    for (const sheet of this.sheets) {
      sheet.tooltip.hide();
      sheet.cursor?.replaceChildren();
    }
  }
}

/** Index of the value that is nearest. */
function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, index) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index;
  });
  return best;
}

/** The line of one height on a grid, as segments between places on its edges (marching squares). */
function contour(x, y, heights, level) {
  const segments = [];
  const count = x.length;
  for (let row = 0; row + 1 < y.length; row += 1) {
    for (let column = 0; column + 1 < count; column += 1) {
      const corner = row * count + column;
      const [a, b, c, d] = [heights[corner], heights[corner + 1], heights[corner + count + 1], heights[corner + count]];
      const crossed = [];
      const cross = (p, q, from, to) => {
        if (p < level === q < level) return;
        const share = (level - p) / (q - p);
        crossed.push([from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1])]);
      };
      const [left, right, low, high] = [x[column], x[column + 1], y[row], y[row + 1]];
      cross(a, b, [left, low], [right, low]);
      cross(b, c, [right, low], [right, high]);
      cross(c, d, [right, high], [left, high]);
      cross(d, a, [left, high], [left, low]);
      if (crossed.length === 2) segments.push(crossed);
      if (crossed.length === 4) {
        // a saddle: the middle says which corners belong together
        const joined = (a + b + c + d) / 4 < level === a < level;
        segments.push(...(joined ? [[crossed[0], crossed[1]], [crossed[2], crossed[3]]] : [[crossed[3], crossed[0]], [crossed[1], crossed[2]]]));
      }
    }
  }
  return segments;
}
