/* A whole model as one kernel: `forward` of the C file that models are exported as, with its own threads' barrier between
   operations, so that a token costs one kernel and not five for each block. The weights lie apart, so what model.c finds
   by a stride is found in a table of pointers. */
#define AT(pointer, layer) (*(const void* const*)((const char*)(pointer) + (layer) * g->stride))
#define WAITED(n) let_others(g, n)
static void let_others(const void* g, unsigned n);
#include "words.c"

#define SLOTS 10 /* of a block in the table */
typedef struct { GPT g; int (*yield)(void); const void* table[]; } Whole;

/* Wait for the other cores, and now and then let programs have this one that need it more. */
static void let_others(const void* g, unsigned n) {
  const Whole* whole = g;
  if (n % 4096 == 4095 && whole->yield) whole->yield();
}

/* The header's numbers in the order of model.c, from `version` to `qk_norm`. */
static void take_numbers(GPT* g, const long* numbers) { for (int i = 0; i < 15; i++) (&g->h.version)[i] = numbers[i]; }

static long table_bytes(const GPT* g) { return up(sizeof(Whole) + sizeof(void*) * (SLOTS * g->h.n_layer + 1), 64); }

/* How many numbers of 4 bytes reader_open needs. */
static void reader_size(int* size, const long* numbers, long threads, long core, long cores) {
  GPT g; take_numbers(&g, numbers);
  *size = (table_bytes(&g) + lay_out(&g, NULL, threads)) / 4;
}

/* Make a model in `arena`, which has only zeros. W: the four matrices of each block; rows: its norms and biases, in the
   order of the file; yield: the address of sched_yield. */
static void reader_open(float* arena, const unsigned* const* W, const float* const* rows, const unsigned* wte,
                       const unsigned* head, const float* wpe, const float* ln_f, const float* turns,
                       const unsigned* yield, const long* numbers, float eps, long threads, long core, long cores) {
  Whole* whole = (Whole*)arena; GPT* g = &whole->g; const void **t = whole->table, **first = t;
  take_numbers(g, numbers);
  long C = g->h.n_embd, F = g->h.n_hidden, A = g->h.n_head*g->h.head_size, K = g->h.n_kv_head*g->h.head_size;
  long row = up(C, LANES), wide = g->h.mlp == SWIGLU ? 2*F : F;
  long sizes[] = {2*row, up(A + 2*K, LANES), row, 2*row, up(wide, LANES), row};
  for (long l = 0; l < g->h.n_layer; l++, t += SLOTS) {
    const float* r = rows[l];
    for (int i = 0, k = 0, w = 0; i < SLOTS; i++)
      if (i == 1 || i == 3 || i == 6 || i == 8) t[i] = W[4*l + w++]; else { t[i] = r; r += sizes[k++]; }
  }
  *t = head;
  g->h.eps = eps; g->stride = sizeof(void*) * SLOTS;
  whole->yield = (int (*)(void))((u64)yield[1] << 32 | yield[0]);
  g->ln_1 = (const real*)first; g->b_attn = (const real*)(first + 2); g->b_proj = (const real*)(first + 4);
  g->ln_2 = (const real*)(first + 5); g->b_fc = (const real*)(first + 7); g->b_out = (const real*)(first + 9);
  g->c_attn = (Matrix){(const uvec*)(first + 1), A + 2*K, C}; g->c_proj = (Matrix){(const uvec*)(first + 3), C, A};
  g->c_fc = (Matrix){(const uvec*)(first + 6), wide, C}; g->c_out = (Matrix){(const uvec*)(first + 8), C, F};
  g->wte = (Matrix){(const uvec*)wte, g->h.vocab_size, C}; g->head = (Matrix){(const uvec*)t, g->h.vocab_size, C};
  g->wpe = (const real*)wpe; g->ln_f = (const real*)ln_f;
  lay_out(g, (char*)arena + table_bytes(g), threads);
  if (turns) g->turns = (float*)turns;
}

/* The logits after n tokens that stand at the positions start, start + 1, ... */
static void reader_read(float* logits, float* arena, const int* ids, long n, long start, long core, long cores) {
  GPT* g = &((Whole*)arena)->g;
  g->n_threads = cores;
  for (long at = 0, count; at < n; at += count) {
    count = least(n - at, BATCH);
    if (core == 0) {
      g->n = count; g->ids = ids + at; g->start = start + at; g->last = at + count == n; g->logits = logits;
    }
    meet(g);
    forward(g, core);
    meet(g);
  }
}
