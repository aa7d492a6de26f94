// A model that writes: its text, the choice of each token, the heads, the layers, and the curves of its training.

let model;
const text = { ids: [], prompt: 0, p: [],
whole: null }; // p: each token's probability; whole: the last text with all on
const shown = { at: null, pinned: false, head: null, depth: null };
let writing = 0; // which call of `write` may go on

const settings = () => ({
  temperature: Number(find("#temperature").value), topP: Number(find("#top-p").value),
  topK: Math.max(0, Math.floor(Number(find("#top-k").value))), count: Math.max(1, Number(find("#count").value)),
  seed: Math.max(0, Math.floor(Number(find("#seed").value))),
});
const size = () => model.vocab_size * model.n_embd; // multiplications in the head, which each token's probability takes
const AFFORDABLE = 1e9; // of them, in one go: a second or less
const isLarge = () => size() * model.n_layer > AFFORDABLE / 20; // then some pictures wait until the text is written
const decoded = (ids) => new TextDecoder().decode(Uint8Array.from(ids.flatMap((id) => [...model.token(id)])));
const label = (id) => readable(model.token(id));

// ---- the text ----

/** Read the prompt, and write after it. */
function begin() {
  try {
    const ids = model.encode(find("#prompt").value || "\n");
    report("");
    restart(ids, ids.length);
    write();
  } catch (error) {
    writing++;
    report(error.message);
  }
}

/** What a text depends on, but for the parts that are on. */
const source = () => JSON.stringify([find("#prompt").value, settings()]);

function report(problem) {
  find("#problem").hidden = !problem;
  find("#problem").textContent = problem;
}

/** Let the text be these ids, of which the first n are the prompt. */
function restart(ids, prompt) {
  Object.assign(text, { ids, prompt, p: [] });
  model.forget();
  model.c.begin(settings().seed);
  Object.assign(shown, { at: null, pinned: false });
  find("#text").replaceChildren(make("span", { className: "next", role: "option", ariaLabel: "the next token",
    id: "t-next" }));
  ids.forEach((_, i) => showToken(i));
}

/** The probability of the i-th token, as the model saw it then. */
function probability(i) {
  return softmax(model.logits(model.read(text.ids, i)))[text.ids[i]];
}

/** Choose the next token. */
function step(chosen = settings()) {
  const logits = model.logits(model.read(text.ids, text.ids.length));
  const id = model.c.next(chosen.temperature, chosen.topK, chosen.topP);
  text.p[text.ids.length] = softmax(logits)[id];
  text.ids.push(id);
}

/** Write so many tokens, in as many frames of the screen as it takes. */
async function write(count = settings().count) {
  const me = ++writing, before = text.ids.length;
  let computed = 0; // milliseconds, without drawing
  find("#write").textContent = "Stop";
  if (size() * text.ids.length < AFFORDABLE)
    for (let i = 1; i < text.prompt; i++) text.p[i] ??= probability(i);
  while (count > 0) {
    const slowly = find("#slowly").checked, chosen = settings(), frame = performance.now();
    do {
      const began = performance.now();
      step(chosen);
      computed += performance.now() - began;
      showToken(text.ids.length - 1);
      if (text.ids.length === before + 1) performance.mark("first token");
      count = text.ids.at(-1) === data.end ? 0 : count - 1;
    } while (count > 0 && !slowly && performance.now() - frame < (isLarge() ? 150 : 25));
    if (!shown.pinned) select(text.ids.length - 1);
    find("#text").scrollTop = find("#text").scrollHeight;
    const made = text.ids.length - before, speed = Math.round((1000 * made) / Math.max(computed, 1));
    find("#status").textContent = `${number(made)} tokens; the model computes ${number(speed)} in a second`;
    await new Promise((done) => (slowly ? setTimeout(done, 180) : requestAnimationFrame(done)));
    if (me !== writing) return;
  }
  stop();
}

const isWriting = () => find("#write").textContent === "Stop";

function stop() {
  writing++;
  find("#write").textContent = "Write";
  find("#spoken").textContent =
    `Written: ${decoded(text.ids.slice(text.prompt))}`;
  compare();
  if (shown.at !== null) select(shown.at);
}

