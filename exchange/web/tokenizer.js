// A tokenizer: a text in its tokens as one types, and how each token was merged.

const SENTENCES =
  "The tokenizer cuts a text into tokens: it's 2026, and 3.14159 isn't a word.\n\n" +
  "    for i in range(10):\n        print(i)\n\nnaïve café, 日本語, 🙂\n";
const COLOURS = ["0, 114, 178", "230, 159, 0", "0, 158, 115", "204, 121, 167", "213, 94, 0", "86, 180, 233"];
let model, ids = [], shownAt = null;
const made = new Map(); // the two tokens that each was merged from

function retokenize() {
  const text = find("#typed").value, area = find("#tokens");
  try {
    ids = text ? model.encode(text) : [];
    find("#problem").hidden = true;
  } catch (error) {
    find("#problem").hidden = false;
    find("#problem").textContent = error.message;
    return;
  }
  const decoder = new TextDecoder();
  area.replaceChildren(...ids.map((id, i) => {
    const words = decoder.decode(model.token(id), { stream: true }),
      span = make("span", { role: "option", id: "t" + i, ariaLabel: readable(model.token(id)) });
    span.style.backgroundColor = `rgba(${COLOURS[i % COLOURS.length]}, .3)`;
    const [before, ...lines] = words.split("\n");
    span.append(before || (lines.length ? "" : "◌"));
    for (const line of lines) span.append(make("span", { className: "sign", ariaHidden: "true" }, "↵"), "\n" + line);
    span.dataset.i = i;
    return span;
  }));
  const bytes = new TextEncoder().encode(text).length, characters = [...text].length;
  const count = (n, name) => make("span", {}, make("b", {}, number(n)), name);
  find("#counts").replaceChildren(count(ids.length, ids.length === 1 ? "token" : "tokens"), count(characters,
      "characters"), count(bytes, "bytes"),
    count(ids.length ? Number((bytes / ids.length).toFixed(2)) : 0, "bytes a token"));
  if (ids.length) select(Math.min(shownAt ?? 0, ids.length - 1));
}

/** A token and the two that it was merged from, down to its bytes. */
function branch(id) {
  const parts = made.get(id), item = make("li", {}, `${readable(model.token(id))} `, make("small", {}, String(id)));
  if (parts) item.append(make("ul", {}, ...parts.map(branch)));
  return item;
}

function select(i) {
  const id = ids[i], bytes = model.token(id), area = find("#tokens");
  for (const span of area.querySelectorAll(".at")) span.classList.remove("at");
  area.children[i].classList.add("at");
  area.setAttribute("aria-activedescendant", "t" + i);
  shownAt = i;
  find("#token").textContent = readable(bytes);
  if (document.activeElement === area) find("#spoken").textContent = `${readable(bytes)}, token ${id}`;
  find("#facts").replaceChildren();
  fillTable(find("#facts"), [
    ["id", number(id)],
    ["bytes", [...bytes].map((b) => b.toString(16).padStart(2, "0")).join(" ")],
    ["in this text", `${number(ids.filter((other) => other === id).length)} ×`]
  ]);
  find("#tree").replaceChildren(...(made.has(id) ? [make("small", {}, "merged from"), make("ul", {}, ...made.get(id)
    .map(branch))] : []));
}

function listen() {
  const area = find("#tokens");
  find("#typed").addEventListener("input", retokenize);
  area.addEventListener("pointerover", (event) => {
    const span = event.target.closest("[data-i]");
    if (span) select(Number(span.dataset.i));
  });
  area.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
    if (!by || !ids.length) return;
    event.preventDefault();
    select(Math.max(0, Math.min(ids.length - 1, (shownAt ?? 0) + by)));
    area.children[shownAt].scrollIntoView({ block: "nearest" });
  });
}

async function main() {
  find("#name").textContent = data.name;
  find("#about").textContent = `${number(data.tokens)} tokens` + (data.merges ? `, ${number(data.merges)} merges` : "")
    + (data.special.length ? `, special: ${data.special.slice(0, 8).join(" ")}` : "");
  model = await Model.open();
  const merges = model.words(model.c.table(MERGES), 3 * model.n_merges);
  for (let i = 0; i < merges.length; i += 3) made.set(merges[i + 2], [merges[i], merges[i + 1]]);
  const lengths = Array.from({ length: model.n_tokens }, (_, id) => model.token(id).length);
  find("#longest").textContent = largest(lengths, Math.min(60, model.n_tokens)).map((id) => readable(model.token(id)))
    .join("  ");
  find("#typed").value = data.merges ? SENTENCES : [...Array(Math.min(200, data.tokens)).keys()].map((id) =>
    new TextDecoder().decode(model.token(id))).join("");
  listen();
  retokenize();
}

const ready = main();
