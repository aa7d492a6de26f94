// A network that learns a table by heart and later understands it: its answers at each snapshot, circles, curves.

const column = (name) => data.evaluations.map((line) => [line[0], line[data.names.indexOf(name)]]);
const PARTS = ["training pair", "its twin was trained", "never seen, nor its twin"];
const marks = []; // of the curves: each shows the step of the snapshot
let table, answers, circles;

function drawTable(snapshot) {
  const p = data.p, canvas = find("#table"), context = canvas.getContext("2d"), image = context.createImageData(p, p);
  const style = getComputedStyle(document.documentElement), n = table.length / 4, count = [[0, 0], [0, 0], [0, 0]];
  const colour = (name) => {
    const probe = find("#probe") ?? document.body.appendChild(make("span", { id: "probe", hidden: true }));
    probe.style.color = style.getPropertyValue(name);
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  };
  const right = [colour("--blue"), colour("--green"), colour("--green")],
    wrong = colour("--line"),
    bad = colour("--red");
  canvas.width = canvas.height = p;
  for (let i = 0; i < n; i++) {
    const [a, b, answer, part] = table.subarray(4 * i, 4 * i + 4), hit = answers[snapshot * n + i] === answer;
    count[part][0] += hit;
    count[part][1]++;
    image.data.set([...(hit ? right[part] : part ? wrong : bad), 255], 4 * (a * p + b));
  }
  context.putImageData(image, 0, 0);
  const share = (...parts) => {
    const [hits, all] = parts.reduce(([h, m], k) => [h + count[k][0], m + count[k][1]], [0, 0]);
    return all ? percent(hits / all) : "–";
  };
  find("#table-key").replaceChildren(
    make("span", { className: "blue" }, make("i"), "training pairs right ", make("b", {}, share(0))),
    make("span", { className: "red" }, make("i"), "training pairs wrong"),
    make("span", { className: "green" }, make("i"), "others right ", make("b", {}, share(1, 2))),
    make("span", {}, "without a trained twin ", make("b", {}, share(2))));
  canvas.setAttribute("aria-label",
    `At step ${data.steps[snapshot]} ${share(0)} of the training pairs are right, and ${share(1, 2)} of the others`);
}

function showPair(event) {
  const box = find("#table").getBoundingClientRect(),
    at = (v, from, size) => Math.min(data.p - 1, Math.max(0, Math.floor(((v - from) / size) * data.p)));
  const a = at(event.clientY, box.top, box.height),
    b = at(event.clientX, box.left, box.width),
    n = table.length / 4;
  for (let i = 0; i < n; i++)
    if (table[4 * i] === a && table[4 * i + 1] === b) {
      const says = answers[Number(find("#snapshot").value) * n + i],
        answer = table[4 * i + 2];
      const question = data.op.length > 1 ? `a = ${a}, b = ${b}` : `${a} ${data.op} ${b}`;
      find("#pair").textContent =
        `${question} = ${answer}; it says ${says}${says === answer ? "" : ", which is wrong"}. ` +
        PARTS[table[4 * i + 3]];
    }
}

