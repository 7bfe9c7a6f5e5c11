"use strict";
// The list of features: filters, sorts and turns pages as the server does, out of columns that were written for it.
const form = document.getElementById("choose");
const listed = document.getElementById("listed");
const columnOf = Object.fromEntries(facts.columns.map((column) => [column.key, column]));
const normal = { state: "alive", sort: "interest", columns: facts.shown.join(","), page: "1" };
const fields = ["dictionary", "site", "kind", "state", "marked", "token", "low", "high", "score", "kurtosis", "back", "sort", "up", "columns"].filter((name) => name in form.elements);
const marks = ["labelled", "pinned", "explained", "ablated", "member"];

function chosen(said) {
  const query = Object.fromEntries(new URLSearchParams(said));
  return { ...normal, ...Object.fromEntries(Object.entries(query).filter(([, value]) => value !== "")) };
}

// parameters of an address, what is as ever left out
function choice(query) {
  const names = [...fields, "page"].filter((name) => query[name] && query[name] !== normal[name]);
  return Object.fromEntries(names.map((name) => [name, query[name]]));
}

function fill(query) {
  for (const name of fields) {
    const field = form.elements[name];
    if (field.type === "checkbox") field.checked = Boolean(query[name]);
    else field.value = query[name] ?? "";
  }
  const columns = query.columns.split(",");
  for (const box of form.querySelectorAll("[data-column]")) box.checked = columns.includes(box.dataset.column);
  for (const show of slides) show();
}

async function kept(query) {
  const wanted = facts.dictionaries.filter((d) => (!query.dictionary || d.key === query.dictionary.slice(0, 12)) && (!query.site || d.site === query.site));
  if (!wanted.length) throw new Error("no such dictionary or site is in this export");
  const tables = await Promise.all(wanted.map((d) => shard(`list/${d.key}`)));
  const having = query.token ? await withToken(query.token) : null;
  const [low, high] = [Number(query.low ?? 0), Number(query.high ?? 1)];
  const least = ["score", "kurtosis", "back"].filter((name) => query[name] !== undefined).map((name) => [name, Number(query[name])]);
  const rows = [];
  tables.forEach((table, which) => {
    const marked = query.marked ? new Set(table[query.marked]) : null;
    table.numbers.forEach((number, i) => {
      const dead = table.kinds[i] === "dead";
      if (query.state !== "all" && dead !== (query.state === "dead")) return;
      if (query.kind && table.kinds[i] !== query.kind) return;
      if (marked && !marked.has(i)) return;
      const { density } = table.values;
      if ((low > 0 && !(density[i] >= low)) || (high < 1 && !(density[i] <= high))) return;
      if (least.some(([name, value]) => table.values[name][i] === null || table.values[name][i] < value)) return;
      if (having && !having.has(`${wanted[which].key}/${number}`)) return;
      rows.push({ dictionary: wanted[which], table, i, number, rank: table.ranks[query.sort][i] });
    });
  });
  const down = columnOf[query.sort].down !== Boolean(query.up) ? -1 : 1;
  const order = (a, b) => (a.rank === null) - (b.rank === null) || down * (a.rank - b.rank) || a.dictionary.id - b.dictionary.id || a.number - b.number;
  return { rows: rows.sort(order), densities: query.dictionary ? tables[0].densities : null };
}

async function withToken(token) {
  const name = beginning(token);
  const { tokens } = facts.shards.includes(name) ? await shard(`words/${name}`) : { tokens: {} };
  const postings = Object.hasOwn(tokens, token) ? tokens[token] : [];
  const places = new Set();
  for (let i = 1; i < postings.length; i += 3) places.add(`${facts.dictionaries[postings[i]].key}/${postings[i + 1]}`);
  return places;
}

