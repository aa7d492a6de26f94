/* A GPT in one C file: text in, text out, on any machine that gcc or clang compile for (`zig cc` is a clang).

       cc -O3 -march=native -o model model.c -lm -lpthread      (or --build of `python gpt.py export --to c`)
       ./model --prompt 'ROMEO:' --max-new-tokens 200

   The weights and the tokenizer are in model.bin; its format is the order in which `open_model` reads it. To be read
   from top to bottom: 1 the file, 2 memory, 3 dot products, 4 threads, 5 the model, 6 the tokenizer, 7 what is shown,
   8 choosing a token, 9 a program around it. All but the last need no operating system, and one piece of memory. */

#if !defined(KERNEL)  /* gpt.py runs sections 3 and 5 as kernels, without any library */
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif
#if (defined(__unix__) || defined(__APPLE__)) && !defined(NO_MAIN)
#define THREADS
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif
#if defined(__linux__) && !defined(NO_MAIN)
#include <sys/mman.h>
#endif
#if defined(__AVX512F__)
#if !defined(KERNEL)
#include <immintrin.h>
#endif
enum { TILE = 8 };  /* positions for which a weight is used when it is read once: their sums stay in registers */
#elif defined(__AVX2__) || defined(__aarch64__)
enum { TILE = 4 };
#else
enum { TILE = 2 };
#endif
#if defined(__clang__) && defined(__has_warning)
#if __has_warning("-Wpsabi")
#pragma clang diagnostic ignored "-Wpsabi"  /* how a vec is returned to other files: there are none */
#endif
#elif defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
#define INLINE static inline __attribute__((always_inline))

/* Sixteen numbers at once: the compiler makes of them one register of AVX-512, two of AVX2, four of NEON or wasm. */
typedef float vec __attribute__((vector_size(64), may_alias));
typedef int32_t ivec __attribute__((vector_size(64), may_alias));
typedef uint32_t uvec __attribute__((vector_size(64), may_alias));
typedef uint32_t word __attribute__((may_alias));
typedef float real __attribute__((may_alias));
typedef uint64_t u64;

/* ---- 1. the file ----

   Words of 32 bits, little-endian: a header, then tables and tensors, each at a multiple of 64 bytes. A matrix has a
   row for each output; sixteen rows are a block, in which their words for the same inputs lie side by side: one
   multiplication of a vec serves sixteen outputs, and memory is read from front to back. A word is a float32, or two
   bfloat16 (of inputs i and i + 16), or four int8 plus 128 (i, i + 16, i + 32, i + 48). In int8 a line of scales stands
   before each 64 inputs. */

enum { LANES = 16, GROUP = 64, BATCH = 128 };  /* BATCH: positions of a prompt that go through the model together */
enum { FLOAT32, BFLOAT16, INT8 };
enum { LAYERNORM, RMSNORM, GELU = 0, RELU2, SWIGLU, LEARNED = 0, ROPE, NOWHERE };  /* of norm, mlp, pos */
enum { CHARACTERS, BYTES, WORDS_GPT2, WORDS_GPT4 };  /* of tokenizer: BYTES is BPE without a split into words */

typedef struct {
  char magic[8];
  uint32_t version, dtype, block_size, vocab_size, n_layer, n_head, n_kv_head, head_size, n_embd, n_hidden;
  uint32_t norm, mlp, pos, tied, qk_norm, tokenizer, n_tokens, n_merges, n_special, n_classes, n_sorted, n_bytes;
  float eps, rope_base;
} Header;

static const uint32_t LIMITS[][2] = {  /* of the header's numbers, from `version` on */
  {1, 1}, {0, 2}, {1, 1 << 20}, {1, 1 << 24}, {1, 4096}, {1, 4096}, {1, 4096}, {1, 4096}, {1, 1 << 16}, {1, 1 << 18},
  {0, 1}, {0, 2}, {0, 2}, {0, 1}, {0, 1}, {0, 3}, {1, 1 << 24}, {0, 1 << 24}, {0, 65536}, {0, 65536}, {0, 1 << 24},
  {0, 1u << 31}};

typedef struct { const uvec *w; uint32_t outputs, inputs; } Matrix;

typedef struct {
  Header h;
  const word *offsets, *byte_ids, *merges, *special, *classes, *sorted;  /* the tokenizer's tables, see section 6 */
  const unsigned char *bytes;
  Matrix wte, head, c_attn, c_proj, c_fc, c_out;      /* the first block's; the others' follow `stride` bytes apart */
  const real *wpe, *ln_f, *ln_1, *b_attn, *b_proj, *ln_2, *b_fc, *b_out;
  u64 stride;
  float *x, *y, *rows, *logits, *keys, *values, *scores, *turns, *scales;  /* what changes, see section 2 */
  word *words;
  int32_t *sums;
  const int32_t *ids;                                 /* a pass reads these n tokens, the first at position start */
  uint32_t n, start, last;                            /* last: and computes the logits after them */
  uint32_t n_threads;
  int arrived, turn, next, stop;
} GPT;

typedef struct { const unsigned char *file; u64 at, size; } Reader;

static u64 up(u64 n, u64 to) { return (n + to - 1) / to * to; }

static const void *part(Reader *r, u64 bytes) {
  const void *p = r->at < r->size ? r->file + r->at : NULL;
  r->at += up(bytes, 64);
  return p;
}

static const real *row(Reader *r, u64 n) { return part(r, 4*up(n, LANES)); }

static Matrix matrix(Reader *r, uint32_t dtype, uint32_t outputs, uint32_t inputs) {
  static const u64 bytes_of_group[] = {256, 128, 68};
  Matrix m = {part(r, up(outputs, LANES) * (up(inputs, GROUP) / GROUP) * bytes_of_group[dtype]), outputs, inputs};
  return m;
}

/* Read a model from memory that begins at a multiple of 64 bytes, and stays. What is wrong with it, and at which byte;
   NULL if nothing is. A layer without biases has zeros, a norm's biases follow its weights. */
