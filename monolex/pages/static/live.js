"use strict";
// The form of a prompt: edits, dictionaries and chat messages into an address; and a continuation as it is written.
const form = document.getElementById("live");
const part = (row, name) => row.querySelector(`[data-part=${name}]`);

function editsOf() {
  return [...form.querySelectorAll(".edits > .edit")]
    .filter((row) => part(row, "how").value && part(row, "feature").value !== "")
    .map((row) => {
      const [key, feature, how, value, where] = ["key", "feature", "how", "value", "where"].map((name) => part(row, name).value.trim());
      const rest = how === "ablate" ? (where === "all" ? "" : `::${where}`) : `:${value}${where === "all" ? "" : `:${where}`}`;
      return `${key}/${feature}:${how}${rest}`;
    })
    .join(",");
}

function addEdit(key, feature) {
  const row = document.getElementById("edit").content.firstElementChild.cloneNode(true);
  if (key) part(row, "key").value = key;
  if (feature !== undefined) part(row, "feature").value = feature;
  form.querySelector(".edits > .tools").before(row);
  part(row, "how").focus();
}

function messagesOf() {
  return [...form.querySelectorAll(".messages .message")]
    .map((row) => [row.querySelector("select").value, row.querySelector("textarea").value])
    .filter(([, content]) => content.trim() !== "");
}

function addMessage(role) {
  const row = document.createElement("div");
  row.className = "message";
  const select = document.createElement("select");
  select.setAttribute("aria-label", "role");
  for (const name of ["user", "assistant", "system"]) select.append(new Option(name, name, false, name === role));
  const area = document.createElement("textarea");
  area.rows = 2;
  area.setAttribute("aria-label", "message");
  row.append(select, area);
  form.querySelector(".messages").append(row);
}

const chatting = () => form.querySelector("[name=mode]:checked")?.value === "chat";

// An address holds what differs from the defaults, and token ids once they are known.
function parameters(again) {
  const state = new URLSearchParams();
  const set = (name, value, usual = "") => { if (value !== usual) state.set(name, value); };
  const field = form.elements;
  if (field.run) set("run", field.run.value);
  if (again && field.ids.value) {
    set("ids", field.ids.value);
    set("generated", field.generated.value);
  } else if (chatting()) {
    set("chat", JSON.stringify(messagesOf()), "[]");
  } else {
    set("text", field.text.value);
    set("literal", field.literal.checked ? "1" : "");
  }
  set("dictionaries", [...form.querySelector("[data-many]").selectedOptions].map((option) => option.value).join(","));
  set("top", field.top.value, "5");
  set("high", field.high.value, "0.1");
  set("special", field.special.checked ? "1" : "0", "1");
  set("after", field.after.checked ? "1" : "");
  set("edits", editsOf());
  return state;
}

if (form) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    // without a new text it is the same tokens, seen otherwise
    const nothing = chatting() ? messagesOf().length === 0 : form.elements.text.value === "";
    const again = nothing || (event.submitter?.hasAttribute("data-again") ?? false);
    location.assign(`/prompt?${parameters(again)}`);
  });
  form.addEventListener("click", (event) => {
    if (event.target.matches("[data-add]")) addEdit();
    if (event.target.matches("[data-drop]")) event.target.closest(".edit").remove();
  });
  form.addEventListener("change", (event) => {
    if (event.target.matches("[name=mode]")) {
      form.elements.text.hidden = chatting();
      const box = form.querySelector(".messages");
      box.hidden = !chatting();
      if (chatting() && !box.childElementCount) addMessage("user");
    }
    // another run has another model: its dictionaries, edits and token ids are others too
    if (event.target.matches("[name=run]")) {
      const text = form.elements.text.value;
      location.assign(`/prompt?${new URLSearchParams({ run: event.target.value, ...(text ? { text } : {}) })}`);
      return;
    }
    // what is shown of the same tokens changes at once
    if (event.target.closest(".choices") && form.elements.ids.value && !byKeys) location.assign(`/prompt?${parameters(true)}`);
  });
  form.querySelector(".messages")?.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.shiftKey) {
      event.preventDefault();
      addMessage("assistant");
    }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-edit]");
    if (button) addEdit(...button.dataset.edit.split("/"));
  });
}

