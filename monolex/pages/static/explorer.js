"use strict";
// Keys, density sliders, columns and labels. Every page reads without it; what it chooses stands in the address.
// Arrow keys change a select or a slider step by step: then nothing is asked for until a button is pressed.
let byKeys = false;
addEventListener("keydown", () => { byKeys = true; }, true);
addEventListener("pointerdown", () => { byKeys = false; }, true);
const typing = (element) => element.matches("input:not([type=checkbox]):not([type=range]), textarea, select, [contenteditable]");
const rows = () => [...document.querySelectorAll("tr[data-row]")];

function select(step) {
  const listed = rows();
  if (!listed.length) return false;
  const before = listed.findIndex((row) => row.classList.contains("at"));
  const row = listed[Math.min(listed.length - 1, Math.max(0, before + step))];
  listed[before]?.classList.remove("at");
  row.classList.add("at");
  row.scrollIntoView({ block: "nearest" });
  row.querySelector("a")?.focus({ preventScroll: true });
  return true;
}

// On a feature's page the next one is that of the list it was opened from, if that is known, else the next number.
const feature = () => document.querySelector("[data-feature]")?.dataset.feature;
function remember() {
  const listed = rows().map((row) => [row.dataset.row, row.querySelector("a")?.href]);
  if (listed.length) sessionStorage.setItem("list", JSON.stringify(listed));
}
remember();

function turn(step) {
  const listed = JSON.parse(sessionStorage.getItem("list") ?? "[]");
  const place = feature() ? listed.findIndex(([name]) => name === feature()) : -1;
  const next = place < 0 ? undefined : listed[place + step];
  if (next?.[1]) location.assign(next[1]);
  else document.querySelector(`a[rel=${step > 0 ? "next" : "prev"}]`)?.click();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && typing(event.target)) event.target.blur();
  if (typing(event.target)) return;
  const acts = {
    "/": () => document.querySelector(".seek input").focus(),
    j: () => feature() ? turn(1) : select(1) || turn(1),
    k: () => feature() ? turn(-1) : select(-1) || turn(-1),
    n: () => turn(1),
    p: () => turn(-1),
    r: () => document.querySelector("a[data-key=r]")?.click(),
  };
  if (event.key in acts) {
    event.preventDefault();
    acts[event.key]();
  }
});

// Densities are on a decimal logarithm; the left end is zero and the right end is one, where nothing is filtered.
function slideOf(slide) {
  const ends = [...slide.querySelectorAll("input[type=range]")];
  const output = slide.querySelector("output");
  const field = (range) => slide.querySelector(`input[name=${range.dataset.of}]`);
  const value = (range) => {
    const at = Number(range.value);
    if (range.dataset.of === "low") return at <= Number(range.min) ? 0 : 10 ** at;
    return at >= Number(range.max) ? 1 : 10 ** at;
  };
  const said = (share) => `${share === 0 || share === 1 ? share * 100 : Number((share * 100).toPrecision(2))} %`;
  const show = () => { output.textContent = ends.map(value).map(said).join(" to "); };
  const follow = () => {
    for (const range of ends) {
      const held = field(range).value;
      range.value = held === "" ? (range.dataset.of === "low" ? range.min : range.max) : Math.log10(Number(held));
    }
    show();
  };
  for (const range of ends) {
    range.addEventListener("input", () => {
      const [low, high] = ends;
      if (Number(low.value) > Number(high.value)) (range === low ? high : low).value = range.value;
      for (const end of ends) {
        const share = value(end);
        field(end).value = share === 0 || share === 1 ? "" : share.toPrecision(3);
      }
      show();
    });
  }
  follow();
  return follow;
}
// what makes the sliders show what their fields hold
const slides = [...document.querySelectorAll(".slide")].map(slideOf);

const choose = document.getElementById("choose");
if (choose) {
  const columns = choose.querySelector("input[name=columns]");
  const shown = () => [...choose.querySelectorAll("[data-column]")].filter((box) => box.checked).map((box) => box.dataset.column);
  const normal = "density,max,score,reappears,effect";
  // an empty field is no part of an address
  choose.addEventListener("formdata", (event) => {
    if (columns) event.formData.set("columns", shown().join(",") === normal ? "" : shown().join(","));
    for (const [name, value] of [...event.formData]) {
      if (value === "" || (name === "sort" && value === "interest") || (name === "state" && value === "alive")) event.formData.delete(name);
    }
  });
  choose.addEventListener("change", (event) => {
    if (!byKeys && !event.target.matches?.("input[type=number], input[type=search]")) choose.requestSubmit();
  });
}

// Of two dictionaries to be compared the second is one of the space that the first is of.
const [first, second] = choose ? ["a", "b"].map((name) => choose.querySelector(`select[name=${name}]`)) : [];
if (first && second) {
  const offer = () => {
    const space = first.selectedOptions[0]?.parentElement.label;
    for (const group of second.querySelectorAll("optgroup")) {
      group.disabled = group.hidden = space !== undefined && group.label !== space;
      for (const option of group.children) option.disabled = option.value === first.value;
    }
    if (second.selectedOptions[0]?.disabled || second.selectedOptions[0]?.parentElement.disabled) second.value = "";
  };
  first.addEventListener("change", offer);
  offer();
}

const label = document.getElementById("label");
if (label) {
  label.addEventListener("submit", async (event) => {
    event.preventDefault();
    const output = label.querySelector("output");
    const said = { text: label.elements.text.value, note: label.elements.note.value, pinned: label.elements.pinned.checked };
    try {
      const answer = await fetch(label.dataset.to, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(said) });
      const result = await answer.json();
      output.textContent = result.error ?? (result.label ? "kept" : "nothing to keep");
    } catch {
      output.textContent = "the server does not answer; is monolex serve still running?";
    }
  });
  label.elements.pinned.addEventListener("change", () => label.requestSubmit());
}

// What takes a while (products with every dictionary, the paper's claims) is asked for when it comes into view.
for (const part of document.querySelectorAll("[data-from]")) {
  new IntersectionObserver(async (entries, watch) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    const answer = await fetch(part.dataset.from, { headers: { accept: "text/html" } }).catch(() => null);
    if (!answer?.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    part.querySelector("p").replaceWith(...page.querySelector(part.dataset.take).childNodes);
  }).observe(part);
}