static const char *open_model(GPT *g, const void *file, u64 size, u64 *byte) {
  Header *h = &g->h;
  Reader r = {file, 0, size};
  memset(g, 0, sizeof *g);
  *byte = size;
  if (size < sizeof *h) return "it ends before its header does";
  memcpy(h, part(&r, sizeof *h), sizeof *h);
  *byte = 0;
  if (memcmp(h->magic, "llmfundC", 8)) return "it isn't a file of `gpt.py export --to c`";
  for (uint32_t i = 0, value; i < sizeof LIMITS / sizeof *LIMITS; i++) {
    memcpy(&value, r.file + (*byte = 8 + 4*i), 4);
    if (value < LIMITS[i][0] || value > LIMITS[i][1]) return i ? "this number can't be" : "it is of another version";
  }
  *byte = 32;
  if (h->n_head % h->n_kv_head) return "the heads can't share their keys equally";
  *byte = 36;
  if (h->pos == ROPE && h->head_size % 2) return "a head of odd size can't be turned";
  *byte = 72;
  if (h->n_tokens > h->vocab_size) return "the tokenizer has more tokens than the model";
  *byte = 96;
  if (!(h->eps > 0 && h->eps < 1 && h->rope_base >= 1 && h->rope_base < 1e9f)) return "this number can't be";

  g->offsets = part(&r, 4*(h->n_tokens + 1ull));   /* token i is bytes[offsets[i]] ... bytes[offsets[i + 1] - 1] */
  g->bytes = part(&r, h->n_bytes);
  g->sorted = part(&r, 4ull*h->n_sorted);          /* the ids of all tokens that text can become, by their bytes */
  g->special = part(&r, 4ull*h->n_special);        /* the ids of special tokens, the longest first */
  g->byte_ids = part(&r, 4*256);                   /* the id of each byte */
  g->merges = part(&r, 12ull*h->n_merges);         /* left id, right id, the id that they make; sorted */
  g->classes = part(&r, 12ull*h->n_classes);       /* first and last character, and 1 letter, 2 number, 3 white space */
  uint32_t C = h->n_embd, F = h->n_hidden, A = h->n_head*h->head_size, K = h->n_kv_head*h->head_size, d = h->dtype;
  g->wte = g->head = matrix(&r, d, h->vocab_size, C);
  if (!h->tied) g->head = matrix(&r, d, h->vocab_size, C);
  if (h->pos == LEARNED) g->wpe = part(&r, 4ull*h->block_size*up(C, LANES));
  g->ln_f = row(&r, 2*up(C, LANES));
  u64 first = r.at;
  g->ln_1 = row(&r, 2*up(C, LANES)); g->c_attn = matrix(&r, d, A + 2*K, C); g->b_attn = row(&r, A + 2*K);
  g->c_proj = matrix(&r, d, C, A); g->b_proj = row(&r, C); g->ln_2 = row(&r, 2*up(C, LANES));
  uint32_t wide = h->mlp == SWIGLU ? 2*F : F;      /* SwiGLU: gate and value side by side */
  g->c_fc = matrix(&r, d, wide, C); g->b_fc = row(&r, wide); g->c_out = matrix(&r, d, C, F); g->b_out = row(&r, C);
  g->stride = r.at - first;
  r.at += (h->n_layer - 1) * g->stride;
  *byte = size < r.at ? size : r.at;
  if (size != r.at) return size < r.at ? "it ends before its weights do" : "it goes on after its weights";

  *byte = (u64)((const unsigned char *)g->offsets - r.file);
  for (uint32_t i = 0; i < h->n_tokens; i++, *byte += 4)
    if (g->offsets[i] > g->offsets[i + 1] || g->offsets[i + 1] > h->n_bytes) return "a token ends before it begins";
  const word *ids[] = {g->sorted, g->special, g->byte_ids, g->merges};
  uint32_t counts[] = {h->n_sorted, h->n_special, h->tokenizer ? 256 : 0, 3*h->n_merges};
  for (int k = 0; k < 4; k++) {
    *byte = (u64)((const unsigned char *)ids[k] - r.file);
    for (uint32_t i = 0; i < counts[k]; i++, *byte += 4)
      if (ids[k][i] >= h->n_tokens || (k == 1 && g->offsets[ids[k][i]] == g->offsets[ids[k][i] + 1]))
        return "there is no such token";
  }
  return NULL;
}

/* ---- 2. memory ---- */

static void *carve(char *arena, u64 *at, u64 numbers) {  /* of 4 bytes */
  void *p = arena ? arena + *at : NULL;
  *at += up(4*numbers, 64);
  return p;
}

static u64 widest(const Header *h) {  /* inputs of any matrix */
  u64 A = (u64)h->n_head*h->head_size, most = h->n_embd > h->n_hidden ? h->n_embd : h->n_hidden;
  return up(A > most ? A : most, GROUP);
}

/* How many bytes a model needs for what changes. If `arena` isn't NULL it has them: zeros, aligned to 64. */
static u64 lay_out(GPT *g, char *arena, uint32_t n_threads) {
  const Header *h = &g->h;
  u64 at = 0, hs = h->head_size, hp = up(hs, LANES), T = up(h->block_size, LANES), wide = widest(h);
  u64 B = up(h->block_size < BATCH ? h->block_size : BATCH, TILE), cache = (u64)h->n_layer * h->n_kv_head * T;
  u64 qkv = up((h->n_head + 2ull*h->n_kv_head) * hs, LANES), fc = 2*up(h->n_hidden, LANES);
  g->n_threads = n_threads;
  g->x = carve(arena, &at, B * up(h->n_embd, LANES));        /* the residual stream */
  g->y = carve(arena, &at, B * (qkv > fc ? qkv : fc));       /* what a matrix has made of it */
  g->rows = carve(arena, &at, wide * n_threads);             /* what the next one reads, as numbers and as words */
  g->words = carve(arena, &at, wide * B);
  g->scales = carve(arena, &at, wide / GROUP * B);
  g->sums = carve(arena, &at, wide / GROUP * B);
  g->logits = carve(arena, &at, up(h->vocab_size, LANES));
  g->scores = carve(arena, &at, (T + hp) * n_threads);
  g->keys = carve(arena, &at, cache * hs);
  g->values = carve(arena, &at, cache * hp);
  g->turns = carve(arena, &at, h->pos == ROPE ? T * hs : 0); /* cosine and sine of each position's angles */
#if !defined(KERNEL)
  for (uint32_t t = 0; arena && h->pos == ROPE && t < h->block_size; t++) for (uint32_t i = 0; i < hs; i += 2) {
    double angle = t * pow(h->rope_base, -(double)i / (double)hs);
    g->turns[t*hs + i] = (float)cos(angle); g->turns[t*hs + i + 1] = (float)sin(angle);
  }
#endif
  return at;
}

/* ---- 3. dot products ---- */

