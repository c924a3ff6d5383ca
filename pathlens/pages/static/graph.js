// Puts the graph, its tools and what is said of it into the places that the page has for them.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [stage, tools, readout] = ["stage", "tools", "readout"].map((id) => document.getElementById(id));
  const panel = new Panel(document.getElementById("panel"));
  const view = new (data.kind === "lattice" ? Cells : Drawn)(stage, panel, readout, data);
  const input = make("input", { type: "search", id: "filter", placeholder: data.kind === "lattice" ? "module of a block" : "name, module, operation", autocomplete: "off", spellcheck: "false" });
  const status = make("span", { class: "status", role: "status" });
  const button = (text, label, act) => {
    const made = make("button", { type: "button", "aria-label": label, title: label }, text);
    made.addEventListener("click", act);
    return made;
  };
  const zooms = make("span", { class: "zooms", role: "group", "aria-label": "Zoom" }, button("−", "Zoom out", () => view.zoom(1 / 1.4)), button("+", "Zoom in", () => view.zoom(1.4)), button("Whole", "Show the whole graph", () => view.view.fit()), button("Start", "As it was at first", () => view.view.goHome()));
  tools.append(make("label", { for: "filter" }, "Find"), input, status, zooms);
  if (view.legend) tools.after(view.legend);
  input.addEventListener("input", () => {
    const count = view.filter(input.value);
    status.textContent = count === null ? "" : `${grouped(count)} of ${grouped(view.total)} ${view.unit}${count ? "; Enter goes on" : ""}`;
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") view.next(event.shiftKey ? -1 : 1);
  });
  stage.hidden = false;
})();