// A continuation: events of the server, a token each; prompt and written tokens are told apart, and what differs is marked.
const going = document.querySelector("[data-continue]");
const pictures = { "\n": "↵", "\t": "→" };
const visible = (text) => text.replaceAll(/[\n\t]/g, (letter) => pictures[letter] + (letter === "\n" ? "\n" : ""));

function column(name) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = name;
  const text = document.createElement("p");
  text.className = "writing";
  const end = document.createElement("p");
  end.className = "cost";
  figure.append(caption, text, end);
  return { figure, text, end, tokens: [] };
}

function show(side, token, known) {
  const mark = document.createElement("span");
  mark.className = "written";
  mark.textContent = visible(token.text);
  const fires = Object.entries(token.features).flatMap(([title, row]) =>
    row.top.map((f) => `${title} ${f.feature} ${known[`${title}:${f.feature}`]?.top_token ?? ""} ${f.value.toPrecision(3)}`));
  mark.title = [`${(100 * token.probability).toPrecision(3)} %`, ...fires].join("\n");
  side.text.append(mark);
  side.tokens.push(mark);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const text of parts) yield JSON.parse(text.slice("data: ".length));
  }
}

if (going) {
  const home = document.getElementById("written");
  const stop = going.querySelector("[data-stop]");
  let running;
  stop.addEventListener("click", () => running?.abort());
  going.addEventListener("submit", async (event) => {
    event.preventDefault();
    running?.abort();
    running = new AbortController();
    const state = parameters(true);
    const sides = { base: column(state.has("edits") ? "as it is" : "") };
    if (state.has("edits")) sides.edited = column("with the edits");
    home.replaceChildren(...Object.values(sides).map((side) => side.figure));
    stop.hidden = false;
    const numbers = Object.fromEntries(["max_new_tokens", "temperature", "top_p", "seed"].map((name) => [name, Number(going.elements[name].value)]));
    try {
      const answer = await fetch("/continue", {
        method: "POST", headers: { "content-type": "application/json" }, signal: running.signal,
        body: JSON.stringify({ query: Object.fromEntries(state), ...numbers }),
      });
      if (!answer.ok) throw new Error((await answer.json()).error);
      for await (const said of events(answer)) {
        if (said.error) throw new Error(said.error);
        if (said.token) show(sides[said.side], said.token, said.known);
        if (said.end) finish(sides[said.side], said.end, state);
        if ("differ_at" in said) differ(sides, said.differ_at);
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        const text = document.createElement("p");
        text.className = "notice";
        text.setAttribute("role", "alert");
        text.textContent = error.message;
        home.append(text);
      }
    } finally {
      stop.hidden = true;
    }
  });
}

const reasons = { length: "as many tokens as were asked for", end: "the model ended the text", context: "its last position", stopped: "stopped" };

function finish(side, end, state) {
  const next = new URLSearchParams(state);
  next.set("ids", end.ids);
  next.set("generated", end.generated);
  const link = document.createElement("a");
  link.href = `/prompt?${next}`;
  link.textContent = "read what was written";
  side.end.replaceChildren(`${reasons[end.why]}; ${end.cost.computed} tokens computed, ${end.cost.reused} kept from before; `, link);
  for (const note of end.notes) side.end.append(document.createElement("br"), note);
}

function differ(sides, at) {
  if (at === null) return;
  const length = Number(form.elements.ids.value.split(".").length);
  for (const side of Object.values(sides)) {
    side.tokens.forEach((mark, number) => {
      if (length + number === at) mark.classList.add("differs");
      if (length + number > at) mark.classList.add("after");
    });
  }
}