INLINE float number(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
/* By address: how a vec itself is passed depends on the machine, and compilers remark on it. */
INLINE void raise_to(vec *a, const vec *b) { ivec m = *a > *b; *a = (vec)((m & (ivec)*a) | (~m & (ivec)*b)); }
INLINE vec all(float x) { vec v = {0}; return v + x; }

#define ROUND 12582912.0f  /* 1.5 * 2^23: a number to which it is added is rounded, and stands in the lowest bits */

/* e^x to about 1e-7 of it: 2^r by the exponent's bits, 2^f for f in [-1/2, 1/2] by its Taylor series. */
INLINE void exponentiate(vec *v) {
  vec x = *v * 1.44269504f, least = all(-126), most = all(-127);
  raise_to(&x, &least); x = -x; raise_to(&x, &most); x = -x;
  vec r = x + ROUND, f = x - (r - ROUND), p = f * 1.5403530e-4f + 1.3333558e-3f;
  p = p*f + 9.6181291e-3f; p = p*f + 5.5504109e-2f; p = p*f + 2.4022651e-1f; p = p*f + 6.9314718e-1f; p = p*f + 1.0f;
  *v = (vec)((uvec)p + (((uvec)r - (uvec)all(ROUND)) << 23));
}

/* One word of each of sixteen outputs times a position's word x, added to their sums. */
INLINE void add_product(int dtype, void *sum, const uvec *w, uint32_t x) {
  if (dtype == FLOAT32) *(vec *)sum += (vec)*w * number(x);
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
  else if (dtype == BFLOAT16)
    *(__m512 *)sum = _mm512_dpbf16_ps(*(__m512 *)sum, (__m512bh)*w, (__m512bh)_mm512_set1_epi32((int)x));
  else *(__m512i *)sum = _mm512_dpbusd_epi32(*(__m512i *)sum, (__m512i)*w, _mm512_set1_epi32((int)x));
#else
  else if (dtype == BFLOAT16)
    *(vec *)sum += (vec)(*w << 16) * number(x << 16) + (vec)(*w & 0xffff0000u) * number(x & 0xffff0000u);
  else for (int i = 0; i < 32; i += 8) *(uvec *)sum += (*w >> i & 255) * (uint32_t)(int8_t)(x >> i);
#endif
}

/* Add to the sums of sixteen outputs for P positions, whose words lie side by side: x[input][position]. The weights of
   int8 are bytes from 0 to 255, so a sum begins at -128 times the sum of the inputs. */
INLINE void tile(int dtype, int P, vec *sum, const uvec *w, const word *x, const float *scales, const int32_t *sums,
                 uint32_t groups) {
  vec a[4*TILE];  /* one position has four sums, as an addition waits for the one before */
  int A = P == 1 ? 4 : 1;
  if (dtype == INT8) for (; groups--; w += 17, x += 16*P, scales += P, sums += P) {
    for (int p = 0; p < P; p++) a[p] = (vec)((ivec)all(0) + sums[p]);
    for (int i = 0; i < 16; i++) for (int p = 0; p < P; p++) add_product(INT8, a + p, w + 1 + i, x[i*P + p]);
    for (int p = 0; p < P; p++) sum[p] += __builtin_convertvector((ivec)a[p], vec) * ((vec)*w * scales[p]);
  } else {
    for (int i = 0; i < A*P; i++) a[i] = all(0);
    for (const uvec *end = w + groups * (64 >> dtype); w < end; w += A, x += A*P)
      for (int i = 0; i < A; i++) for (int p = 0; p < P; p++) add_product(dtype, a + i*P + p, w + i, x[i*P + p]);
    for (int i = 0; i < A; i++) for (int p = 0; p < P; p++) sum[p] += a[i*P + p];
  }
}

/* Write n numbers as words where `tile` finds those of position p of P; zeros follow up to a multiple of GROUP. */
static void pack(GPT *g, const float *x, uint32_t n, uint32_t p, uint32_t P) {
  uint32_t groups = (n + GROUP - 1) / GROUP, per = 64 >> g->h.dtype;
  word *to = g->words + (u64)(p / P) * groups * per * P + p % P;
  u64 at = (u64)(p / P) * groups * P + p % P;
  for (uint32_t k = 0; k < groups; k++, x += GROUP, at += P, to += per * P) {
    const vec *v = (const vec *)x;
    uvec out[4] = {(uvec)v[0], (uvec)v[1], (uvec)v[2], (uvec)v[3]}, sum = {0};
    if (g->h.dtype == BFLOAT16) {
      for (int i = 0; i < 4; i++) out[i] += 0x7fff + (out[i] >> 16 & 1);  /* to the nearest; a tie to the even one */
      for (int i = 0; i < 2; i++) out[i] = (out[2*i] >> 16) | (out[2*i + 1] & 0xffff0000u);
    } else if (g->h.dtype == INT8) {
      vec high = all(0);
      float top = 0;
      for (int i = 0; i < 4; i++) { vec minus = -v[i]; raise_to(&high, v + i); raise_to(&high, &minus); }
      for (int i = 0; i < LANES; i++) top = high[i] > top ? high[i] : top;
      for (int i = 0; i < 4; i++) {
        uvec r = (uvec)(v[i] * (top > 0 ? 127 / top : 0) + ROUND) - (uvec)all(ROUND);
        sum -= 128 * r; out[i] = (r & 255) << 8*i;
      }
      out[0] |= out[1] | out[2] | out[3];
      for (int i = 1; i < LANES; i++) sum[0] += sum[i];
      g->scales[at] = top / 127; g->sums[at] = (int32_t)sum[0];
    }
    for (uint32_t i = 0; i < per; i++)
      if (P == 1) { *(uvec *)(to + i) = out[i / LANES]; i += LANES - 1; } else to[i*P] = out[i / LANES][i % LANES];
  }
}

/* Row i of a matrix as numbers: the embedding of a token. */
static void unpack(const GPT *g, Matrix m, uint32_t i, float *x) {
  uint32_t dtype = g->h.dtype, groups = (m.inputs + GROUP - 1) / GROUP, lane = i % LANES, per = 64 >> dtype;
  const uvec *w = m.w + (u64)(i / LANES) * groups * (per + (dtype == INT8));
  for (uint32_t k = 0; k < m.inputs; k += GROUP, w += per) {
    float scale = dtype == INT8 ? number((*w++)[lane]) : 1;
    for (uint32_t j = 0; j < GROUP && k + j < m.inputs; j++) {
      uint32_t u = w[j / (LANES << dtype) * LANES + j % LANES][lane], which = j / LANES % (1u << dtype);
      x[k + j] = dtype == FLOAT32 ? number(u) : dtype == BFLOAT16 ? number(which ? u & 0xffff0000u : u << 16)
               : scale * (float)((int)(u >> 8*which & 255) - 128);
    }
  }
}

/* ---- 4. threads: all of them run `forward` together, and meet after each operation ---- */

#if defined(THREADS)
#define WAITED(n) ((n) % 4096 == 4095 ? sched_yield() : 0)  /* for programs that need the core more */
#elif !defined(WAITED)
#define WAITED(n) ((void)(n))
#endif

static void meet(GPT *g) {
  int turn = __atomic_load_n(&g->turn, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&g->arrived, 1, __ATOMIC_ACQ_REL) == (int)g->n_threads) {
    g->arrived = g->next = 0;
    __atomic_store_n(&g->turn, turn ^ 1, __ATOMIC_RELEASE);
  } else for (unsigned n = 0; __atomic_load_n(&g->turn, __ATOMIC_ACQUIRE) == turn; n++) WAITED(n);
}

/* Work is handed out in chunks: a thread that is held up takes fewer. */
static uint32_t take(GPT *g, uint32_t n) { return (uint32_t)__atomic_fetch_add(&g->next, (int)n, __ATOMIC_RELAXED); }

/* ---- 5. the model ---- */

#if !defined(AT)
#define AT(pointer, layer) ((const void *)((const char *)(pointer) + (layer) * g->stride))
#endif

