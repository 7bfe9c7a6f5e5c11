"use strict";
// A search: ranked as the server ranks it, out of counts of tokens and words that were written for it.
const listed = document.getElementById("listed");
const [K1, B] = [1.2, 0.75]; // of BM25, as SQLite has them
const EXPLANATIONS = 2; // a word of an explanation weighs twice one of a token
const EXPLAINED = "in an explanation of it";
const byWeight = (a, b) => b.weight - a.weight || a.d - b.d || a.number - b.number;

const number = (value) => {
  const rounded = Number(value.toPrecision(3));
  const exponent = rounded === 0 ? 2 : Math.floor(Math.log10(Math.abs(rounded)));
  if (exponent < -3) return value.toExponential(2).replace(/e-(\d)$/, "e-0$1");
  return value.toFixed(Math.max(0, 2 - exponent));
};
const percent = (share) => `${share >= 0.9995 ? 100 : number(100 * share)} %`;

async function shardOf(text) {
  const name = beginning(text);
  return facts.shards.includes(name) ? shard(`words/${name}`) : { tokens: {}, words: {} };
}

function byLabel(text) {
  const bare = text.trim().toLowerCase();
  const said = ([, , label, note]) => bare && (label.toLowerCase().includes(bare) || note.toLowerCase().includes(bare));
  return facts.labels.filter(said).map(([d, number, , , reason]) => ({ d, number, reason }));
}

// the token that is shown so, with and without a space before, as written and in small
async function byToken(text, told) {
  const shown = text.replace(/␣×([0-9]+)/g, (_, count) => " ".repeat(count)).replace(/[␣↵→␍⍽]/g, (sign) => facts.pictures[sign]);
  const bare = text.trim();
  const looks = new Set([text, shown, bare, ` ${bare}`, bare.toLowerCase(), ` ${bare.toLowerCase()}`].filter(Boolean));
  const hits = new Map();
  for (const look of looks) {
    const { tokens } = await shardOf(look);
    const [quoted, ...postings] = Object.hasOwn(tokens, look) ? tokens[look] : [];
    for (let i = 0; i < postings.length; i += 3) {
      const [d, number, share] = postings.slice(i, i + 3);
      const hit = hits.get(`${d}/${number}`) ?? { d, number, share: 0, quoted: [] };
      hit.share += share;
      hit.quoted.push([share, quoted]);
      hits.set(`${d}/${number}`, hit);
    }
  }
  const reason = (hit) => `${percent(hit.share)} of its activation is on ${hit.quoted.map(([, text]) => text).join(" and ")}`;
  return [...hits.values()].map((hit) => ({ ...hit, weight: hit.share * Math.min(1, told(hit).active / facts.enough), reason: reason(hit) })).sort(byWeight).slice(0, facts.deep);
}

// BM25 over explanations and tokens; with longer the last word may be the beginning of one
async function byWords(text, told, corpus, longer) {
  const words = folded(text).split(/[^\p{L}\p{N}\p{Co}]+/u).filter(Boolean);
  const phrases = [];
  for (const [place, word] of words.entries()) {
    const known = (await shardOf(word)).words;
    const terms = place < words.length - 1 || !longer ? [word].filter((term) => Object.hasOwn(known, term)) : Object.keys(known).filter((term) => term.startsWith(word));
    const counts = new Map();
    for (const term of terms) {
      for (let i = 0; i < known[term].length; i += 4) {
        const [d, number, explained, said] = known[term].slice(i, i + 4);
        const hit = counts.get(`${d}/${number}`) ?? { d, number, count: 0, explained: 0 };
        hit.count += EXPLANATIONS * explained + said;
        hit.explained += explained;
        counts.set(`${d}/${number}`, hit);
      }
    }
    phrases.push(counts);
  }
  if (!phrases.length) return [];
  const inverse = phrases.map(({ size }) => Math.max(1e-6, Math.log((corpus.rows - size + 0.5) / (size + 0.5))));
  const hits = [...phrases[0]].filter(([name]) => phrases.every((counts) => counts.has(name))).map(([name, { d, number }]) => {
    const long = 1 - B + (B * told({ d, number }).length) / corpus.mean;
    const weight = phrases.reduce((sum, counts, i) => sum + (inverse[i] * counts.get(name).count * (K1 + 1)) / (counts.get(name).count + K1 * long), 0);
    const explained = phrases.every((counts) => counts.get(name).explained > 0);
    return { d, number, weight, reason: `${longer ? "begins a word " : ""}${explained ? EXPLAINED : "among its tokens"}` };
  });
  return hits.sort(byWeight);
}