/** Put the i-th token into the text. */
function showToken(i) {
  const words = new TextDecoder().decode(model.token(text.ids[i]));
  const span = make("span", { id: "t" + i, role: "option", ariaLabel: label(text.ids[i]) });
  if (i < text.prompt) span.className = "prompt";
  if (text.whole?.from === source() && i >= text.prompt && text.whole.ids[i] !== text.ids[i]) span.classList.add(
    "changed");
  if (words.includes("\n")) span.append(make("span", { className: "sign", ariaHidden: "true" }, "↵"), words);
  else span.append(words || "◌");
  span.dataset.i = i;
  surprise(span, i);
  find("#t-next").before(span);
}

/** A token's colour while nothing is pointed at: how unexpected it was. */
function surprise(span, i) {
  const p = text.p[i], share = p === undefined ? 0 : -Math.log(p) / Math.log(model.n_tokens); // 1: as a blind guess
  span.style.backgroundColor = share > 0.01 ? `rgba(var(--surprise), ${(0.75 * Math.min(1, share)).toFixed(3)})` : "";
}

const spans = () => [...find("#text").children].slice(0, -1);

/** Colour every token: by how unexpected it was, by what a layer would have said, or how much a head looked at it. */
function colour() {
  const { at, depth } = shown, all = spans(), last = model.n_layer;
  find("#text").classList.toggle("lens", depth < last);
  for (const span of find("#text").children) span.classList.remove("at", "stands", "forgotten");
  all.forEach((span, i) => { delete span.dataset.guess; if (depth === last) surprise(span, i); });
  if (depth < last) {
    all.forEach((span) => (span.style.backgroundColor = ""));
    for (const [i, p] of guesses(depth)) {
      if (!all[i]) continue;
      all[i].style.backgroundColor = `rgba(var(--lens), ${(0.7 * p[text.ids[i]]).toFixed(3)})`;
      all[i].dataset.guess = label(largest(p, 1)[0]);
    }
  } else if (at > 0 && shown.pinned | shown.pointed) {
    const place = model.read(text.ids, at), weights = lookedAt(shown.head, place);
    all.forEach((span, i) => {
      const w = weights[i - model.from] ?? 0;
      span.style.backgroundColor = w ? `rgba(var(--look), ${(0.85 * Math.sqrt(w)).toFixed(3)})` : "";
      span.classList.toggle("forgotten", i < model.from);
    });
  }
  drawMap();
  if (at !== null) (all[at] ?? find("#t-next")).classList.add("at");
  if (at > 0) all[at - 1].classList.add("stands");
  const key = depth < last ? [["lens", "likely"], ["", "below each token: what this layer would have said"]]
    : shown.pinned | shown.pointed ? [["look", "looked at"], ["stands", "where the model stood"]]
    : [["surprise", "unexpected"], ["", "point at a token, or click to hold it"]];
  find("#key").replaceChildren(...key.map(([name, words]) => {
    const i = make("i");
    i.style.background = name === "stands" ?
      "linear-gradient(var(--blue), var(--blue)) bottom / 100% 3px no-repeat" : `rgba(var(--${name}), .6)`;
    return make("span", {}, ...(name ? [i] : []), words);
  }));
}

/** For each token that the context holds, the probabilities that a layer would have given: [[i, p]]. */
function guesses(depth) {
  const end = shown.at ?? text.ids.length, place = model.read(text.ids, Math.max(1, end));
  const first = size() * place < AFFORDABLE ? 0 : place;
  const found = [];
  for (let q = first; q <= place; q++) found.push([model.from + q + 1, softmax(model.logits(q, depth))]);
  return found;
}

/** How much one head, or all of them on average, looked at each token of the context. */
function lookedAt(head, place) {
  if (head) return model.attention(head[0], head[1], place);
  const mean = new Float64Array(place + 1), share = 1 / (model.n_layer * model.n_head);
  for (let l = 0; l < model.n_layer; l++) for (let h = 0; h < model.n_head; h++)
    model.attention(l, h, place).forEach((w, i) => (mean[i] += w * share));
  return mean;
}

// ---- one token ----

/** Show how the token at i was chosen; i = ids.length: how the next one will be. */
function select(i) {
  shown.at = i;
  find("#text").setAttribute("aria-activedescendant", i < text.ids.length ? "t" + i : "t-next");
  inspect();
  colour();
}