/* y = W x + bias for n positions, or y += that. x is what `prepare` has packed. */
static void multiply(GPT *g, Matrix m, uint32_t layer, const real *bias, uint32_t n, float *y, int add) {
  uint32_t dtype = g->h.dtype, groups = (m.inputs + GROUP - 1) / GROUP, per = 64 >> dtype;
  uint32_t lines = groups * (per + (dtype == INT8));
  uint32_t blocks = (m.outputs + LANES - 1) / LANES, P = n == 1 ? 1 : TILE, chunk = blocks / (8*g->n_threads) + 1;
  const uvec *weights = AT(m.w, layer);
  if (chunk > 8) chunk = 8;
  for (uint32_t from; (from = take(g, chunk)) < blocks;)
    for (uint32_t i = from; i < from + chunk && i < blocks; i++) for (uint32_t p = 0; p < n; p += P) {
      vec sum[TILE] = {{0}};
      const uvec *w = weights + (u64)i*lines;
      const word *x = g->words + (u64)p*groups*per;
#define TILE_OF(dtype, P) tile(dtype, P, sum, w, x, g->scales + p*groups, g->sums + p*groups, groups)
      switch (2*dtype + (P > 1)) {  /* called with constants, so each of these becomes its own loop */
        case 0: TILE_OF(FLOAT32, 1); break;
        case 1: TILE_OF(FLOAT32, TILE); break;
        case 2: TILE_OF(BFLOAT16, 1); break;
        case 3: TILE_OF(BFLOAT16, TILE); break;
        case 4: TILE_OF(INT8, 1); break;
        default: TILE_OF(INT8, TILE);
      }
      for (uint32_t j = p; j < p + P && j < n; j++) {
        vec *out = (vec *)y + (u64)j*blocks + i, s = sum[j - p];
        if (bias) s += ((const vec *)AT(bias, layer))[i];
        if (add) s += *out;
        *out = s;
      }
    }
  meet(g);
}

