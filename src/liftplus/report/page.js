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
  const at = (key) => columns.findIndex((column) => column.key === key);
  const NUMBER = at("number"), ID = at("id");
  const texts = rows.map((row) => `${row[0]}\n${ID < 0 ? "" : row[ID]}`.toLowerCase());
  let sorted = { column: at("train"), sign: -1 };
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
    if (kind === "text") cell.className = k ? "words" : "name";
    if (value === null) { cell.textContent = "–"; return; }
    if (kind === "text") { cell.append(named(value)); return; }
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
  const lines = (indices) => {
    const body = document.createDocumentFragment();
    for (const index of indices) {
      const line = document.createElement("tr");
      for (const k of columns.keys()) {
        const cell = document.createElement("td");
        fill(cell, k, rows[index][k]);
        line.append(cell);
      }
      body.append(line);
    }
    table.tBodies[0].replaceChildren(body);
  };
  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    place = Math.min(Math.max(place, 0), pages - 1);
    lines(found.slice(place * PAGE, (place + 1) * PAGE));
    document.getElementById("shown").textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} classes`;
    document.getElementById("page").textContent = `Page ${place + 1} of ${pages}`;
    document.getElementById("back").disabled = place === 0;
    document.getElementById("next").disabled = place === pages - 1;
  };
  const select = () => {
    const words = search.value.trim().toLowerCase(), wanted = group.value;
    const fits = (index) => texts[index].includes(words) || String(rows[index][NUMBER]) === words;
    found = [...rows.keys()].filter((index) => fits(index) && (!wanted || rows[index][at("group")] === wanted));
    found.sort(compare(sorted.column, sorted.sign));
    place = 0;
    draw();
  };
  const head = table.tHead.rows[0];
  for (const k of columns.keys()) {
    const cell = document.createElement("th"), button = document.createElement("button");
    cell.scope = "col"; button.type = "button"; button.textContent = columns[k].title; button.title = columns[k].title;
    if (["text", "group"].includes(columns[k].kind)) cell.style.textAlign = "left";
    button.addEventListener("click", () => {
      const first = columns[k].kind === "text" || columns[k].kind === "group" || columns[k].kind === "percent" || k === NUMBER ? 1 : -1;
      sorted = { column: k, sign: sorted.column === k ? -sorted.sign : first };
      mark(); select();
    });
    cell.append(button); head.append(cell);
  }
  const mark = () => columns.forEach((_, k) => {
    const cell = head.cells[k];
    if (k === sorted.column) cell.setAttribute("aria-sort", sorted.sign > 0 ? "ascending" : "descending"); else cell.removeAttribute("aria-sort");
  });
  let timer;
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(select, 80); });
  group.addEventListener("change", select);
  document.getElementById("back").addEventListener("click", () => { place -= 1; draw(); });
  document.getElementById("next").addEventListener("click", () => { place += 1; draw(); });
  mark(); select();
  // Paper has no pager, so it gets every class; a search on the screen does not hide any.
  addEventListener("beforeprint", () => lines([...rows.keys()].sort(compare(sorted.column, sorted.sign))));
  addEventListener("afterprint", draw);
})();
(() => {
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const part of closed) part.open = true;
  });
  addEventListener("afterprint", () => { for (const part of closed) part.open = false; closed = []; });
})();