function row({ dictionary, table, i, number }, query) {
  const pin = table.pinned.includes(i) ? ' <span title="pinned" role="img" aria-label="pinned">★</span>' : "";
  const cells = query.columns.split(",").map((key) => `<td>${table.shown[key][i] ?? '<span class="na">–</span>'}</td>`);
  const link = `<a href="${featureAddress(dictionary.key, number)}">${number}</a>`;
  const head = `<th scope="row">${link}${pin}${query.dictionary ? "" : unit(dictionary.title)}</th>`;
  return `<tr data-row="${dictionary.key}/${number}">${head}\n<td class="words">${table.words[i]}</td>\n${cells.join("")}</tr>`;
}

function headOf(key, query) {
  const column = columnOf[key];
  const again = query.sort === key && !query.up;
  const to = address("features.html", choice({ ...query, sort: key, up: again ? "1" : "", page: "" }));
  const way = query.sort === key ? ` aria-sort="${column.down === Boolean(query.up) ? "ascending" : "descending"}"` : "";
  return `<th scope="col" title="${escaped(column.about)}"${way}><a href="${escaped(to)}">${escaped(column.label)}</a></th>`;
}

function drawn(rows, densities, query) {
  const total = rows.length;
  const pages = Math.max(1, Math.ceil(total / facts.page));
  const page = Math.min(pages, Math.max(1, Number(query.page) || 1));
  const turned = (step) => escaped(address("features.html", choice({ ...query, page: String(page + step) })));
  const count = `${total.toLocaleString("en")} feature${total === 1 ? "" : "s"}${pages > 1 ? `, page ${page} of ${pages.toLocaleString("en")}` : ""}`;
  const parts = [`<p class="count" aria-live="polite">${count}</p>`];
  if (densities) parts.push(`<details class="overview-density"><summary>How often features are active</summary><figure>${densities}</figure></details>`);
  if (!total) return [...parts, '<p class="lead">No feature is like this; widen the filters.</p>'].join("\n");
  const heads = query.columns.split(",").map((key) => headOf(key, query)).join("");
  const body = rows.slice((page - 1) * facts.page, page * facts.page).map((each) => row(each, query)).join("\n");
  parts.push(`<div class="scroll" role="region" tabindex="0" aria-label="Features">
<table class="list">
<thead><tr><th scope="col">Feature</th><th scope="col" class="words">Mostly on</th>${heads}</tr></thead>
<tbody>
${body}
</tbody>
</table>
</div>`);
  const before = page > 1 ? `<a rel="prev" href="${turned(-1)}">← before</a>` : "";
  const after = page < pages ? `<a rel="next" href="${turned(1)}">after →</a>` : "";
  if (query.columns.split(",").includes("reappears")) parts.push(`<p class="guide">Comes back: ${escaped(columnOf.reappears.about)}.</p>`);
  return [...parts, `<p class="turn">${before} ${after}</p>`].join("\n");
}

follow(async (said, latest) => {
  const { random, ...query } = chosen(said);
  const columns = query.columns.split(",");
  const wrong = [query.sort, ...columns].find((key) => !Object.hasOwn(columnOf, key)) ?? (query.marked && !marks.includes(query.marked) ? query.marked : undefined);
  if (wrong !== undefined) throw new Error(`${wrong} is no column or mark of the list`);
  fill(query);
  const { rows, densities } = await kept(query);
  if (!latest()) return;
  if (random && rows.length) {
    const { dictionary, number } = rows[Math.floor(Math.random() * rows.length)];
    location.replace(featureAddress(dictionary.key, number));
    return;
  }
  const dictionary = query.dictionary ? facts.dictionaries.find((d) => d.key === query.dictionary.slice(0, 12)) : null;
  document.querySelector("h1").textContent = dictionary?.title ?? query.site ?? "All features";
  form.querySelector("a[data-key=r]").href = address("features.html", { ...choice({ ...query, page: "" }), random: "1" });
  listed.innerHTML = drawn(rows, densities, query);
  remember();
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = new URLSearchParams(choice(Object.fromEntries(new FormData(form))));
});
