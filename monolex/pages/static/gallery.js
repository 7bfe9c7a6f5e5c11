"use strict";
// Sorts and hides the cards. What is chosen stands after the # of the address, so a view can be kept and sent.
const form = document.getElementById("choose");
const list = document.getElementById("cards");
const fields = ["sort", "token", "kind", "min", "max", "back", "dead"].map((name) => form.elements[name]).filter(Boolean);
const cards = [...list.children].map((element) => ({
  element,
  kind: element.dataset.kind,
  tokens: JSON.parse(element.dataset.tokens),
  score: Number(element.dataset.score ?? -Infinity),
  ...Object.fromEntries(["id", "interest", "density", "max", "kurtosis", "share", "reappears"].map((key) => [key, Number(element.dataset[key])])),
}));

function chosen() {
  const state = new URLSearchParams();
  for (const field of fields) {
    const value = field.type === "checkbox" ? (field.checked ? "1" : "") : field.value;
    if (value && !(field.name === "sort" && value === "interest")) state.set(field.name, value);
  }
  return state;
}

function fill(state) {
  for (const field of fields) {
    const value = state.get(field.name) ?? "";
    if (field.type === "checkbox") field.checked = value === "1";
    else field.value = value;
    if (field.name === "sort" && field.selectedIndex < 0) field.value = "interest";
    if (field.name === "kind" && field.selectedIndex < 0) field.value = "";
  }
}

function show(state) {
  const sort = state.get("sort") ?? "interest";
  const key = sort.replace("-", "");
  const sign = sort === "density" || sort === "id" ? 1 : -1;
  const token = (state.get("token") ?? "").toLowerCase().replaceAll("\\n", "\n").replaceAll("\\t", "\t");
  const low = Number(state.get("min") ?? 0) / 100;
  const high = Number(state.get("max") ?? 100) / 100;
  const kind = state.get("kind");
  const back = Number(state.get("back") ?? 0) / 100;
  let count = 0;
  cards.sort((a, b) => (a.kind === "dead") - (b.kind === "dead") || sign * (a[key] - b[key]) || a.id - b.id);
  for (const card of cards) {
    const dead = card.kind === "dead";
    const keep =
      (dead ? state.get("dead") === "1" : card.density >= low && card.density <= high) &&
      (!kind || dead || card.kind === kind) &&
      (dead || card.reappears >= back) &&
      (!token || card.tokens.some((text) => text.includes(token)));
    card.element.hidden = !keep;
    count += keep;
  }
  list.append(...cards.map((card) => card.element));
  form.querySelector("output").textContent = count ? `${count.toLocaleString("en")} shown` : "none: widen the filters";
}

// An address is either a choice (#sort=density) or a card (#feature-17), which is shown whatever the filters.
function follow() {
  const hash = location.hash.slice(1);
  const card = hash.includes("=") ? null : document.getElementById(hash);
  if (card) {
    card.hidden = false;
    card.scrollIntoView();
    return;
  }
  const state = new URLSearchParams(hash.includes("=") ? hash : "");
  fill(state);
  show(chosen());
}

function changed() {
  const state = chosen();
  history.replaceState(null, "", `#${state}`);
  show(state);
}

form.addEventListener("input", changed);
form.addEventListener("reset", () => setTimeout(changed));
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", follow);
follow();
