// Tables that sort and filter. Rows are made as they come into view, so that a table may have any number of them.

const CHUNK = 100;

class Column {
  constructor(spec, table) {
    Object.assign(this, { name: spec.name, unit: spec.unit, description: spec.description, type: spec.type });
    this.numeric = ["int", "float", "bigint"].includes(spec.type);
    if (spec.f64 !== undefined) {
      const bytes = Uint8Array.from(atob(spec.f64), (letter) => letter.charCodeAt(0));
      const view = new DataView(bytes.buffer);
      this.values = new Float64Array(bytes.length / 8);
      for (let row = 0; row < this.values.length; row += 1) this.values[row] = view.getFloat64(8 * row, true);
      this.get = (row) => (Number.isNaN(this.values[row]) ? null : this.values[row]);
    } else if (spec.choose !== undefined) {
      this.implied = true;
      this.get = (row) => choose(spec.choose - Math.max(0, table.column("boundary").get(row)), table.column("length").get(row));
    } else {
      this.values = spec.values;
      this.get = spec.type === "bigint" ? (row) => (this.values[row] === null ? null : BigInt(this.values[row])) : (row) => this.values[row];
    }
  }

  /** All digits, as they stand in the file. */
  exact(row) {
    const value = this.get(row);
    return value === null ? "" : String(value);
  }

  text(row) {
    const value = this.get(row);
    if (value === null || value === undefined) return "";
    if (typeof value === "bigint") {
      const all = String(value);
      return all.length > 24 ? rounded(all, 3) : grouped(all);
    }
    if (this.type === "float") return digits(value, 5);
    if (this.type === "int") return Math.abs(value) < 1e4 ? String(value).replace("-", "−") : grouped(value);
    return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
  }
}

class Table {
  constructor(spec) {
    this.stem = spec.stem;
    this.rows = spec.rows;
    this.columns = spec.columns.map((column) => new Column(column, this));
    this.byName = new Map(this.columns.map((column) => [column.name, column]));
  }

  column(name) {
    return this.byName.get(name);
  }

  csv() {
    const cell = (column, row) => {
      const text = column.exact(row);
      return column.type === "str" && column.get(row) !== null ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = [this.columns.map((column) => `"${column.name}"`).join(",")];
    for (let row = 0; row < this.rows; row += 1) lines.push(this.columns.map((column) => cell(column, row)).join(","));
    return `${lines.join("\n")}\n`;
  }
}

const collator = new Intl.Collator(undefined, { numeric: true });

class TableView {
  constructor(host, table, label) {
    this.table = table;
    this.columns = table.columns.filter((column) => column.type !== "null");
    this.order = Int32Array.from({ length: table.rows }, (_, row) => row);
    this.sorted = null;
    this.down = false;
    this.status = make("span", { class: "status", role: "status" });
    const id = `filter-${(TableView.count = (TableView.count || 0) + 1)}`;
    this.filter = make("input", { type: "search", id, placeholder: "text in any column", autocomplete: "off", spellcheck: "false" });
    const save = make("button", { type: "button", class: "small" }, "Save as CSV");
    const tools = make("div", { class: "tools" }, make("label", { for: id }, "Filter"), this.filter, this.status, save);
    this.body = make("tbody");
    this.heads = this.columns.map((column) => this.head(column));
    const grid = make("table", { class: "data", "aria-rowcount": table.rows + 1 }, make("caption", { class: "unseen" }, label), make("thead", {}, make("tr", {}, ...this.heads)), this.body);
    this.more = make("div", { class: "more" });
    this.scroll = make("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": label }, grid, this.more);
    host.append(tools, this.scroll, this.legend());
    let waiting;
    this.filter.addEventListener("input", () => {
      clearTimeout(waiting);
      if (table.rows < 5000) this.update();
      else waiting = setTimeout(() => this.update(), 250);
    });
    save.addEventListener("click", () => {
      const link = make("a", { href: URL.createObjectURL(new Blob([table.csv()], { type: "text/csv" })), download: `${table.stem}.csv` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && this.extend(), { root: this.scroll, rootMargin: "300px" }).observe(this.more);
    this.update();
  }

  head(column) {
    const button = make("button", { type: "button", title: column.description || null }, make("span", { class: "text" }, column.name), make("span", { class: "arrow", "aria-hidden": "true" }));
    const head = make("th", { scope: "col", "aria-sort": "none", class: column.numeric ? "right" : null }, button, column.unit ? make("small", { class: "text" }, column.unit) : null);
    button.addEventListener("click", () => this.sort(column));
    return head;
  }

  legend() {
    const described = this.columns.filter((column) => column.description);
    const empty = this.table.columns.filter((column) => column.type === "null").map((column) => column.name);
    const note = empty.length ? make("p", { class: "readout text" }, `Not shown, because no row has a value: ${empty.join(", ")}.`) : null;
    if (!described.length) return note || "";
    const items = described.map((column) => make("div", {}, make("dt", { class: "code text" }, column.name), make("dd", { class: "text" }, column.description + (column.unit ? ` (${column.unit})` : ""))));
    return make("details", { class: "columns" }, make("summary", {}, "What the columns hold"), make("dl", { class: "facts" }, ...items), note);
  }

  sort(column) {
    // up, down, and back to the order of the file
    if (this.sorted !== column) [this.sorted, this.down] = [column, false];
    else if (!this.down) this.down = true;
    else this.sorted = null;
    this.heads.forEach((head, index) => {
      const own = this.columns[index] === this.sorted;
      head.setAttribute("aria-sort", own ? (this.down ? "descending" : "ascending") : "none");
    });
    this.update();
  }

  update() {
    const { table } = this;
    const words = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = Array.from({ length: table.rows }, (_, row) => row);
    if (words.length) {
      const columns = table.columns.filter((column) => !column.implied); // numbers of many digits, made when they are shown
      rows = rows.filter((row) => {
        const text = columns.map((column) => `${column.exact(row)}\t${column.text(row)}`).join("\t").toLowerCase();
        return words.every((word) => text.includes(word));
      });
    }
    if (this.sorted) rows = this.ordered(rows);
    this.order = rows;
    this.made = 0;
    this.body.replaceChildren();
    this.scroll.scrollTop = 0;
    this.extend();
    this.status.textContent = rows.length === table.rows ? `${grouped(table.rows)} rows` : `${grouped(rows.length)} of ${grouped(table.rows)} rows`;
  }

  ordered(rows) {
    const column = this.sorted;
    const turn = this.down ? -1 : 1;
    const keys = new Map(rows.map((row) => [row, column.get(row)]));
    return rows.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // missing values last, either way
      const order = column.numeric ? (x < y ? -1 : x > y ? 1 : 0) : collator.compare(String(x), String(y));
      return turn * order || a - b;
    });
  }

  extend() {
    const end = Math.min(this.order.length, this.made + CHUNK);
    const { columns } = this;
    for (; this.made < end; this.made += 1) {
      const row = this.order[this.made];
      const cells = columns.map((column) => {
        const [text, exact] = [column.text(row), column.exact(row)];
        return make("td", { class: column.numeric ? "right" : "text", title: text === exact && text.length < 30 ? null : exact }, text);
      });
      this.body.append(make("tr", { "aria-rowindex": this.made + 2 }, ...cells));
    }
    this.more.hidden = this.made >= this.order.length;
  }
}