// ways of looking, taken in turns: all firsts, all seconds
function merged(ways) {
  const hits = new Map();
  for (const way of ways) {
    way.forEach(({ d, number, reason }, rank) => {
      const hit = hits.get(`${d}/${number}`) ?? { d, number, weight: 0, reasons: [] };
      hit.weight = Math.max(hit.weight, 1 / (1 + rank));
      hit.reasons.push(reason);
      hits.set(`${d}/${number}`, hit);
    });
  }
  return [...hits.values()].sort(byWeight).slice(0, facts.most);
}

function row({ d, number, reasons }, table) {
  const { key, title } = facts.dictionaries[d];
  const i = table.numbers.indexOf(number);
  const pin = table.pinned.includes(i) ? " ★" : "";
  const head = `<th scope="row"><a href="${featureAddress(key, number)}">${number}</a>${pin}${unit(title)}</th>`;
  return `<tr data-row="${key}/${number}">${head}\n<td class="words">${table.words[i]}</td>\n<td class="words">${reasons.join("; ")}</td>\n<td>${table.shown.density[i]}</td></tr>`;
}

async function found(text) {
  const corpus = await shard("documents");
  const places = corpus.dictionaries.map(({ numbers }) => new Map(numbers.map((number, i) => [number, i])));
  const told = ({ d, number }) => {
    const [told, i] = [corpus.dictionaries[d], places[d].get(number)];
    return { active: told.active[i], length: told.lengths[i] };
  };
  const words = await byWords(text, told, corpus, false);
  const explained = words.filter(({ reason }) => reason === EXPLAINED).slice(0, facts.deep);
  const hits = merged([byLabel(text), await byToken(text, told), explained]);
  if (hits.length < facts.most) {
    const known = new Set(hits.map(({ d, number }) => `${d}/${number}`));
    for (const hit of [...words, ...(await byWords(text, told, corpus, true))]) {
      if (hits.length === facts.most) break;
      if (known.has(`${hit.d}/${hit.number}`)) continue;
      known.add(`${hit.d}/${hit.number}`);
      hits.push({ ...hit, reasons: [hit.reason] });
    }
  }
  const tables = await Promise.all(hits.map(({ d }) => shard(`list/${facts.dictionaries[d].key}`)));
  return hits.map((hit, i) => row(hit, tables[i]));
}

follow(async (said, latest) => {
  const text = new URLSearchParams(said).get("q") ?? "";
  document.querySelector(".seek input").value = text;
  const rows = text ? await found(text) : [];
  if (!latest()) return;
  document.title = `${text ? `Search: ${text}` : "Search"} · monolex`;
  document.querySelector("h1").textContent = text ? `${rows.length}${rows.length === facts.most ? " or more" : ""} features for “${text}”` : "Search";
  listed.innerHTML = rows.length ? `<div class="scroll" role="region" tabindex="0" aria-label="Hits">
<table class="list">
<thead><tr><th scope="col">Feature</th><th scope="col" class="words">Mostly on</th><th scope="col" class="words">Why</th><th scope="col">Density</th></tr></thead>
<tbody>
${rows.join("\n")}
</tbody>
</table>
</div>` : text ? '<p class="lead">Nothing. A token is written as pages show it (a space before it matters less than its letters); words are looked for in explanations.</p>' : "";
  remember();
});