/* LayerNorm or RMSNorm of n numbers, and zeros after them up to a multiple of GROUP. */
static void normalise(const GPT *g, float *out, const float *x, const real *w, uint32_t n) {
  double mean = 0, square = 0;
  for (uint32_t i = 0; i < n && g->h.norm == LAYERNORM; i++) mean += (double)x[i] / n;
  for (uint32_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
  float m = (float)mean, scale = (float)(1 / sqrt(square / n + g->h.eps));
  for (uint32_t i = 0; i < n; i++) out[i] = (x[i] - m) * scale * w[i] + w[up(n, LANES) + i];
  for (uint32_t i = n; i < up(n, GROUP); i++) out[i] = 0;
}

/* The MLP's activation of sixteen channels. GELU's tanh form is x / (1 + e^-z), z = 2 sqrt(2/pi) (x + 0.044715 x^3). */
INLINE void activate(uint32_t mlp, vec *to, const float *value) {
  vec v = all(1), x = *to, z = x, zero = all(0);
  if (mlp == RELU2) { raise_to(&x, &zero); *to = x * x; return; }
  if (mlp == GELU) z = (x + x*x*x * 0.044715f) * 1.59576912f; else memcpy(&v, value, sizeof v);
  z = -z; exponentiate(&z);
  *to = x / (z + 1.0f) * v;
}

/* What the next matrix reads of each position: a norm of x if there are its weights, else y, activated or as it is. */
static void prepare(GPT *g, uint32_t me, uint32_t first, uint32_t n, const real *norm, uint32_t columns, int active) {
  float *x = g->rows + me*widest(&g->h);
  u64 stride = up(active ? g->c_fc.outputs : g->c_attn.outputs, LANES);
  for (uint32_t p = me; p < n; p += g->n_threads) {
    const float *y = g->y + p*stride;
    if (norm) normalise(g, x, g->x + (first + p)*up(columns, LANES), norm, columns);
    else if (active) for (uint32_t i = 0; i < columns; i += LANES) {
      *(vec *)(x + i) = *(const vec *)(y + i);
      activate(g->h.mlp, (vec *)(x + i), y + columns + i);
    }
    else memcpy(x, y, 4*columns);
    for (u64 i = columns; i < up(columns, GROUP); i++) x[i] = 0;
    pack(g, x, columns, p, n == 1 ? 1 : TILE);
  }
  meet(g);
}

/* A query or key: normalised (--qk-norm), turned to its position (RoPE), times a factor. */
static void turn_head(const GPT *g, float *out, const float *x, uint32_t t, float factor) {
  uint32_t hs = g->h.head_size, half = hs / 2;
  float square = 0;
  for (uint32_t i = 0; i < hs; i++) square += x[i] * x[i];
  if (g->h.qk_norm) factor /= sqrtf(square / (float)hs + g->h.eps);
  for (uint32_t i = 0; i < hs; i++) out[i] = x[i] * factor;
  for (uint32_t i = 0; i < half && g->h.pos == ROPE; i++) {
    const float *a = g->turns + (u64)t*hs + 2*i, u = out[i], v = out[i + half];
    out[i] = u*a[0] - v*a[1]; out[i + half] = v*a[0] + u*a[1];
  }
}

/* Attention of the new positions, for one head of keys and the queries that share it. Keys lie like a matrix, sixteen
   positions side by side; the result takes the queries' place. */
static void attend(GPT *g, uint32_t layer, uint32_t head, uint32_t me) {
  uint32_t hs = g->h.head_size, hp = (uint32_t)up(hs, LANES), T = (uint32_t)up(g->h.block_size, LANES);
  uint32_t share = g->h.n_head / g->h.n_kv_head, A = g->h.n_head*hs, K = g->h.n_kv_head*hs;
  u64 cache = ((u64)layer*g->h.n_kv_head + head) * T, stride = up(A + 2*K, LANES);
  float *scores = g->scores + (u64)me*(T + hp), *q = scores + T;
  float *keys = g->keys + cache*hs, *values = g->values + cache*hp;
  vec *s = (vec *)scores;
  for (uint32_t p = 0; p < g->n; p++) {
    uint32_t t = g->start + p;
    const float *k = g->y + p*stride + A + head*hs;
    turn_head(g, q, k, t, 1);
    for (uint32_t i = 0; i < hs; i++) keys[(t / LANES * hs + i)*LANES + t % LANES] = q[i];
    memcpy(values + (u64)t*hp, k + K, 4*hs);
  }
  for (uint32_t p = 0; p < g->n; p++) for (uint32_t h = head*share; h < (head + 1)*share; h++) {
    uint32_t n = g->start + p + 1, blocks = (n + LANES - 1) / LANES;
    float *y = g->y + p*stride + h*hs, high = -1e30f, total = 0;
    vec top = all(high), sum = all(0);
    turn_head(g, q, y, n - 1, 1 / sqrtf((float)hs));
    for (uint32_t b = 0; b < blocks; b++) {
      const vec *k = (const vec *)keys + (u64)b*hs;
      s[b] = all(0);
      for (uint32_t i = 0; i < hs; i++) s[b] += k[i] * q[i];
    }
    for (uint32_t i = n; i < blocks*LANES; i++) scores[i] = -1e30f;  /* what is yet to come */
    for (uint32_t b = 0; b < blocks; b++) raise_to(&top, s + b);
    for (int i = 0; i < LANES; i++) high = top[i] > high ? top[i] : high;
    for (uint32_t b = 0; b < blocks; b++) { s[b] -= high; exponentiate(s + b); sum += s[b]; }
    for (int i = 0; i < LANES; i++) total += sum[i];
    for (uint32_t i = 0; i < hp; i += 4*LANES) {
      vec out[4] = {all(0), all(0), all(0), all(0)};
      uint32_t m = (hp - i) / LANES < 4 ? (hp - i) / LANES : 4;
      const vec *v = (const vec *)(values + i);
      for (uint32_t t = 0; t < n; t++, v += hp / LANES)
        if (m == 4) for (int j = 0; j < 4; j++) out[j] += v[j] * scores[t];
        else for (uint32_t j = 0; j < m; j++) out[j] += v[j] * scores[t];
      for (uint32_t j = 0; j < m; j++) ((vec *)(q + i))[j] = out[j] * (1 / total);
    }
    memcpy(y, q, 4*hs);
  }
}

/* One pass over the positions start ... start + n - 1, by all threads at once. */
static void forward(GPT *g, uint32_t me) {
  uint32_t C = g->h.n_embd, n = g->n, last = g->last;  /* after the last `meet` these are the next pass's */
  u64 stride = up(C, LANES);
  for (uint32_t p = me; p < n; p += g->n_threads) {
    float *x = g->x + p*stride;
    unpack(g, g->wte, (uint32_t)g->ids[p], x);
    if (g->wpe) for (uint32_t i = 0; i < C; i++) x[i] += g->wpe[(g->start + p)*stride + i];
  }
  meet(g);
  for (uint32_t l = 0; l < g->h.n_layer; l++) {
    prepare(g, me, 0, n, AT(g->ln_1, l), C, 0);
    multiply(g, g->c_attn, l, g->b_attn, n, g->y, 0);
    for (uint32_t head; (head = take(g, 1)) < g->h.n_kv_head;) attend(g, l, head, me);
    meet(g);
    prepare(g, me, 0, n, NULL, g->c_proj.inputs, 0);
    multiply(g, g->c_proj, l, g->b_proj, n, g->x, 1);
    prepare(g, me, 0, n, AT(g->ln_2, l), C, 0);
    multiply(g, g->c_fc, l, g->b_fc, n, g->y, 0);
    prepare(g, me, 0, n, NULL, g->c_out.inputs, 1);
    multiply(g, g->c_out, l, g->b_out, n, g->x, 1);
  }
  if (!last) return;
  prepare(g, me, n - 1, 1, g->ln_f, C, 0);
  multiply(g, g->head, 0, NULL, 1, g->logits, 0);
}

#if defined(THREADS)
/* What threads 1, 2, ... do until `stop`: wait for a pass, and take part in it. */
static void help(GPT *g, uint32_t me) { for (meet(g); !g->stop; meet(g)) forward(g, me); }
#endif

/* Read n tokens that stand at the positions start, start + 1, ...; the logits after the last of them. */
static float *read_tokens(GPT *g, const int32_t *ids, uint32_t n, uint32_t start) {
  for (; n; ids += g->n, start += g->n, n -= g->n) {
    g->n = n < BATCH ? n : BATCH; g->ids = ids; g->start = start; g->last = g->n == n;
    meet(g);
    forward(g, 0);
  }
  return g->logits;
}

/* ---- 6. the tokenizer: tokenizer.py explains it ---- */

static uint32_t token_size(const GPT *g, uint32_t i) { return g->offsets[i + 1] - g->offsets[i]; }

/* The token with these bytes; -1 if there is none. */
static int32_t find_token(const GPT *g, const char *text, uint32_t n) {
  for (uint32_t low = 0, high = g->h.n_sorted; low < high;) {
    uint32_t middle = (low + high) / 2, i = g->sorted[middle], size = token_size(g, i);
    int order = memcmp(g->bytes + g->offsets[i], text, size < n ? size : n);
    if (!order && size == n) return (int32_t)i;
    if (order < 0 || (!order && size < n)) low = middle + 1; else high = middle;
  }
  return -1;
}

/* The id that two neighbours make; INT32_MAX if they don't merge. A merge that was learned earlier makes a lower id. */
static int32_t find_merge(const GPT *g, int32_t a, int32_t b) {
  u64 pair = (u64)a << 32 | (u64)b;
  for (uint32_t low = 0, high = g->h.n_merges; low < high;) {
    uint32_t middle = (low + high) / 2;
    const word *m = g->merges + 3*middle;
    u64 here = (u64)m[0] << 32 | m[1];
    if (here == pair) return (int32_t)m[2];
    if (here < pair) low = middle + 1; else high = middle;
  }
  return INT32_MAX;
}

enum { OTHER, LETTER, DIGIT, SPACE };

/* The code, the class and the number of bytes of the character that a UTF-8 text begins with. */
static uint32_t character(const GPT *g, const char *text, uint32_t n, uint32_t *code, uint32_t *class) {
  const unsigned char *s = (const unsigned char *)text;
  uint32_t size = s[0] < 0xc0 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
  if (size > n) size = 1;
  *code = size == 1 ? s[0] : s[0] & (0x7fu >> size);
  for (uint32_t i = 1; i < size; i++) *code = *code << 6 | (s[i] & 63);
  *class = OTHER;
  for (uint32_t low = 0, high = g->h.n_classes; low < high;) {
    uint32_t middle = (low + high) / 2;
    const word *c = g->classes + 3*middle;
    if (*code < c[0]) high = middle; else if (*code > c[1]) low = middle + 1; else { *class = c[2]; break; }
  }
  return size;
}

/* How many bytes a run of at most `most` characters of one class has. */
static uint32_t run(const GPT *g, const char *s, uint32_t n, uint32_t class, uint32_t most) {
  uint32_t i = 0, code, here;
  for (uint32_t size; i < n && most--; i += size) {
    size = character(g, s + i, n - i, &code, &here);
    if (here != class) break;
  }
  return i;
}

/* The bytes of the word that a text begins with, by the patterns of GPT-2 or of GPT-4. */
static uint32_t next_word(const GPT *g, const char *s, uint32_t n) {
  static const char *const endings[] = {"s", "d", "m", "t", "ll", "ve", "re", "\xc5\xbf"};  /* the last is a long s */
  int gpt4 = g->h.tokenizer == WORDS_GPT4;
  uint32_t code, class, here, size = character(g, s, n, &code, &class), length, i, last = 0, after = code == ' ';
  for (int e = 0; code == '\'' && e < 7 + gpt4; e++) {
    for (i = 0; endings[e][i] && 1 + i < n; i++)
      if ((gpt4 && s[1 + i] >= 'A' && s[1 + i] <= 'Z' ? s[1 + i] + 32 : s[1 + i]) != endings[e][i]) break;
    if (!endings[e][i]) return 1 + i;
  }
  if (gpt4) {  /* letters after one character of another kind; three digits; signs, and the line's end with them */
    uint32_t skip = code == '\r' || code == '\n' || class == LETTER || class == DIGIT ? 0 : size;
    if ((length = run(g, s + skip, n - skip, LETTER, n))) return skip + length;
    if (class == DIGIT) return run(g, s, n, DIGIT, 3);
    if ((length = run(g, s + after, n - after, OTHER, n))) {
      for (i = after + length; i < n && (s[i] == '\r' || s[i] == '\n');) i++;
      return i;
    }
  } else for (uint32_t c = OTHER; c <= DIGIT; c++)  /* a run of one kind, and a space before it */
    if ((length = run(g, s + after, n - after, c, n))) return after + length;
  length = run(g, s, n, SPACE, n);
  if (length == n) return n;
  if (gpt4) for (i = length; i-- > 0;) if (s[i] == '\r' || s[i] == '\n') return i + 1;
  for (i = 0; i < length; i += character(g, s + i, n - i, &code, &here)) last = i;
  return last ? last : size;  /* white space but for its last character, which goes with what follows */
}

/* The ids of a text without special tokens, at most as many as it has bytes; -1, and where, if a character has none. */
static int32_t encode_ordinary(const GPT *g, const char *s, uint32_t n, int32_t *ids, uint32_t *bad) {
  int32_t count = 0;
  for (uint32_t at = 0, size, code, class; at < n; at += size) {
    size = g->h.tokenizer == CHARACTERS ? character(g, s + at, n - at, &code, &class)
         : g->h.tokenizer == BYTES ? n : next_word(g, s + at, n - at);
    int32_t *w = ids + count, whole = find_token(g, s + at, size), k = whole < 0 ? (int32_t)size : 1;
    *bad = at;
    if (whole < 0 && g->h.tokenizer == CHARACTERS) return -1;
    for (int32_t i = 0; i < k; i++) w[i] = whole < 0 ? (int32_t)g->byte_ids[(unsigned char)s[at + (uint32_t)i]] : whole;
    for (int32_t best = 0; best != INT32_MAX;) {  /* merge the pair that was learned first, until none is left */
      int32_t a = 0, b = 0, left = 0, made;
      best = INT32_MAX;
      for (int32_t i = 0; i + 1 < k; i++)
        if ((made = find_merge(g, w[i], w[i + 1])) < best) { best = made; a = w[i]; b = w[i + 1]; }
      for (int32_t i = 0; i < k && best != INT32_MAX; i++)
        if (i + 1 < k && w[i] == a && w[i + 1] == b) { w[left++] = best; i++; } else w[left++] = w[i];
      if (best != INT32_MAX) k = left;
    }
    count += k;
  }
  return count;
}

/* The same with special tokens. */
static int32_t encode(const GPT *g, const char *s, uint32_t n, int32_t *ids, uint32_t *bad) {
  int32_t count = 0, more;
  for (uint32_t from = 0, at = 0; at <= n; at++) {
    uint32_t k = 0;
    while (k < g->h.n_special && (token_size(g, g->special[k]) > n - at ||
           memcmp(s + at, g->bytes + g->offsets[g->special[k]], token_size(g, g->special[k])))) k++;
    if (at < n && k == g->h.n_special) continue;
    more = encode_ordinary(g, s + from, at - from, ids + count, bad);
    *bad += from;
    if (more < 0) return -1;
    count += more;
    if (at == n) break;
    ids[count++] = (int32_t)g->special[k];
    from = at + token_size(g, g->special[k]);
    at = from - 1;
  }
  return count;
}

/* The token that ends a text: a turn's where the tokenizer has turns, else a document's; -1 if there is none. */
static int32_t end_token(const GPT *g) {
  static const char *const names[] = {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"};
  int32_t ids[5];
  for (int i = 0; i < 5; i++) {
    ids[i] = -1;
    for (uint32_t k = 0, size = (uint32_t)strlen(names[i]); k < g->h.n_special; k++)
      if (token_size(g, g->special[k]) == size && !memcmp(g->bytes + g->offsets[g->special[k]], names[i], size))
        ids[i] = (int32_t)g->special[k];
  }
  return ids[0] < 0 || ids[1] < 0 || ids[2] < 0 || ids[3] < 0 ? ids[4] : ids[3];
}

/* ---- 7. what is shown: whole characters only, and nothing from the stop string on ---- */

typedef struct {
  const char *stop;                              /* NULL: none */
  char *held;                                    /* what may be its beginning, n_held bytes */
  void (*put)(const char *text, uint32_t n);
  unsigned char begun[4], low, high;             /* a character's first bytes, and what the next one may be */
  uint32_t n_begun, need, n_held, stopped;
} Text;

static void show_character(Text *t, const void *bytes, uint32_t n) {
  t->n_begun = t->need = 0;
  if (!t->stop) t->put(bytes, n);
  else for (uint32_t i = 0; i < n && !t->stopped; i++) {
    t->held[t->n_held++] = ((const char *)bytes)[i];
    for (; memcmp(t->held, t->stop, t->n_held); memmove(t->held, t->held + 1, --t->n_held)) t->put(t->held, 1);
    t->stopped = t->n_held == strlen(t->stop);
  }
}

/* Bytes that aren't UTF-8 are shown as U+FFFD, one for all that could have begun a character, as Python does it. */
static void show(Text *t, const unsigned char *s, uint32_t n) {
  for (uint32_t i = 0; i < n && !t->stopped; i++) {
    if (t->need && (s[i] < t->low || s[i] > t->high)) show_character(t, "\xef\xbf\xbd", 3);
    int begins = !t->need, c = t->begun[t->n_begun++] = s[i];
    if (begins && c >= 0x80 && (c < 0xc2 || c > 0xf4)) { show_character(t, "\xef\xbf\xbd", 3); continue; }
    t->need = !begins ? t->need - 1 : c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    t->low = begins && c == 0xe0 ? 0xa0 : begins && c == 0xf0 ? 0x90 : 0x80;
    t->high = begins && c == 0xed ? 0x9f : begins && c == 0xf4 ? 0x8f : 0xbf;
    if (!t->need) show_character(t, t->begun, t->n_begun);
  }
}

static void show_end(Text *t) {
  if (t->need) show_character(t, "\xef\xbf\xbd", 3);
  if (!t->stopped && t->n_held) t->put(t->held, t->n_held);
}

/* ---- 8. choosing a token ----

   By the same numbers as in generate.py, so the same seed gives the same text: NumPy's generator, PCG64 (O'Neill 2014),
   whose 128 bits come from the seed by its SeedSequence. */

typedef struct { u64 high, low, odd_high, odd_low; } Random;
typedef struct { double temperature, top_p; uint32_t top_k, *order; double *p; Random random; int32_t end; } Choice;

static u64 draw64(Random *r) {  /* state = state * multiplier + odd, in 128 bits */
  const u64 mh = 2549297995355413924u, ml = 4865540595714422341u, half = 0xffffffffu;
  u64 a = r->low >> 32, b = r->low & half, c = ml >> 32, d = ml & half, ad = a*d + (b*d >> 32), bc = b*c + (ad & half);
  u64 high = a*c + (ad >> 32) + (bc >> 32) + r->high*ml + r->low*mh;
  r->low = r->low*ml + r->odd_low;
  r->high = high + r->odd_high + (r->low < r->odd_low);
  u64 x = r->high ^ r->low, n = r->high >> 58;
  return x >> n | x << (-n & 63);
}

static uint32_t stir(uint32_t value, uint32_t *constant, uint32_t multiplier) {
  value ^= *constant; *constant *= multiplier; value *= *constant;
  return value ^ value >> 16;
}

static Random seeded(u64 seed) {
  uint32_t pool[4] = {(uint32_t)seed, (uint32_t)(seed >> 32), 0, 0}, constant = 0x43b0d7e5;
  u64 w[4] = {0};
  for (int i = 0; i < 4; i++) pool[i] = stir(pool[i], &constant, 0x931e8875);
  for (int i = 0; i < 4; i++) for (int j = 0; j < 4; j++) if (i != j) {
    uint32_t x = 0xca01f9ddu * pool[j] - 0x4973f715u * stir(pool[i], &constant, 0x931e8875);
    pool[j] = x ^ x >> 16;
  }
  constant = 0x8b51f9dd;
  for (int i = 0; i < 8; i++) w[i / 2] |= (u64)stir(pool[i % 4], &constant, 0x58f38ded) << i % 2 * 32;
  Random r = {0, 0, w[2] << 1 | w[3] >> 63, w[3] << 1 | 1};
  draw64(&r);
  r.low += w[1]; r.high += w[0] + (r.low < w[1]);
  draw64(&r);
  return r;
}

INLINE int less_likely(const float *z, uint32_t a, uint32_t b) { return z[a] < z[b] || (z[a] == z[b] && a > b); }

/* Move the element at `at` down to its place in a heap of n, whose root is the least likely. */
static void sink(uint32_t *heap, uint32_t n, uint32_t at, const float *z) {
  for (uint32_t child; (child = 2*at + 1) < n; at = child) {
    if (child + 1 < n && less_likely(z, heap[child + 1], heap[child])) child++;
    if (!less_likely(z, heap[child], heap[at])) break;
    uint32_t moved = heap[at]; heap[at] = heap[child]; heap[child] = moved;
  }
}

/* The next token, from the logits of V tokens. `order` and `p` have room for V. */
static uint32_t choose(Choice *c, const float *z, uint32_t V) {
  uint32_t k = c->temperature == 0 ? 1 : c->top_k && c->top_k < V ? c->top_k : V, *order = c->order, i;
  for (i = 0; i < k; i++) order[i] = i;
  for (i = k / 2; i-- > 0;) sink(order, k, i, z);
  for (i = k; i < V; i++) if (z[i] > z[order[0]]) { order[0] = i; sink(order, k, 0, z); }
  for (i = k; i-- > 1; sink(order, i, 0, z)) {  /* the least likely to the end, again and again: the likeliest first */
    uint32_t least = order[0]; order[0] = order[i]; order[i] = least;
  }
  if (c->temperature == 0) return order[0];
  double sum = 0, reached = 0, *p = c->p, u;
  for (i = 0; i < k; i++) sum += p[i] = exp(z[order[i]] / c->temperature - z[order[0]] / c->temperature);
  if (c->top_p < 1) {
    for (i = 0; i < k && reached < c->top_p; i++) reached += p[i] / sum;
    k = i;  /* up to and with the token that reaches top_p */
    for (sum = 0, i = 0; i < k; i++) sum += p[i];
  }
  u = (double)(draw64(&c->random) >> 11) / 9007199254740992.0 * sum;
  for (i = 0, reached = p[0]; i + 1 < k && reached <= u;) reached += p[++i];
  return order[i];
}

/* Go on for `count` tokens, or to the token that ends the text, after the n in `ids`, which has room for block_size and
   one more. When the context is full, `keep` tokens of it are read again, as their positions have changed. `seen`, if
   any, gets the logits before each choice. */
static void generate(GPT *g, Choice *c, Text *text, int32_t *ids, uint32_t n, uint32_t count, uint32_t keep,
                     void (*seen)(const float *logits, uint32_t n)) {
  uint32_t T = g->h.block_size, length = 0;  /* length: positions that the cache holds */
  if (n > T) { memmove(ids, ids + n - T, 4ull*T); n = T; }
  while (count-- && !text->stopped) {
    if (length == T) { memmove(ids, ids + n - keep, 4ull*keep); n = keep; length = 0; }
    float *z = read_tokens(g, ids + length, n - length, length);
    length = n;
    if (seen) seen(z, g->h.n_tokens);
    uint32_t token = choose(c, z, g->h.n_tokens);
    if ((int32_t)token == c->end) break;
    ids[n++] = (int32_t)token;
    show(text, g->bytes + g->offsets[token], token_size(g, token));
  }
  if (!text->stopped) show_end(text);
}

/* ---- 9. a program around it ---- */

#ifndef NO_MAIN
#include <stdio.h>
#include <stdlib.h>
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif
#if defined(EMBEDDED)
extern const u64 embedded[];  /* model.bin as numbers, at the end of this file */
#endif

static void fail(const char *what, const char *which) {
  fprintf(stderr, "model: %s%s\n", what, which);
  exit(2);
}

static void print(const char *text, uint32_t n) { fwrite(text, 1, n, stdout); fflush(stdout); }
static void print_nothing(const char *text, uint32_t n) { (void)text; (void)n; }
static void print_logits(const float *z, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) printf("%.9g%c", (double)z[i], i + 1 < n ? ' ' : '\n');
}

static void *memory(u64 bytes, u64 alignment) {  /* zeros */
  char *p = bytes < SIZE_MAX - alignment ? calloc(1, (size_t)(bytes + alignment)) : NULL;
  if (!p) fail("there isn't enough memory for the model", "");
  return p + alignment - ((uintptr_t)p & (alignment - 1));
}

static void *read_file(const char *path, u64 *size) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) fail("there is no file to read: ", path);
  long end = ftell(file);
  void *bytes = end < 0 ? NULL : memory(*size = (u64)end, 1 << 21);
