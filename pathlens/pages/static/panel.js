// What is said of the node or edge under the pointer, or of the one that was chosen; and what all graphs share.

class Panel {
  constructor(host) {
    this.host = host;
    this.empty = [...host.childNodes];
  }

  show({ title, facts, links }) {
    const rows = facts.map(([label, value]) => make("div", {}, make("dt", { class: "text" }, label), make("dd", { class: "text" }, ...breakable(value))));
    const parts = [make("h2", { class: "text" }, title), make("dl", { class: "facts" }, ...rows)];
    for (const { label, items } of links.filter(({ items }) => items.length)) {
      const some = items.slice(0, 40); // the input of a tree leads to a thousand
      const entries = some.map(({ text, go }) => {
        const button = make("button", { type: "button", class: "link text" }, text);
        button.addEventListener("click", go);
        return make("li", {}, button);
      });
      if (items.length > some.length) entries.push(make("li", { class: "none" }, `and ${grouped(items.length - some.length)} more`));
      parts.push(make("h3", {}, label), make("ul", { class: "links" }, ...entries));
    }
    this.host.replaceChildren(...parts);
    this.host.scrollTop = 0;
  }

  clear() {
    this.host.replaceChildren(...this.empty);
  }
}

/** Text in which long numbers may be broken between their groups of digits. */
function breakable(text) {
  return /^[\d,]{20,}$/.test(text) ? text.split(/(?<=,)/).flatMap((group) => [group, make("wbr")]) : [text];
}

/** Which node or edge is shown: the one under the pointer, else the one that was chosen by click or keys. */
class View {
  constructor(stage, panel, readout) {
    Object.assign(this, { stage, panel, readout, over: null, chosen: null, found: [], turn: -1 });
    this.tooltip = new Tooltip(stage);
    stage.addEventListener("keydown", (event) => this.key(event));
    stage.addEventListener("blur", () => this.tooltip.hide());
  }

  /** The events of a viewport. */
  get events() {
    return {
      changed: () => this.draw(),
      hovered: (x, y) => this.hover(x, y),
      left: () => this.hover(-1, -1),
      tapped: (x, y) => this.choose(this.hit(x, y)),
    };
  }

  get target() {
    return this.over || this.chosen;
  }

  hover(x, y) {
    const found = x < 0 ? null : this.hit(x, y);
    const same = (found && this.name(found)) === (this.over && this.name(this.over));
    this.over = found;
    if (!same) this.refresh();
    if (found && this.stage.clientWidth >= NARROW) this.tooltip.show(x, y, this.brief(found));
    else this.tooltip.hide();
  }

  choose(target, spoken = false) {
    this.chosen = target;
    this.over = null;
    this.tooltip.hide();
    this.refresh();
    if (target && spoken) {
      this.view.reveal(...this.middle(target));
      this.readout.textContent = this.sentence(target);
    }
  }

  refresh() {
    const { target } = this;
    this.light(target);
    if (target) this.panel.show(this.describe(target));
    else this.panel.clear();
    this.stage.dataset.at = target ? this.name(target) : "";
    if (!target) this.readout.textContent = "";
  }

  brief(target) {
    const { title, lines } = this.describe(target);
    return [make("strong", { class: "text" }, title), ...lines.map((line) => make("span", { class: "row text" }, line))];
  }

  sentence(target) {
    const { title, lines } = this.describe(target);
    return `${[title, ...lines].join(", ")}.`;
  }

  /** About what is chosen, where it is in view. */
  zoom(factor) {
    const [x, y] = this.chosen ? this.view.toStage(...this.middle(this.chosen)) : [-1, -1];
    if (x > 0 && y > 0 && x < this.view.width && y < this.view.height) this.view.zoom(factor, x, y);
    else this.view.zoom(factor);
  }

  key(event) {
    const pans = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") this.choose(null);
    else if (["+", "="].includes(event.key)) this.zoom(1.4);
    else if (["-", "_"].includes(event.key)) this.zoom(1 / 1.4);
    else if (event.key === "0") this.view.fit();
    else if (event.shiftKey && event.key in pans) this.view.pan(...pans[event.key]);
    else {
      const next = this.walk(event.key);
      if (!next) return;
      this.choose(next, true);
    }
    event.preventDefault();
  }

  /** Mark what a filter finds; the number of those found, or null without a filter. */
  filter(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.found = words.length ? this.search((name) => words.every((word) => name.includes(word))) : [];
    this.turn = -1;
    this.mark(words.length > 0);
    return words.length ? this.found.length : null;
  }

  /** Go to the next, or the one before, of those found. */
  next(step) {
    if (!this.found.length) return;
    this.turn = this.turn < 0 ? (step > 0 ? 0 : this.found.length - 1) : (this.turn + step + this.found.length) % this.found.length;
    this.choose(this.targetOf(this.found[this.turn]), true);
  }

  /** By a button of the panel, which is gone then. */
  follow(target) {
    this.choose(target, true);
    this.stage.focus({ preventScroll: true });
  }
}
