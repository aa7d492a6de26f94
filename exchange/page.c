/* A model in a page: model.c for a browser, which keeps what happens inside for the reader to look at.

   exchange/page.py compiles it to WebAssembly; web/model.js calls the functions at its end. */

#define NO_MAIN
#include "model.c"

#define EXPORT(name) __attribute__((export_name(#name))) name

static GPT model, *const g = &model;
static Choice choice;
static u64 wrong_byte;
static float *stream;    /* (L + 1, T, C up to a multiple of 16): what each block reads, and what ln_f reads */
static float *queries;   /* (L, T, nh, hs): attention itself forgets them; the keys are in its cache */
static float *weights;   /* (T up to a multiple of 16): of one head at one position, see `attention` */
static word *on;         /* (L, nh + 2): each head, all that attention adds, what the MLP adds; 0 switches it off */

/* Zeros, from the end of the memory; NULL if there is no more. */
void *EXPORT(room)(uint32_t bytes) {
  size_t before = __builtin_wasm_memory_grow(0, (size_t)(((u64)bytes + 65535) >> 16));
  return before == SIZE_MAX ? NULL : (void *)(before << 16);
}

/* Read a model of `size` bytes. What is wrong, or NULL. */
const char *EXPORT(open)(const void *file, uint32_t size) {
  const char *wrong = open_model(g, file, size, &wrong_byte);
  if (wrong) return wrong;
  u64 L = g->h.n_layer, nh = g->h.n_head, T = g->h.block_size, C = up(g->h.n_embd, LANES), V = g->h.n_tokens;
  u64 sizes[] = {lay_out(g, NULL, 1), 4*(L + 1)*T*C, 4*L*T*nh*g->h.head_size, 4*up(T, LANES), 4*L*(nh + 2), 4*V, 8*V};
  void *rooms[7];
  for (int i = 0; i < 7; i++)
    if (sizes[i] > UINT32_MAX || !(rooms[i] = room((uint32_t)sizes[i]))) return "it needs more memory than a page has";
  lay_out(g, rooms[0], 1);
  stream = rooms[1]; queries = rooms[2]; weights = rooms[3]; on = rooms[4]; choice.order = rooms[5]; choice.p = rooms[6];
  for (u64 i = 0; i < L*(nh + 2); i++) on[i] = 1;
  return NULL;
}

const void *EXPORT(table)(int which) {
  const void *tables[] = {&g->h, g->offsets, g->bytes, g->merges, on, g->logits, &wrong_byte};
  return tables[which];
}

/* The ids of a text of n bytes, at most n; -1, and where in wrong_byte, if a character has none. */
int32_t EXPORT(ids_of)(const char *text, uint32_t n, int32_t *ids) {
  uint32_t bad = 0;
  int32_t count = encode(g, text, n, ids, &bad);
  wrong_byte = bad;
  return count;
}

/* The weights with which a head of a layer looks back from a position, as many as there are positions up to it; computed
   as `attend` does. */
const float *EXPORT(attention)(uint32_t layer, uint32_t h, uint32_t position) {
  uint32_t hs = g->h.head_size, T = g->h.block_size, wide = (uint32_t)up(T, LANES), share = g->h.n_head / g->h.n_kv_head;
  const vec *keys = (const vec *)g->keys + ((u64)layer*g->h.n_kv_head + h / share) * wide / LANES * hs;
  float high = -1e30f, total = 0, *q = g->rows;
  turn_head(g, q, queries + (((u64)layer*T + position)*g->h.n_head + h)*hs, position, 1 / sqrtf((float)hs));
  for (uint32_t b = 0; b <= position / LANES; b++) {
    vec s = all(0);
    for (uint32_t i = 0; i < hs; i++) s += keys[b*hs + i] * q[i];
    ((vec *)weights)[b] = s;
  }
  for (uint32_t j = 0; j <= position; j++) high = weights[j] > high ? weights[j] : high;
  for (uint32_t j = 0; j <= position; j++) total += weights[j] = expf(weights[j] - high);
  for (uint32_t j = 0; j <= position; j++) weights[j] /= total;
  return weights;
}

/* `forward` of model.c with nothing forgotten, for n tokens that begin at position `start`. */
void EXPORT(look)(const int32_t *ids, uint32_t n, uint32_t start) {
  uint32_t L = g->h.n_layer, nh = g->h.n_head, hs = g->h.head_size, C = g->h.n_embd;
  u64 columns = up(C, LANES), stride = up(g->c_attn.outputs, LANES);
  for (; n; ids += g->n, start += g->n, n -= g->n) {
    g->n = n < BATCH ? n : BATCH; g->start = start;
    for (uint32_t p = 0; p < g->n; p++) {
      float *x = g->x + p*columns;
      unpack(g, g->wte, (uint32_t)ids[p], x);
      if (g->wpe) for (uint32_t i = 0; i < C; i++) x[i] += g->wpe[(start + p)*columns + i];
    }
    for (uint32_t l = 0; l <= L; l++) {
      const word *active = on + l*(nh + 2);
      memcpy(stream + ((u64)l*g->h.block_size + start)*columns, g->x, 4*g->n*columns);
      if (l == L) break;
      prepare(g, 0, 0, g->n, AT(g->ln_1, l), C, 0);
      multiply(g, g->c_attn, l, g->b_attn, g->n, g->y, 0);
      for (uint32_t p = 0; p < g->n; p++)
        memcpy(queries + ((u64)l*g->h.block_size + start + p)*nh*hs, g->y + p*stride, 4*nh*hs);
      for (uint32_t h = 0; h < g->h.n_kv_head; h++) attend(g, l, h, 0);
      for (uint32_t h = 0; h < nh; h++)
        for (uint32_t p = 0; p < g->n && !active[h]; p++) memset(g->y + p*stride + h*hs, 0, 4*hs);
      prepare(g, 0, 0, g->n, NULL, g->c_proj.inputs, 0);
      if (active[nh]) multiply(g, g->c_proj, l, g->b_proj, g->n, g->x, 1);
      prepare(g, 0, 0, g->n, AT(g->ln_2, l), C, 0);
      multiply(g, g->c_fc, l, g->b_fc, g->n, g->y, 0);
      prepare(g, 0, 0, g->n, NULL, g->c_out.inputs, 1);
      if (active[nh + 1]) multiply(g, g->c_out, l, g->b_out, g->n, g->x, 1);
    }
  }
}

/* Compute the logits that the head makes of what block `layer` reads at a position; layer L: of the model's result. */
void EXPORT(lens)(uint32_t layer, uint32_t position) {
  u64 columns = up(g->h.n_embd, LANES);
  memcpy(g->x, stream + ((u64)layer*g->h.block_size + position)*columns, 4*columns);
  prepare(g, 0, 0, 1, g->ln_f, g->h.n_embd, 0);
  multiply(g, g->head, 0, NULL, 1, g->logits, 0);
}

void EXPORT(begin)(double seed) { choice.random = seeded((u64)seed); }

/* The next token, by the logits that `lens` has computed. The same seed gives the text of `gpt.py sample`. */
uint32_t EXPORT(next)(double temperature, uint32_t top_k, double top_p) {
  choice.temperature = temperature; choice.top_k = top_k; choice.top_p = top_p;
  return choose(&choice, g->logits, g->h.n_tokens);
}