function inspect() {
  const i = shown.at, id = text.ids[i], title = find("#choice"), list = find("#alternatives");
  if (i === 0 || i === null) {
    title.textContent = "Nothing came before the first token";
    list.replaceChildren();
    find("#looked").textContent = "";
    drawHeads(-1);
    find("#lens").replaceChildren();
    return;
  }
  const place = model.read(text.ids, i), logits = model.logits(place).slice();
  const p = softmax(logits), q = choices(logits, settings()), order = largest(p, Math.min(10, p.length));
  if (id !== undefined && !order.includes(id)) order[order.length - 1] = id;
  title.replaceChildren(...(id === undefined ? ["What comes next"] : ["How ", make("q", {}, label(id)), " came here"]));
  list.replaceChildren(...order.map((other) => {
    const bar = make("span", { className: "bar" }, make("i"));
    bar.style.backgroundSize = `${100 * q[other]}% 100%`;
    bar.firstChild.style.left = `${100 * p[other]}%`;
    const button = make("button", { className: other === id ? "chosen" : "" },
      make("span", { className: "token" }, label(other)), bar, make("span", { className: "p" }, percent(p[
        other])));
    button.title =
      `${percent(p[other])} by the model, ${percent(q[other])} with these settings. A click goes on from here.`;
    button.addEventListener("click", () => branch(i, other));
    return make("li", {}, button);
  }));
  const words = order.slice(0, 4).map((other) => `${label(other)} ${percent(p[other])}`).join(", ");
  if (document.activeElement === find("#text"))
    find("#spoken").textContent = id === undefined ? `Next: ${words}` :
    `${label(id)}, chosen with ${percent(p[id])}. ${words}.`;
  find("#looked").textContent = `from ${label(text.ids[i - 1])}, the token before`;
  drawHeads(place);
  if (!isWriting() || !isLarge()) drawLens(place, id);
}

/** Put another token at i, and go on from there. */
function branch(i, id) {
  for (const span of spans().slice(i)) span.remove();
  model.forget(i);
  text.ids = [...text.ids.slice(0, i), id];
  text.p.length = i;
  text.p[i] = probability(i);
  showToken(i);
  shown.pinned = false;
  write(Math.max(1, settings().count - (i + 1 - text.prompt)));
}

// ---- the heads ----

const cells = new Map();

function makeHeads() {
  const { n_layer: L, n_head: nh } = model, grid = find("#heads");
  grid.classList.toggle("many", nh > 8);
  grid.style.gridTemplateColumns = `repeat(${nh}, minmax(1.9rem, 1fr)) repeat(2, ${nh > 8 ? 2.4 : 3.2}rem)`;
  for (let l = 0; l < L; l++) {
    const row = make("div", { role: "row" });
    for (let h = 0; h < nh + 2; h++) {
      const name = h < nh ? `head ${l}.${h}` : `${["attention", "MLP"][h - nh]} ${l}`;
      const cell = make("div", { className: h < nh ? "head" : "head part", role: "gridcell", tabIndex: l + h ? -1 : 0,
        ariaLabel: name });
      if (h < nh) {
        const off = make("button", { className: "switch", tabIndex: -1, title: `switch ${name} off or on`,
          ariaLabel: "off or on" });
        off.addEventListener("click", (event) => { event.stopPropagation();
          toggle(l, h); });
        cell.append(make("canvas"), make("span", { className: "id" }, `${l}.${h}`), off);
        cell.addEventListener("click", () => pick(l, h));
        cell.addEventListener("pointerenter", () => preview([l, h]));
        cell.addEventListener("pointerleave", () => preview(null));
      } else {
        cell.append(nh > 8 ? name.replace("attention", "attn") : name);
        cell.title = `switch it off or on`;
        cell.addEventListener("click", () => toggle(l, h));
      }
      cell.addEventListener("keydown", (event) => headKey(event, l, h));
      cells.set(`${l}.${h}`, cell);
      row.append(cell);
    }
    grid.append(row);
  }
}