function drawCircles(snapshot) {
  const p = data.p, colours = ["blue", "orange", "green", "pink"];
  find("#circles").replaceChildren(...data.keys.map((k, i) => {
    const from = (snapshot * data.keys.length + i) * 2 * p,
      end = ((data.steps.length - 1) * data.keys.length + i) * 2 * p;
    let radius = 0;
    for (const start of [from, end]) for (let a = 0; a < p; a++)
      radius = Math.max(radius, Math.hypot(circles[start + 2 * a], circles[start + 2 * a + 1]));
    const place = (a) => [100 + (76 * circles[from + 2 * a]) / radius, 100 - (76 * circles[from + 2 * a + 1]) / radius];
    const svg = draw("svg", { viewBox: "0 0 200 200", role: "img", class: colours[i], "aria-label": `frequency ${k}` });
    let apart = 0; // numbers that are next to each other on the circle: s k = 1 mod p
    for (let s = 1; s < p; s++)
      if ((s * k) % p === 1) apart = s;
    if (apart) svg.append(draw("polyline", { points: [...Array(p + 1).keys()].map((j) => place((j * apart) % p)
        .map((v) => v.toFixed(1)).join()).join(" ") }));
    for (let a = 0; a < p; a++) {
      const [x, y] = place(a);
      svg.append(draw("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 2.4 }));
      if (a < 3) {
        const away = Math.hypot(x - 100, y - 100) || 1;
        svg.append(draw("text", { x: (100 + ((x - 100) * (away + 13)) / away).toFixed(1), y: (100 + ((y - 100) * (
            away + 13)) / away).toFixed(1) }, String(a)));
      }
    }
    return make("div", {}, svg, make("p", { className: colours[i] },
      `k = ${k}, ${percent(data.shares[snapshot][i])} of the embedding`));
  }));
}

function show(snapshot) {
  const step = data.steps[snapshot];
  find("#snapshot").value = snapshot;
  find("#snapshot").setAttribute("aria-valuetext", `step ${step}`);
  find("#step").textContent = `step ${number(step)}`;
  drawTable(snapshot);
  if (data.keys.length) drawCircles(snapshot);
  marks.forEach((mark) => mark(step));
}

function nearest(step) {
  return data.steps.reduce((best, v, i) => (Math.abs(v - step) < Math.abs(data.steps[best] - step) ? i : best), 0);
}

async function play() {
  const button = find("#play"), slider = find("#snapshot");
  if (button.textContent === "Stop") { button.textContent = "Play"; return; }
  button.textContent = "Stop";
  for (let i = Number(slider.value) < data.steps.length - 1 ? Number(slider.value) : 0; i < data.steps.length; i++) {
    if (button.textContent !== "Stop") return;
    show(i);
    await new Promise((done) => setTimeout(done, 220));
  }
  button.textContent = "Play";
}

async function main() {
  find("#name").textContent = data.name;
  find("#about").textContent = `${data.task}: ${data.summary}`;
  fillTable(find("#facts"), [...Object.entries(data.options).filter(([, v]) => v !== null).map(([k, v]) => ["--" + k
      .replaceAll("_", "-"), String(v)
    ]),
    ...Object.entries(data.environment).map(([k, v]) => [`page made with: ${k}`, v])
  ]);
  const moved = (step) => data.steps.length && show(nearest(step)),
    guess = Math.log(data.p);
  const three = (kind) => [
      ["training pairs", "blue", kind("train")],
      ["validation", "orange", kind("val")],
      ["clean of twins", "green", kind("clean_val")]
    ]
    .map(([name, color, key]) => ({ name, color, points: column(key) }));
  const common = { x: "step", logX: true, moved };
  marks.push(
    curves(find("#accuracy"), { ...common, label: "Accuracy", series: three((part) => `${part}_acc`),
      y: "answers right", low: 0, high: 1, show: percent }),
    curves(find("#loss"), {
      ...common,
      label: "Loss",
      series: three((part) => (part === "train" ? "train_eval_loss" : `${part}_loss`)),
      y: "loss, nats",
      logY: true,
      guess,
      show: (v) => Number(v.toPrecision(2)).toString()
    }),
    curves(find("#norm"), { ...common, label: "Norm of all weights", series: [{ name: "norm", color: "blue",
        points: column("weight_norm") }], y: "norm", show: (v) => v.toFixed(1) }));
  if (!data.steps.length) { find("#snapshots").remove(); return; }
  [table, answers] = [await unpack("table"), await unpack("answers")];
  circles = new Float32Array((await unpack("circles")).slice().buffer);
  if (!data.keys.length) find("#circle-box").remove();
  find("#snapshot").max = data.steps.length - 1;
  find("#snapshot").addEventListener("input", () => show(Number(find("#snapshot").value)));
  find("#play").addEventListener("click", play);
  find("#table").addEventListener("pointermove", showPair);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(Number(find("#snapshot").value)));
  show(data.steps.length - 1);
}

const ready = main();
