// Puts charts, lattices and tables into the places that the page has for them.

(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => {
    try {
      return localStorage.getItem("pathlens-theme");
    } catch {
      return null; // pages from disk may have no storage
    }
  };
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to the ${isDark() ? "light" : "dark"} theme`);
  };
  if (["dark", "light"].includes(remembered())) root.dataset.theme = remembered();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("pathlens-theme", root.dataset.theme);
    } catch {
      // then for this time only
    }
    label();
  });
  dark.addEventListener("change", label);
  label();

  const data = JSON.parse(document.getElementById("data").textContent);
  const tables = new Map();
  const table = (run, index) => {
    const key = `${run}:${index}`;
    if (!tables.has(key)) tables.set(key, new Table(data.runs[run].tables[index]));
    return tables.get(key);
  };
  for (const host of document.querySelectorAll("[data-chart]")) {
    const [run, index] = host.dataset.chart.split(":");
    new Chart(host, (run === "together" ? data.together : data.runs[run].charts)[index]);
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
