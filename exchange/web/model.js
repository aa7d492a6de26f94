// The model: exchange/page.c, compiled, with the weights and the tokenizer.

const HEADER = ["version", "dtype", "block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "head_size", "n_embd",
  "n_hidden", "norm", "mlp", "pos", "tied", "qk_norm", "tokenizer", "n_tokens", "n_merges"];
const [NUMBERS, OFFSETS, BYTES, MERGES, ON, LOGITS, WRONG_BYTE] = Array(7).keys(); // of `table` in page.c

class Model {
  static async open() {
    const [program, file] = [await unpack("program"), await unpack("weights")];
    return new Model((await WebAssembly.instantiate(program)).instance.exports, file);
  }

  constructor(c, file) {
    this.c = c;
    const at = this.room(file.length);
    this.bytes(at, file.length).set(file);
    const wrong = c.open(at, file.length);
    if (wrong) throw new Error(this.string(wrong >>> 0));
    const values = this.words(c.table(NUMBERS) + 8, HEADER.length);
    HEADER.forEach((name, i) => (this[name] = values[i]));
    this.capacity = 0;
    this.from = this.known = 0; // the positions that `look` has read: `known` tokens, the first of them ids[from]
    this.offsets = this.words(c.table(OFFSETS), this.n_tokens + 1).slice();
    this.vocabulary = this.bytes(c.table(BYTES), this.offsets[this.n_tokens]).slice();
  }

  room(bytes) {
    const at = this.c.room(bytes) >>> 0;
    if (!at) throw new Error("there isn't enough memory for the model");
    return at;
  }

  // Views of the program's memory. They are made anew each time: more room moves the memory.
  bytes(at, n) { return new Uint8Array(this.c.memory.buffer, at >>> 0, n); }
  words(at, n) { return new Uint32Array(this.c.memory.buffer, at >>> 0, n); }
  floats(at, n) { return new Float32Array(this.c.memory.buffer, at >>> 0, n); }

  string(at) {
    const bytes = new Uint8Array(this.c.memory.buffer, at);
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  /** The bytes of a token. */
  token(id) { return this.vocabulary.subarray(this.offsets[id], this.offsets[id + 1]); }

  /** Room for a text of n bytes, and for its ids. */
  reserve(n) {
    if (n <= this.capacity) return;
    this.capacity = Math.max(4096, 2 * n);
    this.text = this.room(this.capacity);
    this.ids = this.room(4 * this.capacity);
  }

  /** The ids of a text. Throws an Error that names the character which the vocabulary lacks. */
  encode(text) {
    const bytes = new TextEncoder().encode(text);
    this.reserve(bytes.length);
    this.bytes(this.text, bytes.length).set(bytes);
    const n = this.c.ids_of(this.text, bytes.length, this.ids);
    if (n < 0) {
      const bad = [...new TextDecoder().decode(bytes.subarray(this.words(this.c.table(WRONG_BYTE), 1)[0]))][0];
      throw new Error(`The vocabulary doesn't have the character “${bad}”.`);
    }
    return [...new Int32Array(this.c.memory.buffer, this.ids, n)];
  }

  /** What was read from the n-th token on isn't true any more. */
  forget(n = this.from) { this.known = Math.max(0, Math.min(this.known, n - this.from)); }

  /** Read the newest tokens of the first `to`, as many as the context holds. The last one's place in the context. */
  read(ids, to) {
    const from = Math.max(0, to - this.block_size), n = to - from;
    if (from !== this.from) { this.from = from; this.known = 0; }
    if (this.known < n) {
      const more = ids.slice(from + this.known, to);
      this.reserve(more.length);
      new Int32Array(this.c.memory.buffer, this.ids, more.length).set(more);
      this.c.look(this.ids, more.length, this.known);
      this.known = n;
    }
    return n - 1;
  }

  /** The logits `(V,)` after a place in the context, if the head reads what block `layer` reads; n_layer: the last. */
  logits(place, layer = this.n_layer) {
    this.c.lens(layer, place);
    return this.floats(this.c.table(LOGITS), this.n_tokens);
  }

  /** The weights with which a head looks back from a place in the context: as many as there are positions up to it. */
  attention(layer, head, place) { return this.floats(this.c.attention(layer, head, place), place + 1).slice(); }

  /** Whether a part of a layer is on: a head by its number, n_head: all of attention, n_head + 1: the MLP. */
  isOn(layer, part) { return this.words(this.c.table(ON), (layer + 1) * (this.n_head + 2))[layer * (this.n_head + 2) +
      part]; }

  switchPart(layer, part, on) {
    this.words(this.c.table(ON), (layer + 1) * (this.n_head + 2))[layer * (this.n_head + 2) + part] = Number(on);
    this.known = 0;
  }

  /** The mean cost of a text's tokens after the first, in nats: it is read in pieces, each as long as the context. */
  loss(ids) {
    let sum = 0;
    for (let from = 0; from < ids.length - 1; from += this.block_size) {
      const piece = ids.slice(from, from + this.block_size + 1);
      this.forget();
      this.read(piece, piece.length - 1);
      for (let i = 1; i < piece.length; i++) sum -= Math.log(softmax(this.logits(i - 1))[piece[i]]);
    }
    this.forget();
    return sum / (ids.length - 1);
  }
}

/** Probabilities of logits, in double precision. */
function softmax(logits) {
  let top = -Infinity, sum = 0;
  for (const z of logits) if (z > top) top = z;
  const p = Float64Array.from(logits, (z) => Math.exp(z - top));
  for (const value of p) sum += value;
  return p.map((value) => value / sum);
}

/** The ids of the n largest numbers, the largest first. */
function largest(values, n) {
  if (n > 100) return [...values.keys()].sort((a, b) => values[b] - values[a] || a - b).slice(0, n);
  const order = [];
  for (let i = 0; i < values.length; i++) {
    if (order.length === n && values[i] <= values[order[n - 1]]) continue;
    let at = Math.min(order.length, n - 1);
    for (; at > 0 && values[order[at - 1]] < values[i]; at--) order[at] = order[at - 1];
    order[at] = i;
  }
  return order;
}

/** What `next` in page.c draws from: probabilities after temperature, top-k and top-p. */
function choices(logits, { temperature, topK, topP }) {
  const chosen = new Float64Array(logits.length);
  const k = temperature === 0 ? 1 : topK && topK < logits.length ? topK : logits.length;
  const order = k === logits.length && topP === 1 ? [...logits.keys()] : largest(logits, k);
  if (temperature === 0) { chosen[order[0]] = 1; return chosen; }
  const p = softmax(order.map((i) => logits[i] / temperature));
  let reached = 0, kept = 0;
  while (kept < order.length && (topP === 1 || reached < topP)) reached += p[kept++];
  for (let i = 0; i < kept; i++) chosen[order[i]] = p[i] / reached;
  return chosen;
}

/** How people read a token: a space and a new line as signs, bytes that aren't text as numbers. */
function readable(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes).replaceAll(" ", "␣").replaceAll("\n", "↵")
      .replaceAll("\t", "⇥");
  } catch {
    return [...bytes].map((b) => "\\x" + b.toString(16).padStart(2, "0")).join("");
  }
}