function headKey(event, l, h) {
  const { n_layer: L, n_head: nh } = model, key = event.key;
  const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[key];
  if (move) {
    const next = cells.get(
    `${Math.max(0, Math.min(L - 1, l + move[0]))}.${Math.max(0, Math.min(nh + 1, h + move[1]))}`);
    cells.forEach((cell) => (cell.tabIndex = -1));
    next.tabIndex = 0;
    next.focus();
  } else if (key === "Enter" || key === " ") h < nh ? pick(l, h) : toggle(l, h);
  else if (key === "o" || key === "O") toggle(l, h);
  else return;
  event.preventDefault();
}

/** Show one head alone in the text; a second time: all of them again. */
function pick(l, h) {
  shown.head = shown.head?.join() === `${l},${h}` ? null : [l, h];
  shown.picked = shown.head;
  if (shown.at > 0) shown.pinned = true;
  cells.forEach((cell, name) => name.split(".")[1] < model.n_head && cell.setAttribute("aria-pressed", String(shown.head
    ?.join(".") === name)));
  colour();
}

function preview(head) {
  if (!shown.at) return;
  shown.head = head ?? shown.picked ?? null;
  shown.pointed = Boolean(head);
  colour();
}

/** Draw how each head looked back from a place in the context: a bar for each token, all to one scale. */
function drawHeads(place) {
  const colour = blue(),
    every = [...cells].filter(([name]) => name.split(".")[1] < model.n_head).map(([name, cell]) => {
      const [l, h] = name.split(".").map(Number), weights = place < 0 ? [] : model.attention(l, h, place);
      return { name, cell, weights, on: model.isOn(l, h), top: largest(weights, 1)[0] };
    });
  const highest = Math.max(...every.map(({ weights, top }) => weights[top] ?? 0), 0.2);
  for (const { name, cell, weights, on, top } of every) {
    const canvas = cell.firstChild, ratio = devicePixelRatio || 1, context = canvas.getContext("2d");
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    context.fillStyle = `rgb(${colour})`;
    const wide = canvas.width / Math.max(weights.length, 12);
    weights.forEach((w, i) => {
      const high = (w / highest) * (canvas.height - 13 * ratio);
      context.fillRect(i * wide, canvas.height - high, Math.max(wide - (wide > 4 ? ratio : 0), 1), high);
    });
    if (top === undefined) continue;
    const words = `most at ${label(text.ids[model.from + top])}, ${place - top} back, ${percent(weights[top])}`;
    cell.setAttribute("aria-label", `head ${name}${on ? "" : ", off"}: ${words}`);
    cell.title = `head ${name} looks ${words}`;
  }
}

const blue = () => getComputedStyle(document.documentElement).getPropertyValue("--look").trim();

/** Draw the whole matrix of one head, or the mean of all: a row for each place up to the one that is shown. */
function drawMap() {
  const canvas = find("#map"), name = shown.head ? `Head ${shown.head.join(".")}` : "The mean of all heads";
  canvas.parentElement.hidden = !shown.at || (isLarge() && !shown.head);
  if (!shown.at || (isLarge() && (isWriting() || !shown.head))) return;
  const place = model.read(text.ids, shown.at), n = place + 1, rows = [];
  for (let q = Math.max(0, n - 256); q < n; q++) rows.push(Float64Array.from(lookedAt(shown.head, q)));
  const first = n - rows.length, context = canvas.getContext("2d"), [r, g, b] = blue().split(",").map(Number);
  canvas.width = canvas.height = rows.length;
  const image = context.createImageData(rows.length, rows.length);
  rows.forEach((row, y) => row.subarray(first).forEach((w, x) => image.data.set([r, g, b, 255 * Math.sqrt(w)], 4 * (y *
    rows.length + x))));
  context.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", `${name}: the weights of attention, ${rows.length} by ${rows.length}`);
  find("#map-name").textContent = name;
  Object.assign(canvas, { rows, first: first + model.from });
}

/** Say what a place of the map is; a click shows how the token after that row came there. */
function pointAtMap(event) {
  const canvas = find("#map"),
    box = canvas.getBoundingClientRect(),
    n = canvas.rows.length;
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((v) => Math.min(
    n - 1, Math.max(0, Math.floor(v * n))));
  const to = text.ids[canvas.first + x],
    from = text.ids[canvas.first + y],
    w = canvas.rows[y][x + canvas.first - model.from];
  find("#map-cell").textContent = x > y ? "" : `From ${label(from)} at ${label(to)}, ${y - x} back: ${percent(w)}`;
  if (event.type === "click") { shown.pinned = true; select(canvas.first + y + 1); }
}

