// Lines and points with intervals. A description of a chart is made in charts.py.

const MARKS = [
  (x, y, r) => draw("circle", { cx: x, cy: y, r }),
  (x, y, r) => draw("path", { d: `M${x} ${y - 1.45 * r}L${x + 1.45 * r} ${y}L${x} ${y + 1.45 * r}L${x - 1.45 * r} ${y}Z` }),
  (x, y, r) => draw("path", { d: `M${x} ${y - 1.35 * r}L${x + 1.3 * r} ${y + r}L${x - 1.3 * r} ${y + r}Z` }),
  (x, y, r) => draw("rect", { x: x - 0.9 * r, y: y - 0.9 * r, width: 1.8 * r, height: 1.8 * r }),
];
const DENSE = 150; // points from which intervals are drawn as a band

class Chart {
  constructor(host, spec) {
    this.host = host;
    this.spec = spec;
    this.hidden = new Set();
    this.at = null;
    this.legend = make("div", { class: "legend" });
    this.stage = make("div", {
      class: "stage",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "chart",
      "aria-label": `${spec.title}. ${spec.y.label} against ${spec.x.label}. The left and right arrow keys read it out.`,
    });
    this.readout = make("p", { class: "readout", role: "status" });
    host.append(this.legend, this.stage, this.readout);
    this.tooltip = new Tooltip(this.stage);
    this.makeLegend();
    onWidth(this.stage, (width) => this.render(width));
    this.stage.addEventListener("pointermove", (event) => this.point(event));
    this.stage.addEventListener("pointerdown", (event) => this.point(event));
    this.stage.addEventListener("pointerleave", () => this.leave());
    this.stage.addEventListener("blur", () => this.leave());
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  get shown() {
    return this.spec.series.filter((_, index) => !this.hidden.has(index));
  }

  makeLegend() {
    const { series, kinds = [], rules = [], shade } = this.spec;
    const many = series.length > 1;
    series.forEach((item, index) => {
      const sample = this.sample(item);
      if (!many) {
        if (!kinds.length) this.legend.append(make("span", { class: "entry" }, sample, item.name));
        return;
      }
      const button = make("button", { type: "button", class: "entry", "aria-pressed": "true" }, sample, make("span", { class: "text" }, item.name));
      button.addEventListener("click", () => {
        const hide = !this.hidden.has(index);
        if (hide && this.shown.length === 1) return;
        if (hide) this.hidden.add(index);
        else this.hidden.delete(index);
        button.setAttribute("aria-pressed", String(!hide));
        this.render(this.width);
      });
      this.legend.append(button);
    });
    kinds.forEach((kind, index) => {
      const icon = draw("svg", { width: 14, height: 12, "aria-hidden": "true", class: `k${index % 4}` }, mark(index, 7, 6, 4));
      this.legend.append(make("span", { class: "entry" }, icon, make("span", { class: "text" }, `${kind}`)));
    });
    if (rules.length) {
      const own = rules.length === 1 ? "ink" : `c${rules[0].colour % 8}`;
      const icon = draw("svg", { width: 24, height: 12, "aria-hidden": "true", class: own }, draw("path", { class: "rule", d: "M1 6H23" }));
      this.legend.append(make("span", { class: "entry" }, icon, rules[0].name));
    }
    if (shade) this.legend.append(make("span", { class: "entry" }, make("span", { class: "shade-sample" }), `${shade.name}: ${shade.first} to ${shade.last}`));
  }

  sample(item) {
    const icon = draw("svg", { width: 24, height: 12, "aria-hidden": "true", class: `c${item.colour % 8}` });
    if (item.band) icon.append(draw("rect", { class: "band", x: 1, y: 1, width: 22, height: 10 }));
    if (item.line !== "none") icon.append(draw("path", { class: `line ${item.line || "solid"}`, d: "M1 6H23" }));
    if (this.marked(item)) icon.append(mark(item.colour, 12, 6, 3.2));
    return icon;
  }

  marked(item) {
    return item.line === "none" || (item.x.length <= DENSE && !["dash", "dot"].includes(item.line) && !(item.x.length > 40 && !item.low));
  }

  render(width) {
    this.width = width;
    const { spec, shown } = this;
    const values = shown.flatMap((item) => [item.y, item.low || [], item.high || []].flat()).concat((spec.rules || []).flatMap((rule) => [rule.y, rule.high]));
    const known = values.filter((value) => value !== null && value !== undefined && Number.isFinite(value) && (!spec.y.log || value > 0));
    const xs = shown.flatMap((item) => item.x);
    const height = clamp(Math.round(width * 0.42), 230, 330);
    const pad = spec.x.whole ? Math.max(0.6, (Math.max(...xs) - Math.min(...xs)) * 0.008) : (Math.max(...xs) - Math.min(...xs) || 1) * 0.04;
    const low = Math.min(...xs) - pad;
    const high = Math.max(...xs) + pad;
    // heights are logarithms to base ten on a log scale: norms may be smaller than any float can be halved
    const sizes = spec.y.log ? known.map(Math.log10) : known;
    const least = Math.min(...sizes, 0) * 1.07; // below 0 where some values are
    const top = spec.y.log ? Math.max(...sizes, -330) + 0.12 : Math.max(...sizes, 0) * 1.07 || (least < 0 ? 0 : 1);
    const floor = spec.y.log ? Math.min(...sizes, top) - 0.18 : least;
    const ticks = spec.y.log ? decades(floor, top, 6) : steps(floor, top, 5).map((value) => [value, digits(value)]);
    const left = 30 + 6.4 * Math.max(...ticks.map(([, text]) => text.length), 2);
    const box = { left, top: spec.stages && spec.stages.length ? 22 : 10, right: width - 14, bottom: height - 40 };
    const across = (x) => box.left + ((x - low) / (high - low || 1)) * (box.right - box.left); // far beyond 2^53 no room is left beside a place
    const rise = (size) => box.bottom - ((size - floor) / (top - floor)) * (box.bottom - box.top);
    const up = spec.y.log ? (y) => rise(Math.log10(y)) : rise;
    Object.assign(this, { box, across, up, rise, height });
    const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    this.background(svg, ticks, low, high);
    const inside = `clip-${(Chart.count = (Chart.count || 0) + 1)}`;
    svg.append(draw("clipPath", { id: inside }, draw("rect", { x: box.left, y: 0, width: Math.max(0, box.right - box.left), height: box.bottom + 5 })));
    const plot = draw("g", { "clip-path": `url(#${inside})` });
    for (const item of [...shown].sort((a, b) => (a.faint ? 0 : 1) - (b.faint ? 0 : 1))) this.series(plot, item);
    for (const rule of spec.rules || []) {
      const colour = spec.rules.length === 1 ? "ink" : `c${rule.colour % 8}`;
      if (spec.rules.length > 1 && this.hidden.has(spec.series.findIndex((item) => item.colour === rule.colour))) continue;
      if (rule.low !== undefined && rule.low !== null) plot.append(draw("rect", { class: "interval", x: box.left, width: box.right - box.left, y: up(rule.high), height: Math.max(0, up(rule.low) - up(rule.high)) }));
      plot.append(draw("g", { class: colour }, draw("path", { class: "rule", d: `M${box.left} ${up(rule.y)}H${box.right}` })));
    }
    this.cursor = draw("g", { class: "cursor" });
    svg.append(plot, this.cursor);
    this.stage.querySelector("svg")?.remove();
    this.stage.prepend(svg);
    this.places = [...new Set(xs)].sort((a, b) => a - b);
  }

  background(svg, ticks, low, high) {
    const { box, across, rise, spec, height } = this;
    const inside = (x) => clamp(across(x), box.left, box.right);
    for (const [index, part] of (spec.stages || []).entries()) {
      const [from, to] = [inside(part.first - 0.5), inside(part.last + 0.5)];
      if (index % 2) svg.append(draw("rect", { class: "shade", x: from, width: to - from, y: box.top, height: box.bottom - box.top }));
      const text = to - from > 7 * part.name.length ? part.name : part.name.replace("stage ", "");
      if (to - from > 7 * text.length) svg.append(draw("text", { class: "soft", x: (from + to) / 2, y: box.top - 7, "text-anchor": "middle" }, text));
    }
    if (spec.shade) {
      const [from, to] = [inside(spec.shade.first - 0.5), inside(spec.shade.last + 0.5)];
      svg.append(draw("rect", { class: "shade", x: from, width: to - from, y: box.top, height: box.bottom - box.top }));
    }
    for (const [value, text] of ticks) {
      const y = rise(value);
      if (y < box.top - 1) continue;
      svg.append(draw("path", { class: "grid", d: `M${box.left} ${y}H${box.right}` }));
      svg.append(draw("text", { x: box.left - 6, y: y + 4, "text-anchor": "end" }, text));
    }
    if (!spec.y.log && rise(0) < box.bottom - 1) svg.append(draw("path", { class: "axis", d: `M${box.left} ${rise(0)}H${box.right}` }));
    for (const value of steps(low, high, clamp((box.right - box.left) / 60, 2, 12), spec.x.whole)) {
      svg.append(draw("path", { class: "axis", d: `M${across(value)} ${box.bottom}v4` }));
      svg.append(draw("text", { x: across(value), y: box.bottom + 16, "text-anchor": "middle" }, spec.x.whole ? String(value) : digits(value)));
    }
    svg.append(draw("path", { class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
    svg.append(draw("text", { class: "label", x: (box.left + box.right) / 2, y: height - 5, "text-anchor": "middle" }, spec.x.label));
    const middle = (box.top + box.bottom) / 2;
    svg.append(draw("text", { class: "label", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, spec.y.label));
    if (spec.y.note) svg.append(draw("text", { class: "soft", x: box.right - 4, y: box.top + 12, "text-anchor": "end" }, spec.y.note));
  }

  series(plot, item) {
    const { across, up, spec } = this;
    const known = (y) => y !== null && y !== undefined;
    const usable = (y) => known(y) && (!spec.y.log || y > 0);
    const group = draw("g", { class: `c${item.colour % 8}${item.faint ? " faint" : ""}${item.marks ? " kinds" : ""}` });
    const dense = item.band || item.x.length > DENSE;
    // an interval that reaches zero goes down to the bottom of a logarithmic axis
    const height = (y) => (usable(y) ? up(y) : this.box.bottom);
    const place = (index, y) => `${across(item.x[index]).toFixed(2)} ${height(y).toFixed(2)}`;
    if (item.low && dense) {
      const runs = [[]]; // of neighbours that have an interval
      item.x.forEach((_, index) => {
        if (usable(item.y[index]) && usable(item.high[index]) && known(item.low[index])) runs.at(-1).push(index);
        else runs.push([]);
      });
      const outlines = runs.filter((run) => run.length).map((run) => [...run.map((index) => place(index, item.high[index])), ...run.reverse().map((index) => place(index, item.low[index]))]);
      if (outlines.length) group.append(draw("path", { class: "band", d: outlines.map((outline) => `M${outline.join("L")}Z`).join("") }));
    } else if (item.low) {
      item.x.forEach((x, index) => {
        const [high, y] = [item.high[index], item.y[index]];
        const low = known(item.low[index]) || spec.y.log ? item.low[index] : y;
        const kind = item.marks ? ` k${item.marks[index] % 4}` : "";
        if (usable(y) && usable(high) && known(low)) group.append(draw("path", { class: `whisker${kind}`, d: `M${place(index, low)}L${place(index, high)}` }));
      });
    }
    if (item.line !== "none") {
      let path = "";
      let drawing = false;
      item.y.forEach((y, index) => {
        if (usable(y)) path += (drawing ? "L" : "M") + place(index, y);
        drawing = usable(y);
      });
      group.append(draw("path", { class: `line ${item.line || "solid"}`, d: path || "M0 0" }));
    }
    if (this.marked(item)) {
      const radius = item.faint ? 2.4 : clamp(((this.box.right - this.box.left) / item.x.length) * 0.33, 1.8, 3.8);
      item.y.forEach((y, index) => {
        if (!usable(y)) return;
        const kind = item.marks ? item.marks[index] : item.colour;
        const shape = mark(kind, across(item.x[index]), up(y), radius);
        shape.setAttribute("class", item.marks ? `mark k${kind % 4}` : "mark");
        group.append(shape);
      });
    }
    plot.append(group);
  }

  point(event) {
    const x = event.clientX - this.stage.getBoundingClientRect().left;
    let best = 0;
    this.places.forEach((place, index) => {
      if (Math.abs(this.across(place) - x) < Math.abs(this.across(this.places[best]) - x)) best = index;
    });
    this.show(best);
  }

  key(event) {
    const last = this.places.length - 1;
    const now = this.at === null ? -1 : this.at;
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last, PageUp: now + 10, PageDown: now - 10 };
    if (event.key === "Escape") this.leave();
    else if (event.key in moves) {
      event.preventDefault();
      this.show(clamp(moves[event.key], 0, last), true);
    }
  }

  show(index, spoken = false) {
    this.at = index;
    const place = this.places[index];
    const { spec, shown } = this;
    const head = (spec.heads || {})[String(place)] || `${spec.x.label} ${spec.x.whole ? place : digits(place)}`;
    const lines = [make("strong", { class: "text" }, head)];
    const texts = [];
    let height = null;
    this.cursor.replaceChildren(draw("path", { d: `M${this.across(place)} ${this.box.top}V${this.box.bottom}` }));
    for (const item of shown) {
      const found = item.x.map((_, at) => at).filter((at) => item.x[at] === place && item.y[at] !== null);
      if (!found.length) continue;
      const text = found.length === 1 ? this.words(item, found[0]) : this.range(item, found);
      const name = shown.length > 1 ? make("span", { class: "text" }, `${item.name}: `) : null;
      lines.push(make("span", { class: "row" }, shown.length > 1 ? this.sample(item) : null, name, make("b", {}, text)));
      texts.push(shown.length > 1 ? `${item.name}: ${text}` : `${spec.y.label.replace(/ \(%\)$/, "")} ${text}`);
      const y = item.y[found[0]];
      if (!spec.y.log || y > 0) {
        height = height === null ? this.up(y) : height;
        this.cursor.append(draw("circle", { cx: this.across(place), cy: this.up(y), r: 5.5 }));
      }
    }
    const narrow = this.width < NARROW;
    if (!narrow) this.tooltip.show(this.across(place), height === null ? this.box.top : height, lines);
    this.readout.textContent = spoken || narrow ? `${head}. ${texts.join("; ")}` : "";
  }

  value(y) {
    return this.spec.y.percent ? (y !== 0 && Math.abs(y) < 0.005 ? `${digits(y, 3)} %` : percent(y)) : digits(y);
  }

  words(item, index) {
    const value = this.value(item.y[index]);
    if (!item.low || item.low[index] === null || item.high[index] === null) return value;
    const ends = [item.low[index], item.high[index]].map((end) => (this.spec.y.percent ? end.toFixed(2) : digits(end)));
    return `${value} (${ends.join(" to ")})`;
  }

  range(item, found) {
    const values = found.map((at) => item.y[at]);
    return `${found.length} from ${this.value(Math.min(...values))} to ${this.value(Math.max(...values))}`;
  }

  leave() {
    this.at = null;
    this.cursor?.replaceChildren();
    this.tooltip.hide();
  }
}

function mark(kind, x, y, radius) {
  return MARKS[kind % MARKS.length](x, y, radius);
}
