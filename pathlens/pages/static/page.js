// Puts charts, lattices and tables into the places that the page has for them.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tables = new Map();
  const table = (run, index) => {
    const key = `${run}:${index}`;
    if (!tables.has(key)) tables.set(key, new Table(data.runs[run].tables[index]));
    return tables.get(key);
  };
  for (const host of document.querySelectorAll("[data-chart]")) {
    const [run, index] = host.dataset.chart.split(":");
    const spec = (run === "together" ? data.together : data.runs[run].charts)[index];
    if (spec.surfaces) new ContourMap(host, spec);
    else new Chart(host, spec);
  }
  for (const host of document.querySelectorAll("[data-lattice]")) {
    const [run, ...stem] = host.dataset.lattice.split(":");
    const facts = data.runs[run].lattices[stem.join(":")];
    new Lattice(host, table(run, facts.table), facts);
  }
  for (const host of document.querySelectorAll("[data-table]")) {
    const [run, index] = host.dataset.table.split(":");
    let built = false;
    const build = () => {
      if (built || !host.open) return;
      built = true;
      new TableView(host, table(run, index), `${data.runs[run].tables[index].stem}, ${data.runs[run].label}`);
    };
    host.addEventListener("toggle", build);
    build();
  }
})();