/** Switch a part off or on; the model writes again, from the same seed. */
function toggle(l, part) {
  if (find("#all-on").disabled) text.whole = { ids: text.ids.slice(), from: source() };
  model.switchPart(l, part, !model.isOn(l, part));
  afterSwitching();
}

function allOn() {
  for (let l = 0; l < model.n_layer; l++)
    for (let part = 0; part < model.n_head + 2; part++) model.switchPart(l, part, true);
  afterSwitching();
}

function afterSwitching() {
  let off = 0;
  cells.forEach((cell, name) => {
    const isOff = !model.isOn(...name.split(".").map(Number));
    cell.classList.toggle("off", isOff);
    off += isOff;
  });
  find("#all-on").disabled = !off;
  restart(text.ids.slice(0, text.prompt), text.prompt);
  if (!off) { text.whole = null; find("#effect").textContent = ""; }
  write();
}

/** Say what the parts that are off are worth: what the whole model's text costs, with and without them. */
function compare() {
  const effect = find("#effect");
  if (!text.whole || text.whole.ids.length < 2) { effect.textContent = ""; return; }
  const ids = text.whole.ids.slice(0, AFFORDABLE / size() > 300 ? 2000 : 100), without = model.loss(ids), off = [];
  cells.forEach((_, name) => { const part = name.split(".").map(Number); if (!model.isOn(...part)) off.push(part); });
  off.forEach((part) => model.switchPart(...part, true));
  const whole = model.loss(ids);
  off.forEach((part) => model.switchPart(...part, false));
  const rise = without - whole;
  effect.replaceChildren(`The ${number(ids.length)} tokens of the whole model cost `, make("b", {}, without.toFixed(2)),
    ` nats each instead of ${whole.toFixed(2)}: `, make("b", {},
      `${rise < 0 ? "−" : "+"}${Math.abs(rise).toFixed(2)}`));
}

// ---- the layers ----

/** A row for what each layer would say at a place: the likeliest tokens; the true one has a frame. */
function drawLens(place, id) {
  const rows = [];
  for (let depth = model.n_layer; depth >= 0; depth--) {
    const p = softmax(model.logits(place, depth)), name = depthName(depth);
    const row = make("tr", { className: depth === shown.depth ? "shown" : "" }, make("th", { scope: "row" }, name));
    for (const other of largest(p, Math.min(5, p.length))) {
      const cell = make("td", { className: other === id ? "true" : "", title: percent(p[other]) }, label(other));
      cell.style.backgroundColor = `rgba(var(--lens), ${(0.75 * p[other]).toFixed(3)})`;
      row.append(cell);
    }
    row.append(make("td", { className: "p" }, id === undefined ? "" : percent(p[id])));
    row.addEventListener("click", () => setDepth(depth));
    rows.push(row);
  }
  find("#lens").replaceChildren(...rows);
}

const depthName = (depth) => (depth === 0 ? "embedding" : depth === model.n_layer ? "the model" :
  `after layer ${depth - 1}`);

function setDepth(depth) {
  shown.depth = depth;
  find("#depth").value = depth;
  find("#depth").setAttribute("aria-valuetext", depthName(depth));
  find("#depth-shown").textContent = depthName(depth);
  [...find("#lens").rows].forEach((row, i) => row.classList.toggle("shown", model.n_layer - i === depth));
  colour();
}

// ---- the controls ----

