// What all pages share: the data that stand in the file, making elements, and curves.

const find = (selector) => document.querySelector(selector);
const data = JSON.parse(find("#data").textContent);
const percent = (p) => (p === 0 ? "0" : p >= 0.0995 ? (100 * p).toFixed(0) : p >= 0.00095 ? (100 * p).toFixed(1) :
  "<0.1") + " %";
const number = (x) => x.toLocaleString("en-US");

/** An element with properties, attributes where their name has a dash, and children. */
function make(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties))
    if (/-|^role$/.test(key)) made.setAttribute(key, value); else made[key] = value;
  made.append(...children);
  return made;
}

/** The bytes that exchange/page.py has packed under this name: the four bytes of a word apart, deflated, in base64. */
async function unpack(name) {
  const element = find("#packed-" + name), size = Number(element.dataset.size), text = atob(element.textContent);
  element.remove();
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const out = new Uint8Array(planes.length), n = planes.length / 4;
  for (let k = 0; k < 4; k++) for (let i = 0, from = k * n; i < n; i++) out[4 * i + k] = planes[from + i];
  return out.subarray(0, size);
}

/** Rows of a table with a name and a value. */
function fillTable(table, rows) {
  for (const [name, value] of rows) table.append(make("tr", {}, make("th", { scope: "row" }, name), make("td", {},
    value)));
}

// ---- curves ----

function draw(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Round numbers in a range: at most about `count`; on a logarithmic scale 1, 2 and 5 times powers of ten. */
function ticks(low, high, log, count) {
  const found = [];
  if (log) {
    for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10)
      for (const k of high / low > 10 ** count ? [1] : [1, 2, 5])
        if (k * power >= low && k * power <= high) found.push(k * power);
    return found;
  }
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  for (let x = Math.ceil(low / step) * step; x <= high + step / 1e6; x += step) found.push(Number(x.toPrecision(12)));
  return found;
}

/** Curves with a line that follows the pointer or the arrow keys. `series`: name, color (a class), points [[x, y]].
 *  Calls `moved(x)` for the x that was chosen; the returned function marks an x. */
function curves(figure, { label, series, x, y, logX = false, logY = false, low, high, show, guess, moved = () => {} }) {
  const W = 560, H = 300, left = 46, right = 22, top = 10, bottom = 38;
  const all = series.flatMap((s) => s.points), xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  if (guess) ys.push(guess);
  const scale = (values, log, from, to, lowest, highest) => {
    const f = log ? Math.log : (v) => v;
    const a = lowest ?? Math.min(...values), b = highest ?? Math.max(...values);
    const place = (v) => from + ((f(v) - f(a)) / (f(b) - f(a) || 1)) * (to - from);
    return Object.assign(place, { a, b });
  };
  const X = scale(xs, logX, left, W - right), Y = scale(ys, logY, H - bottom, top, low, high);
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label, class: "curves" });
  for (const v of ticks(Y.a, Y.b, logY, 5))
    svg.append(draw("line", { x1: left, x2: W - right, y1: Y(v), y2: Y(v), class: "grid" }),
      draw("text", { x: left - 8, y: Y(v) + 4, "text-anchor": "end" }, show ? show(v) : String(v)));
  for (const v of ticks(X.a, X.b, logX, 6))
    svg.append(draw("text", { x: X(v), y: H - bottom + 18, "text-anchor": "middle" }, number(v)));
  svg.append(draw("text", { x: W - right, y: H - 2, "text-anchor": "end", class: "axis" }, x),
    draw("text", { x: left, y: H - 2, class: "axis" }, "↑ " + y));
  if (guess) svg.append(draw("line", { x1: left, x2: W - right, y1: Y(guess), y2: Y(guess), class: "guess" }),
    draw("text", { x: W - right, y: Y(guess) - 5, "text-anchor": "end", class: "axis" }, "a guess"));
  for (const s of series) {
    const path = s.points.map((p, i) => `${i ? "L" : "M"}${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`).join("");
    svg.append(draw("path", { d: path, class: "curve " + s.color }));
    if (s.points.length < 40)
      for (const p of s.points) svg.append(draw("circle", { cx: X(p[0]), cy: Y(p[1]), r: 2.5, class: s.color }));
  }
  const line = draw("line", { y1: top, y2: H - bottom, class: "cursor" });
  svg.append(line);
  const words = make("p", { className: "legend", role: "status" }), steps = [...new Set(xs)].sort((a, b) => a - b);
  let at = steps.length - 1;
  const mark = (value) => {
    at = steps.reduce((best, v, i) => (Math.abs(X(v) - X(value)) < Math.abs(X(steps[best]) - X(value)) ? i : best), 0);
    line.setAttribute("x1", X(steps[at]));
    line.setAttribute("x2", X(steps[at]));
    words.replaceChildren(make("span", { className: "at" }, `${x} ${number(steps[at])}`), ...series.map((s) => {
      const before = s.points.filter((p) => p[0] <= steps[at]),
        last = before[before.length - 1];
      return make("span", { className: s.color }, make("i"), `${s.name} `, make("b", {}, last ? (show ?? ((v) =>
        v.toFixed(3)))(last[1]) : "–"));
    }));
  };
  const choose = (value) => { mark(value); moved(steps[at]); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), px = ((event.clientX - box.left) / box.width) * W;
    choose(steps.reduce((best, v) => (Math.abs(X(v) - px) < Math.abs(X(best) - px) ? v : best), steps[0]));
  });
  figure.tabIndex = 0;
  figure.setAttribute("role", "group");
  figure.setAttribute("aria-label", `${label}. The arrow keys move along it.`);
  figure.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(steps[Math.max(0, Math.min(steps.length - 1, at + by))]);
  });
  figure.append(svg, words);
  mark(steps[at]);
  return mark;
}
