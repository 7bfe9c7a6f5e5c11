"use strict";
// What every page of an export does instead of asking a server: shards of data are scripts, since a page that is opened
// from a disk may load nothing else; what a page shows stands behind the # of its address.
const root = new URL("..", document.currentScript.src);
const main = document.getElementById("main");
const facts = JSON.parse(document.getElementById("facts")?.textContent ?? "{}");
const shards = new Map();
const arrived = new Map();

function shard(name) {
  if (!shards.has(name)) {
    shards.set(name, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      arrived.set(name, resolve);
      script.onerror = () => {
        shards.delete(name);
        reject(new Error(`${name} is not in this export`));
      };
      script.src = new URL(`data/${name}.js`, root);
      document.head.append(script);
    }));
  }
  return shards.get(name);
}

function monolexShard(name, packed) {
  const letters = atob(packed);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = letters.charCodeAt(i);
  const whole = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  arrived.get(name)?.(new Response(whole).json());
}

const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const address = (page, choice = {}) => {
  const said = new URLSearchParams(Object.entries(choice).filter(([, value]) => value !== "" && value !== undefined));
  return String(said) ? `${page}#${said}` : page;
};
const featureAddress = (key, number) => `feature.html#${key}/${number}`;
const unit = (title) => `<span class="unit">${escaped(title)}</span>`;

// A page that shows what its address says, now and whenever that changes; of two that overlap the later one counts.
function follow(show) {
  let latest = 0;
  const again = async () => {
    const turn = (latest += 1);
    try {
      await show(location.hash.slice(1), () => turn === latest);
    } catch (error) {
      if (turn === latest) say(error.message);
    }
  };
  addEventListener("hashchange", again);
  // a link within the page would take the place of what the page shows
  document.addEventListener("click", (event) => {
    const place = event.target.closest?.('a[href^="#"]')?.getAttribute("href").slice(1);
    if (!place) return;
    event.preventDefault();
    document.getElementById(place)?.scrollIntoView();
    document.getElementById(place)?.focus();
  });
  again();
}

function say(sentence) {
  const place = document.getElementById("listed") ?? main;
  const said = document.createElement("p");
  said.className = "lead";
  said.setAttribute("role", "alert");
  said.textContent = sentence;
  place.replaceChildren(said);
}

document.querySelector(".seek").addEventListener("submit", (event) => {
  event.preventDefault();
  location.assign(address(event.target.action, { q: event.target.elements.q.value }));
});

// In which shard a token or a word is: by its first letter or digit without accents, or the block of that.
const folded = (text) => text.normalize("NFD").replace(/[\u0300-\u036f]/g, "").normalize("NFC").toLowerCase();
function beginning(text) {
  const first = folded(text).match(/[\p{L}\p{N}]/u)?.[0] ?? "";
  if (first === "" || first < "\x80") return first || "_";
  return `u${(first.codePointAt(0) >> 8).toString(16)}`;
}