#if defined(MADV_HUGEPAGE)  /* pages of 2 MB: with those of 4 KB a token takes half as long again */
  madvise(bytes, (size_t)*size, MADV_HUGEPAGE);
#endif
  rewind(file);
  if (!bytes || fread(bytes, 1, (size_t)end, file) != (size_t)end) fail("this can't be read: ", path);
  fclose(file);
  return bytes;
}

enum { COUNT, TEMPERATURE, TOP_K, TOP_P, SEED, KEEP, HELPERS, N_NUMBERS, MODEL = 0, PROMPT, STOP, VERBOSE, LOGITS,
       TO_END };
static const struct { const char *name; double low, high, usual; const char *help; } NUMBERS[] = {
  {"--max-new-tokens", 1, 1e9, 500, "tokens to add to the prompt (500)"},
  {"--temperature", 0, 1e9, 0.8, "below 1 bolder choices become rarer; 0 always takes the likeliest token (0.8)"},
  {"--top-k", 0, 1e9, 200, "choose among the k likeliest tokens; 0 for all (200)"},
  {"--top-p", 1e-9, 1, 1, "choose among the likeliest tokens that make up this much probability (1)"},
  {"--seed", 0, 9007199254740992, 1337, "of the choices (1337)"},
  {"--keep", 0, 1e9, 0, "tokens kept when the context is full (all)"},
  {"--threads", 1, 64, 0, "as many as the machine has cores"}};
