"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const choices = ["auto", "light", "dark"];
  const words = { auto: "as the system", light: "light", dark: "dark" };
  const stored = () => { try { return localStorage.getItem("liftplus-theme"); } catch { return null; } };
  const show = (choice) => {
    if (choice === "auto") root.removeAttribute("data-theme"); else root.setAttribute("data-theme", choice);
    button.textContent = choice[0].toUpperCase() + choice.slice(1);
    button.setAttribute("aria-label", `Colours: ${words[choice]}`);
    button.dataset.choice = choice;
  };
  show(choices.includes(stored()) ? stored() : "auto");
  button.addEventListener("click", () => {
    const choice = choices[(choices.indexOf(button.dataset.choice) + 1) % choices.length];
    try { localStorage.setItem("liftplus-theme", choice); } catch { /* a page from a file may not keep anything */ }
    show(choice);
  });
})();
(() => {
  const source = document.getElementById("classes-data");
  if (!source) return;
  const { columns, rows } = JSON.parse(source.textContent);
  const PAGE = 50;
  const table = document.getElementById("table");
  const search = document.getElementById("search");
  const group = document.getElementById("group");
  const byName = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const order = ["many", "medium", "few"];
  const texts = rows.map((row) => `${row[0]}\n${row[1]}`.toLowerCase());
  const visible = columns.map((column, k) => k).filter((k) => columns[k].kind !== "id");
  let sorted = { column: columns.findIndex((column) => column.key === "train"), sign: -1 };
  let place = 0;
  let found = [];

  const compare = (k, sign) => (a, b) => {
    const x = rows[a][k], y = rows[b][k];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    const kind = columns[k].kind;
    const difference = kind === "text" ? byName.compare(x, y) : kind === "group" ? order.indexOf(x) - order.indexOf(y) : x - y;
    return sign * difference || a - b;
  };
  const named = (text) => { const part = document.createElement("bdi"); part.textContent = text; part.title = text; return part; };
  const fill = (cell, k, value) => {
    const kind = columns[k].kind;
    if (value === null) { cell.textContent = "–"; return; }
    if (kind === "text") { cell.className = k ? "words" : "name"; cell.append(named(value)); return; }
    if (kind === "group") {
      const tag = document.createElement("span");
      tag.className = "tag"; tag.textContent = value; tag.style.setProperty("--g", `var(--${value})`);
      cell.className = "kind"; cell.append(tag); return;
    }
    cell.textContent = kind === "percent" ? value.toFixed(1) : value.toLocaleString("en");
    if (kind === "percent") {
      const bar = document.createElement("i");
      bar.style.setProperty("--v", `${value}%`); bar.style.setProperty("--c", `var(--s${columns[k].colour})`);
      cell.className = "meter"; cell.append(bar);
    }
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    place = Math.min(Math.max(place, 0), pages - 1);
    const body = document.createDocumentFragment();
    for (const index of found.slice(place * PAGE, (place + 1) * PAGE)) {
      const line = document.createElement("tr");
      for (const k of visible) {
        const cell = document.createElement("td");
        fill(cell, k, rows[index][k]);
        if (columns[k].key === "test") cell.classList.add("extra");
        line.append(cell);
      }
      body.append(line);
    }
    table.tBodies[0].replaceChildren(body);
    document.getElementById("shown").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} classes`;
    document.getElementById("page").textContent = `Page ${place + 1} of ${pages}`;
    document.getElementById("back").disabled = place === 0;
    document.getElementById("next").disabled = place === pages - 1;
  };
  const select = () => {
    const words = search.value.trim().toLowerCase(), wanted = group.value;
    const at = columns.findIndex((column) => column.kind === "group");
    found = rows.map((_, index) => index).filter((index) => texts[index].includes(words) && (!wanted || rows[index][at] === wanted));
    found.sort(compare(sorted.column, sorted.sign));
    place = 0;
    draw();
  };
  const head = table.tHead.rows[0];
  for (const k of visible) {
    const cell = document.createElement("th"), button = document.createElement("button");
    if (columns[k].key === "test") cell.className = "extra";
    cell.scope = "col"; button.type = "button"; button.textContent = columns[k].title; button.title = columns[k].title;
    if (["text", "group"].includes(columns[k].kind)) cell.style.textAlign = "left";
    button.addEventListener("click", () => {
      const first = columns[k].kind === "text" || columns[k].kind === "group" || columns[k].kind === "percent" ? 1 : -1;
      sorted = { column: k, sign: sorted.column === k ? -sorted.sign : first };
      mark(); select();
    });
    cell.append(button); head.append(cell);
  }
  const mark = () => visible.forEach((k, n) => {
    const cell = head.cells[n];
    if (k === sorted.column) cell.setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending"); else cell.removeAttribute("aria-sort");
  });
  let timer;
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(select, 80); });
  group.addEventListener("change", select);
  document.getElementById("back").addEventListener("click", () => { place -= 1; draw(); });
  document.getElementById("next").addEventListener("click", () => { place += 1; draw(); });
  mark(); select();
})();