function listen() {
  const area = find("#text"), where = (event) => {
    const span = event.target.closest("[id^=t]");
    return !span || span === area ? null : span.id === "t-next" ? text.ids.length : Number(span.dataset.i);
  };
  area.addEventListener("pointerover", (event) => {
    const i = where(event);
    if (i === null || shown.pinned) return;
    shown.pointed = true;
    select(i);
  });
  area.addEventListener("pointerleave", () => { shown.pointed = false; if (!shown.pinned) colour(); });
  area.addEventListener("click", (event) => {
    const i = where(event);
    if (i === null) return;
    shown.pinned = !(shown.pinned && i === shown.at);
    select(i);
  });
  area.addEventListener("keydown", (event) => {
    const end = text.ids.length,
      at = shown.at ?? end;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 20, ArrowDown: at + 20, Home: 0, End: end } [
      event.key
    ];
    if (event.key === "Escape") { shown.pinned = false;
      colour(); return; }
    if (to === undefined) return;
    event.preventDefault();
    shown.pinned = true;
    select(Math.max(0, Math.min(end, to)));
    (spans()[shown.at] ?? find("#t-next")).scrollIntoView({ block: "nearest" });
  });
  find("#write").addEventListener("click", () => (isWriting() ? stop() : begin()));
  find("#again").addEventListener("click", () => { find("#seed").value = settings().seed + 1; begin(); });
  find("#prompt").addEventListener("input", begin);
  for (const id of ["#temperature", "#top-p", "#top-k", "#count", "#seed"])
    find(id).addEventListener("input", () => { showSettings(); begin(); });
  find("#depth").addEventListener("input", () => setDepth(Number(find("#depth").value)));
  find("#all-on").addEventListener("click", allOn);
  for (const kind of ["pointermove", "click"]) find("#map").addEventListener(kind, pointAtMap);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => select(shown.at));
}

function showSettings() {
  const { temperature, topP } = settings();
  find("#temperature-shown").textContent = temperature ? temperature.toFixed(2) : "0, the likeliest";
  find("#top-p-shown").textContent = topP.toFixed(2);
}

// ---- what was known before ----

function showRun() {
  const m = data.model;
  find("#name").textContent = data.name;
  const last = data.evaluations?.[data.evaluations.length - 1];
  const parts = [`${number(data.parameters)} parameters`, `${m.n_layer} layers of ${m.n_head} heads`,
    `${m.n_embd} channels`,
    `${number(m.block_size)} tokens of context`
  ];
  if (last) parts.push(`${number(last[0])} steps`,
    `validation loss ${Math.min(...data.evaluations.map((e) => e[2])).toFixed(4)}`);
  find("#about").textContent = parts.join(" · ");
  fillTable(find("#facts"), [
    ["parameters", number(data.parameters)], ...Object.entries(m).map(([name, value]) => [name, String(value)]),
    ["weights in this page", data.dtype === "float32" ? "float32, rounded to 24 bits" : data.dtype],
    ...(data.corpus ? [["corpus", `${data.corpus.name}, ${data.corpus.origin}`]] : []),
    ...(data.seconds ? [["time of training", `${number(Math.round(data.seconds))} s`]] : []),
    ...Object.entries(data.environment).map(([name, value]) => [`page made with: ${name}`, value]),
  ]);
  if (data.options) fillTable(find("#options"), Object.entries(data.options).filter(([, v]) => v !== null).map(([k,
    v]) => ["--" + k.replaceAll("_", "-"), String(v)]));
  else find("#options").parentElement.remove();
  if (data.sample) find("#sample").textContent = data.sample; else find("#sample-box").remove();
  if (!data.batches?.length) { find("#losses").remove(); if (!data.sample) find("#training").remove(); return; }
  const evaluated = (k) => data.evaluations.map((e) => [e[0], e[k]]);
  const series = [{ name: "single batches", color: "faint", points: data.batches }];
  if (last) series.push({ name: "train", color: "blue", points: evaluated(1) }, { name: "validation", color: "orange",
    points: evaluated(2) });
  const words = last ? `Loss: train ${last[1].toFixed(3)}, validation ${last[2].toFixed(3)} at step ${last[0]}` :
    "Loss of single batches";
  curves(find("#losses"), { label: words, series, x: "step", y: "loss, nats per token", show: (v) => v.toFixed(series
      .length ? 2 : 0) });
}

async function main() {
  showRun();
  showSettings();
  try {
    model = await Model.open();
  } catch (error) {
    report(`The model doesn't run in this browser: ${error.message}`);
    return;
  }
  find("#depth").max = model.n_layer;
  find("#prompt").value = data.prompt || "";
  makeHeads();
  setDepth(model.n_layer);
  listen();
  begin();
}

const ready = main();