static const char *const TEXTS[] = {"--model", "--prompt", "--stop", "--verbose", "--logits", "--to-end"};

static void parse(int argc, char **argv, double *number, const char **text) {
  for (int i = 0; i < N_NUMBERS; i++) if (NUMBERS[i].usual != 0) number[i] = NUMBERS[i].usual;
  for (int i = 1, n, t; i < argc; i++) {
    char *value = strchr(argv[i], '='), *given = argv[i], *end;
    if (value) *value++ = 0;
    for (n = N_NUMBERS - 1; n >= 0 && strcmp(given, NUMBERS[n].name); n--) {}
    for (t = TO_END; t >= 0 && strcmp(given, TEXTS[t]); t--) {}
    if (!strcmp(given, "--help") || !strcmp(given, "-h")) {
      printf("usage: model [--model model.bin] [--prompt TEXT] [--stop TEXT] [--to-end] [--verbose] [--logits]\n");
      for (n = 0; n < N_NUMBERS; n++) printf("  %-18s%s\n", NUMBERS[n].name, NUMBERS[n].help);
      exit(0);
    }
    if (n < 0 && t < 0) fail("there is no such option (see --help): ", given);
    if (!value) value = t >= VERBOSE ? given : ++i < argc ? argv[i] : NULL;
    if (!value || !*value) fail("an option needs a value: ", given);
    if (t >= 0) { text[t] = value; continue; }
    number[n] = strtod(value, &end);
    if (*end || !(number[n] >= NUMBERS[n].low && number[n] <= NUMBERS[n].high) ||
        (n != TEMPERATURE && n != TOP_P && number[n] != floor(number[n]))) {
      fprintf(stderr, "model: %s can't be %s\n", NUMBERS[n].name, value);
      exit(2);
    }
  }
}

#if defined(THREADS)
typedef struct { GPT *g; uint32_t me; pthread_t thread; } Helper;
static void *helper(void *h) { help(((Helper *)h)->g, ((Helper *)h)->me); return NULL; }
#endif

int main(int argc, char **argv) {
  static GPT g;
  static char where[4096];
  const char *text[TO_END + 1] = {NULL}, *slash = strrchr(argv[0], '/');
  double number[N_NUMBERS] = {0};
  u64 size = 0, byte;
  number[HELPERS] = 1;
#if defined(THREADS)
  long cores = sysconf(_SC_NPROCESSORS_ONLN);
  number[HELPERS] = cores < 1 ? 1 : cores > 64 ? 64 : (double)cores;
  static Helper helpers[64];
#endif
#if defined(_WIN32)
  _setmode(_fileno(stdout), _O_BINARY);
#endif
  parse(argc, argv, number, text);
  snprintf(where, sizeof where, "%.*smodel.bin", slash ? (int)(slash - argv[0] + 1) : 0, argv[0]);
#if defined(EMBEDDED)
  const void *file = text[MODEL] ? read_file(text[MODEL], &size) : embedded;
  if (!text[MODEL]) size = EMBEDDED;
#else
  if (!text[MODEL]) text[MODEL] = where;
  const void *file = read_file(text[MODEL], &size);
#endif
  const char *wrong = open_model(&g, file, size, &byte), *prompt = text[PROMPT] ? text[PROMPT] : "\n";
  if (wrong) {
    fprintf(stderr, "model: %s is damaged: %s (byte %llu)\n", text[MODEL], wrong, (unsigned long long)byte);
    return 2;
  }
  uint32_t T = g.h.block_size, bad = 0, keep = number[KEEP] > 0 ? (uint32_t)number[KEEP] : T;
  if (number[KEEP] > T) fail("--keep can't be more than the tokens of context", "");
  uint32_t length = (uint32_t)strlen(prompt), n_threads = (uint32_t)number[HELPERS];
  int32_t *ids = memory(4 * ((u64)length + T + 1), 64), n = encode(&g, prompt, length, ids, &bad);
  if (n < 0 && text[PROMPT]) fail("--prompt: the vocabulary doesn't have the first character of ", prompt + bad);
  if (n < 0) n = 1;  /* no prompt, and a vocabulary without a new line: its first token */
  u64 need = lay_out(&g, NULL, n_threads);
  lay_out(&g, memory(need, 64), n_threads);
  if (n + number[COUNT] > T)
    fprintf(stderr, "the model sees %u tokens at a time: of a longer text only the newest\n", T);
  if (text[VERBOSE])
    fprintf(stderr, "%.1f MB of weights, and an arena of %.1f MB\n", (double)size / 1e6, (double)need / 1e6);
#if defined(THREADS)
  for (uint32_t i = 1; i < n_threads; i++) {
    helpers[i].g = &g; helpers[i].me = i;
    if (pthread_create(&helpers[i].thread, NULL, helper, helpers + i)) fail("a thread can't be started", "");
  }
#endif
  Choice c = {number[TEMPERATURE], number[TOP_P], (uint32_t)number[TOP_K], memory(4ull*g.h.n_tokens, 64),
              memory(8ull*g.h.n_tokens, 64), seeded((u64)number[SEED]),
              text[LOGITS] || text[TO_END] ? -1 : end_token(&g)};
  Text shown = {text[STOP], memory(text[STOP] ? strlen(text[STOP]) : 1, 64), text[LOGITS] ? print_nothing : print,
                {0}, 0, 0, 0, 0, 0, 0};
  if (text[PROMPT] && !text[LOGITS]) print(prompt, length);
  generate(&g, &c, &shown, ids, (uint32_t)n, (uint32_t)number[COUNT], keep, text[LOGITS] ? print_logits : NULL);
  puts("");
  g.stop = 1;
  meet(&g);
#if defined(THREADS)
  for (uint32_t i = 1; i < n_threads; i++) pthread_join(helpers[i].thread, NULL);
#endif
  return 0;
}
#endif
