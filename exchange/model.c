/* A GPT in one C file: text in, text out, on any machine with a C compiler that is gcc or clang (zig cc is clang).

       cc -O3 -march=native -o model model.c -lm -lpthread        (--build of `gpt.py export --to c` does this)
       ./model --prompt 'ROMEO:' --max-new-tokens 200

   `python gpt.py export --to c RUN OUT` writes it beside model.bin, which holds the weights and the tokenizer; the file's
   format is in the order in which `open_model` reads it. Read from top to bottom:

       1. the file        2. memory         3. numbers and dot products    4. threads      5. the model
       6. the tokenizer   7. what is shown  8. choosing a token            9. a program around it

   Sections 1 to 8 need no operating system: no files, no allocation, one piece of memory. Only `main` does. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if (defined(__unix__) || defined(__APPLE__)) && !defined(NO_MAIN)
#define THREADS
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

/* Sixteen numbers at once. A compiler makes one AVX-512 register of it, or two of AVX2, or four of NEON, SSE or wasm. */
typedef float    vec  __attribute__((vector_size(64), may_alias));
typedef int32_t  ivec __attribute__((vector_size(64), may_alias));
typedef uint32_t uvec __attribute__((vector_size(64), may_alias));
typedef uint32_t word __attribute__((may_alias));
typedef float    real __attribute__((may_alias));

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  /* that a vec is passed in other registers with AVX-512: all callers are here */
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif
#if defined(__AVX512F__)
enum { TILE = 8 };  /* positions that share one reading of the weights: their sums stay in registers */
#elif defined(__AVX2__) || defined(__aarch64__)
enum { TILE = 4 };
#else
enum { TILE = 2 };
#endif
enum { LANES = 16, GROUP = 64, BATCH = 128 };  /* BATCH: positions of a prompt that go through the model together */
#define INLINE static inline __attribute__((always_inline))

/* ---- 1. the file ----

   32-bit words in little-endian order: this header, then tables and tensors, each beginning at a multiple of 64 bytes.
   A matrix has a row for each output. Sixteen rows make a block, and in it the sixteen rows' words for the same inputs lie
   side by side, so that one multiplication of a vec serves sixteen outputs and memory is read from front to back. A word
   is one float32, or two bfloat16, or four int8 (input i, i + 16, ... of as many as a line of sixteen words holds). In
   int8 a line of sixteen scales stands before each group of 64 inputs: weight = scale * (byte - 128). */

enum { FLOAT32, BFLOAT16, INT8 };                       /* dtype */
enum { LAYERNORM, RMSNORM, GELU = 0, RELU2, SWIGLU, LEARNED = 0, ROPE, NOWHERE };  /* norm, mlp, pos */
enum { CHARACTERS, BYTES, WORDS_GPT2, WORDS_GPT4 };     /* tokenizer: BYTES is BPE without a split into words */

typedef struct {
  char magic[8];
  uint32_t version, dtype, block_size, vocab_size, n_layer, n_head, n_kv_head, head_size, n_embd, n_hidden;
  uint32_t norm, mlp, pos, tied, qk_norm;
  uint32_t tokenizer, n_tokens, n_merges, n_special, n_classes, n_sorted, n_bytes;
  float eps, rope_base;
} Header;

static const uint32_t LIMITS[][2] = {  /* of the header's words, from `version` on */
  {1, 1}, {0, 2}, {1, 1 << 20}, {1, 1 << 24}, {1, 4096}, {1, 4096}, {1, 4096}, {1, 4096}, {1, 1 << 16}, {1, 1 << 18},
  {0, 1}, {0, 2}, {0, 2}, {0, 1}, {0, 1}, {0, 3}, {1, 1 << 24}, {0, 1 << 24}, {0, 1 << 16}, {0, 1 << 16}, {0, 1 << 24},
  {0, 1u << 31}};

typedef struct { const uvec *w; uint32_t outputs, inputs; } Matrix;

typedef struct {
  Header h;
  const word *offsets, *byte_ids, *merges, *special, *classes, *sorted;  /* the tokenizer, see section 6 */
  const unsigned char *bytes;
  Matrix wte, head, c_attn, c_proj, c_fc, c_out;  /* those of the first block; the others follow at equal distances */
  const real *wpe, *ln_f, *ln_1, *b_attn, *b_proj, *ln_2, *b_fc, *b_out;
  uint64_t stride;  /* bytes from one block to the next */
  /* memory that changes (section 2) */
  uint32_t n_threads, n, start, last;     /* the positions start ... start + n - 1 are computed; their logits if `last` */
  const int32_t *ids;
  float *x, *y, *rows, *logits, *keys, *values, *scores, *turns, *scales;
  word *words;
  int32_t *sums;
  int arrived, turn, next, stop;           /* threads (section 4) */
} GPT;

typedef struct { const unsigned char *file; uint64_t at, size; } Reader;

static uint64_t up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static const void *part(Reader *r, uint64_t bytes) {
  const void *p = r->at < r->size ? r->file + r->at : NULL;
  r->at += up(bytes, 64);
  return p;
}

static uint64_t matrix_bytes(uint32_t dtype, uint64_t outputs, uint64_t inputs) {
  static const uint64_t per_group[] = {256, 128, 68};
  return up(outputs, LANES) * (up(inputs, GROUP) / GROUP) * per_group[dtype];
}

static Matrix matrix(Reader *r, uint32_t dtype, uint32_t outputs, uint32_t inputs) {
  Matrix m = {part(r, matrix_bytes(dtype, outputs, inputs)), outputs, inputs};
  return m;
}

/* Read the model in `file`, which begins at a multiple of 64 bytes and stays where it is. Returns what is wrong with it,
   and at which byte; NULL if nothing is. */
static const char *open_model(GPT *g, const void *file, uint64_t size, uint64_t *byte) {
  Header *h = &g->h;
  Reader r = {file, 0, size};
  memset(g, 0, sizeof *g);
  *byte = size;
  if (size < sizeof *h) return "it ends before its header does";
  memcpy(h, part(&r, sizeof *h), sizeof *h);
  *byte = 0;
  if (memcmp(h->magic, "llmfundC", 8)) return "it isn't a model that gpt.py export --to c wrote";
  for (uint32_t i = 0; i < sizeof LIMITS / sizeof *LIMITS; i++) {
    uint32_t value; *byte = 8 + 4*i;
    memcpy(&value, (const char *)file + *byte, 4);
    if (value < LIMITS[i][0] || value > LIMITS[i][1]) return i ? "this number can't be" : "it is of another version";
  }
  *byte = 32;
  if (h->n_kv_head > h->n_head || h->n_head % h->n_kv_head) return "the heads can't share their keys equally";
  *byte = 36;
  if (h->pos == ROPE && h->head_size % 2) return "a head of odd size can't be rotated";
  *byte = 72;
  if (h->n_tokens > h->vocab_size) return "the tokenizer has more tokens than the model";
  *byte = 96;
  if (!(h->eps > 0 && h->eps < 1) || !(h->rope_base >= 1 && h->rope_base < 1e9f)) return "this number can't be";

  g->offsets = part(&r, 4*(h->n_tokens + 1ull));   /* token i is bytes[offsets[i]] ... bytes[offsets[i + 1]] */
  g->bytes = part(&r, h->n_bytes);
  g->sorted = part(&r, 4ull*h->n_sorted);          /* the ids of tokens that text can become, by their bytes */
  g->special = part(&r, 4ull*h->n_special);        /* ids of special tokens, the longest first */
  g->byte_ids = part(&r, 4*256);                   /* the id of each byte */
  g->merges = part(&r, 12ull*h->n_merges);         /* left id, right id, the id that they make; sorted */
  g->classes = part(&r, 12ull*h->n_classes);       /* first and last character, 1 letter, 2 number, 3 white space */

  uint32_t C = h->n_embd, F = h->n_hidden, A = h->n_head*h->head_size, K = h->n_kv_head*h->head_size, d = h->dtype;
  uint64_t norm = 2*up(C, LANES)*4;                /* weights, then biases; a layer without biases has zeros */
  g->wte = g->head = matrix(&r, d, h->vocab_size, C);
  if (!h->tied) g->head = matrix(&r, d, h->vocab_size, C);
  if (h->pos == LEARNED) g->wpe = part(&r, 4ull*h->block_size*up(C, LANES));
  g->ln_f = part(&r, norm);
  uint64_t first = r.at;
  g->ln_1 = part(&r, norm);
  g->c_attn = matrix(&r, d, A + 2*K, C);     g->b_attn = part(&r, 4*up(A + 2*K, LANES));
  g->c_proj = matrix(&r, d, C, A);           g->b_proj = part(&r, 4*up(C, LANES));
  g->ln_2 = part(&r, norm);
  uint32_t wide = h->mlp == SWIGLU ? 2*F : F;      /* SwiGLU: gate and value, side by side */
  g->c_fc = matrix(&r, d, wide, C);          g->b_fc = part(&r, 4*up(wide, LANES));
  g->c_out = matrix(&r, d, C, F);            g->b_out = part(&r, 4*up(C, LANES));
  g->stride = r.at - first;
  r.at += (h->n_layer - 1) * g->stride;
  *byte = size < r.at ? size : r.at;
  if (size < r.at) return "it ends before its weights do";
  if (size > r.at) return "it goes on after its weights";

  *byte = (uint64_t)((const unsigned char *)g->offsets - r.file);
  for (uint32_t i = 0; i < h->n_tokens; i++, *byte += 4)
    if (g->offsets[i] > g->offsets[i + 1] || g->offsets[i + 1] > h->n_bytes) return "a token ends before it begins";
  const word *ids[] = {g->sorted, g->special, g->byte_ids, g->merges};
  uint32_t counts[] = {h->n_sorted, h->n_special, h->tokenizer == CHARACTERS ? 0 : 256, 3*h->n_merges};
  for (int k = 0; k < 4; k++) {
    *byte = (uint64_t)((const unsigned char *)ids[k] - r.file);
    for (uint32_t i = 0; i < counts[k]; i++, *byte += 4) if (ids[k][i] >= h->n_tokens) return "there is no such token";
  }
  *byte = (uint64_t)((const unsigned char *)g->special - r.file);
  for (uint32_t i = 0; i < h->n_special; i++, *byte += 4)
    if (g->offsets[g->special[i]] == g->offsets[g->special[i] + 1]) return "a special token needs a text";
  return NULL;
}

/* ---- 2. memory ---- */

static void *carve(char *arena, uint64_t *at, uint64_t bytes) {
  void *p = arena ? arena + *at : NULL;
  *at += up(bytes, 64);
  return p;
}

static uint64_t widest(const Header *h) {
  uint64_t A = (uint64_t)h->n_head*h->head_size, most = h->n_embd > h->n_hidden ? h->n_embd : h->n_hidden;
  return up(A > most ? A : most, GROUP);
}

/* How many bytes the model needs; if `arena` is not NULL they are there, aligned to 64 and zero, and are shared out. */
static uint64_t lay_out(GPT *g, char *arena, uint32_t n_threads) {
  const Header *h = &g->h;
  uint64_t at = 0, T = up(h->block_size, LANES), B = up(h->block_size < BATCH ? h->block_size : BATCH, TILE);
  uint64_t wide = widest(h), hs = up(h->head_size, LANES), cache = (uint64_t)h->n_layer * h->n_kv_head * T;
  uint64_t y = up((h->n_head + 2ull*h->n_kv_head) * h->head_size, LANES), fc = up(h->n_hidden, LANES) * 2;
  g->n_threads = n_threads;
  g->x = carve(arena, &at, 4 * B * up(h->n_embd, LANES));
  g->y = carve(arena, &at, 4 * B * (y > fc ? y : fc));
  g->rows = carve(arena, &at, 4 * wide * n_threads);
  g->words = carve(arena, &at, 4 * wide * B);
  g->scales = carve(arena, &at, 4 * wide / GROUP * B);
  g->sums = carve(arena, &at, 4 * wide / GROUP * B);
  g->logits = carve(arena, &at, 4 * up(h->vocab_size, LANES));
  g->scores = carve(arena, &at, 4 * (T + 2*hs) * n_threads);
  g->turns = carve(arena, &at, h->pos == ROPE ? 4 * T * h->head_size : 0);
  g->keys = carve(arena, &at, 4 * cache * h->head_size);
  g->values = carve(arena, &at, 4 * cache * hs);
  if (arena && h->pos == ROPE)  /* cosine and sine of each position's angles */
    for (uint32_t t = 0; t < h->block_size; t++) for (uint32_t i = 0; i < h->head_size; i += 2) {
      double angle = t * pow(h->rope_base, -(double)i / h->head_size);
      g->turns[t*h->head_size + i] = (float)cos(angle);
      g->turns[t*h->head_size + i + 1] = (float)sin(angle);
    }
  return at;
}

/* ---- 3. numbers and dot products ---- */

INLINE float number(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
INLINE vec larger(vec a, vec b) { ivec m = a > b; return (vec)((m & (ivec)a) | (~m & (ivec)b)); }
INLINE vec smaller(vec a, vec b) { ivec m = a < b; return (vec)((m & (ivec)a) | (~m & (ivec)b)); }
INLINE vec zeros(void) { vec v = {0}; return v; }
INLINE float total(vec v) { float s = 0; for (int i = 0; i < LANES; i++) s += v[i]; return s; }
INLINE float largest(vec v) { float s = v[0]; for (int i = 1; i < LANES; i++) s = v[i] > s ? v[i] : s; return s; }

#define ROUND 12582912.0f  /* 1.5 * 2^23: a number that is added to it is rounded, and stands in the lowest bits */

/* e^x to about 1e-7 of it: 2^r by the exponent's bits, 2^f for f in [-1/2, 1/2] by its Taylor series. */
INLINE vec exponential(vec x) {
  x = smaller(larger(x * 1.44269504f, zeros() - 126.0f), zeros() + 127.0f);
  vec r = x + ROUND, f = x - (r - ROUND);
  vec p = f * 1.5403530e-4f + 1.3333558e-3f;
  p = p*f + 9.6181291e-3f; p = p*f + 5.5504109e-2f; p = p*f + 2.4022651e-1f; p = p*f + 6.9314718e-1f; p = p*f + 1.0f;
  return (vec)((uvec)p + (((uvec)r - (uvec)(zeros() + ROUND)) << 23));
}

/* x / (1 + e^-z): GELU's tanh form is that with z = 2 sqrt(2/pi) (x + 0.044715 x^3), and SiLU with z = x. */
INLINE vec logistic_times(vec x, vec z) { return x / (exponential(-z) + 1.0f); }

/* One word of each of sixteen outputs times the word x of a position. In int8 the weights are 0 to 255, and the sum
   begins at -128 times the sum of the inputs. */
INLINE void add_product(int dtype, void *sum, const uvec *w, uint32_t x) {
  if (dtype == FLOAT32) *(vec *)sum += (vec)*w * number(x);
  else if (dtype == BFLOAT16) {
#if defined(__AVX512BF16__)
    *(__m512 *)sum = _mm512_dpbf16_ps(*(__m512 *)sum, (__m512bh)*w, (__m512bh)_mm512_set1_epi32((int)x));
#else
    *(vec *)sum += (vec)(*w << 16) * number(x << 16) + (vec)(*w & 0xffff0000u) * number(x & 0xffff0000u);
#endif
  } else {
#if defined(__AVX512VNNI__)
    *(__m512i *)sum = _mm512_dpbusd_epi32(*(__m512i *)sum, (__m512i)*w, _mm512_set1_epi32((int)x));
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    int32x4_t *s = sum;
    for (int i = 0; i < 4; i++)
      s[i] = vusdotq_s32(s[i], vld1q_u8((const uint8_t *)w + 16*i), vreinterpretq_s8_u32(vdupq_n_u32(x)));
#elif defined(__AVX2__)
    __m256i *s = sum, lo = _mm256_set1_epi16(255), both = _mm256_set1_epi32((int)x);
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8), odd = _mm256_srai_epi16(both, 8);
    for (int i = 0; i < 2; i++) {  /* inputs 0 and 2 in the lower bytes, 1 and 3 in the upper ones */
      __m256i u = ((const __m256i *)w)[i];
      s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(_mm256_and_si256(u, lo), even));
      s[i] = _mm256_add_epi32(s[i], _mm256_madd_epi16(_mm256_srli_epi16(u, 8), odd));
    }
#else
    for (int i = 0; i < 4; i++) *(uvec *)sum += (*w >> 8*i & 255) * (uint32_t)(int8_t)(x >> 8*i);
#endif
  }
}

/* The sums of a block of sixteen outputs for P positions, whose words lie side by side: x[input][position]. */
INLINE void tile(int dtype, int P, vec *sum, const uvec *w, const word *x, const float *scales, const int32_t *sums,
                 uint32_t groups) {
  if (dtype == INT8) {
    for (int p = 0; p < P; p++) sum[p] = zeros();
    for (uint32_t k = 0; k < groups; k++, w += 17, x += 16*P, scales += P, sums += P) {
      ivec a[TILE];
      for (int p = 0; p < P; p++) a[p] = (ivec)zeros() + sums[p];
      for (int i = 0; i < 16; i++) for (int p = 0; p < P; p++) add_product(INT8, a + p, w + 1 + i, x[i*P + p]);
      for (int p = 0; p < P; p++) sum[p] += __builtin_convertvector(a[p], vec) * ((vec)*w * scales[p]);
    }
    return;
  }
  vec a[4*TILE];  /* for one position four sums, as each addition waits for the one before */
  int A = P == 1 ? 4 : 1;
  for (int i = 0; i < A*P; i++) a[i] = zeros();
  for (uint32_t k = 0, steps = groups * (dtype == FLOAT32 ? 64 : 32); k < steps; k += (uint32_t)A)
    for (int i = 0; i < A; i++) for (int p = 0; p < P; p++) add_product(dtype, a + i*P + p, w + k + i, x[(k + i)*P + p]);
  if (P == 1) a[0] += a[1] + (a[2] + a[3]);
  for (int p = 0; p < P; p++) sum[p] = a[p];
}

/* Write n numbers as words where `tile` will find those of position p of P; `row` has zeros up to a multiple of GROUP. */
static void pack(GPT *g, const float *row, uint32_t n, uint32_t p, uint32_t P) {
  uint32_t groups = (n + GROUP - 1) / GROUP, per = 64 >> g->h.dtype, q = p / P;
  word *to = g->words + (uint64_t)q * groups * per * P + p % P;
  uint64_t at = (uint64_t)q * groups * P + p % P;
  for (uint32_t k = 0; k < groups; k++, row += GROUP, at += P) {
    const vec *v = (const vec *)row;
    uvec out[4] = {(uvec)v[0], (uvec)v[1], (uvec)v[2], (uvec)v[3]};
    if (g->h.dtype == BFLOAT16) {
      for (int i = 0; i < 4; i++) out[i] += 0x7fff + ((out[i] >> 16) & 1);  /* to the nearest, and to even */
      out[0] = (out[0] >> 16) | (out[1] & 0xffff0000u);
      out[1] = (out[2] >> 16) | (out[3] & 0xffff0000u);
    } else if (g->h.dtype == INT8) {
      vec high = zeros();
      for (int i = 0; i < 4; i++) high = larger(high, larger(v[i], -v[i]));
      float top = largest(high), inverse = top > 0 ? 127 / top : 0;
      uvec sum = {0};
      for (int i = 0; i < 4; i++) {
        uvec r = (uvec)(v[i] * inverse + ROUND) - (uvec)(zeros() + ROUND);
        sum += r; out[i] = (r & 255) << 8*i;
      }
      out[0] |= out[1] | out[2] | out[3];
      uint32_t s = 0;
      for (int i = 0; i < LANES; i++) s -= 128 * sum[i];
      g->scales[at] = top / 127; g->sums[at] = (int32_t)s;
    }
    for (uint32_t i = 0; i < per; i += LANES)
      if (P == 1) *(uvec *)(to + k*per + i) = out[i / LANES];
      else for (int j = 0; j < LANES; j++) to[(k*per + i + j)*P] = out[i / LANES][j];
  }
}

/* Row `i` of a matrix as numbers: the embedding of a token. */
static void unpack(const GPT *g, Matrix m, uint32_t i, float *row) {
  uint32_t dtype = g->h.dtype, groups = (m.inputs + GROUP - 1) / GROUP, lane = i % LANES, per = 64 >> dtype;
  const uvec *w = m.w + (uint64_t)(i / LANES) * groups * (per + (dtype == INT8));
  for (uint32_t k = 0; k < groups; k++, w += per) {
    float scale = dtype == INT8 ? ((const vec *)w++)[0][lane] : 1;
    for (uint32_t j = 0; j < GROUP && k*GROUP + j < m.inputs; j++) {
      uint32_t u = w[j / (LANES << dtype) * LANES + j % LANES][lane], which = j / LANES % (1u << dtype);
      row[k*GROUP + j] = dtype == FLOAT32 ? number(u) : dtype == BFLOAT16 ? number(which ? u & 0xffff0000u : u << 16)
                       : scale * (float)((int)(u >> 8*which & 255) - 128);
    }
  }
}

/* ---- 4. threads ----

   All threads run `forward` together. Rows of a matrix are handed out in chunks (a thread that is held up takes fewer),
   and after each operation they meet. They wait actively: a token has a hundred meetings, and sleeping costs more. */

#if defined(THREADS)
#define PAUSE(n) ((n) % 4096 == 4095 ? sched_yield() : 0)  /* where there are more threads than cores */
#else
#define PAUSE(n) ((void)(n))
#endif

static void meet(GPT *g) {
  if (g->n_threads == 1) { g->next = 0; return; }
  int turn = __atomic_load_n(&g->turn, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&g->arrived, 1, __ATOMIC_ACQ_REL) == (int)g->n_threads) {
    g->arrived = 0; g->next = 0;
    __atomic_store_n(&g->turn, turn + 1, __ATOMIC_RELEASE);
  } else
    for (unsigned n = 0; __atomic_load_n(&g->turn, __ATOMIC_ACQUIRE) == turn; n++) PAUSE(n);
}

static uint32_t take(GPT *g, uint32_t count) {
  return (uint32_t)__atomic_fetch_add(&g->next, (int)count, __ATOMIC_RELAXED);
}

/* ---- 5. the model ---- */

#define AT(pointer, layer) ((const void *)((const char *)(pointer) + (layer) * g->stride))

static void multiply(GPT *g, Matrix m, uint32_t layer, const real *bias, uint32_t n, float *y, int add) {
  uint32_t groups = (m.inputs + GROUP - 1) / GROUP, per = 64 >> g->h.dtype, lines = per + (g->h.dtype == INT8);
  uint32_t blocks = (m.outputs + LANES - 1) / LANES, P = n == 1 ? 1 : TILE, chunk = blocks / (8*g->n_threads) + 1;
  const vec *b = bias ? AT(bias, layer) : NULL;
  const uvec *weights = AT(m.w, layer);
  if (chunk > 8) chunk = 8;
  for (uint32_t from; (from = take(g, chunk)) < blocks;)
    for (uint32_t i = from; i < from + chunk && i < blocks; i++) for (uint32_t p = 0; p < n; p += P) {
      vec sum[TILE];
      const uvec *w = weights + (uint64_t)i * groups * lines;
      const word *x = g->words + (uint64_t)p * groups * per;
      const float *scales = g->scales + p*groups;
      const int32_t *sums = g->sums + p*groups;
      switch (2*g->h.dtype + (P > 1)) {  /* a function of constants, so each of these becomes its own loop */
        case 0: tile(FLOAT32, 1, sum, w, x, scales, sums, groups); break;
        case 1: tile(FLOAT32, TILE, sum, w, x, scales, sums, groups); break;
        case 2: tile(BFLOAT16, 1, sum, w, x, scales, sums, groups); break;
        case 3: tile(BFLOAT16, TILE, sum, w, x, scales, sums, groups); break;
        case 4: tile(INT8, 1, sum, w, x, scales, sums, groups); break;
        default: tile(INT8, TILE, sum, w, x, scales, sums, groups); break;
      }
      for (uint32_t j = p; j < p + P && j < n; j++) {
        vec *out = (vec *)y + (uint64_t)j*blocks + i, s = sum[j - p];
        if (b) s += b[i];
        if (add) s += *out;
        *out = s;
      }
    }
  meet(g);
}

/* LayerNorm or RMSNorm of n numbers, and zeros after them up to a multiple of GROUP. w: weights, then biases. */
static void normalise(const GPT *g, float *out, const float *x, const real *w, uint32_t n, uint32_t norm) {
  double mean = 0, square = 0;
  if (norm == LAYERNORM) for (uint32_t i = 0; i < n; i++) mean += x[i];
  mean /= n;
  for (uint32_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
  float m = (float)mean, scale = (float)(1 / sqrt(square / n + g->h.eps));
  const real *b = w + up(n, LANES);
  for (uint32_t i = 0; i < n; i++) out[i] = (x[i] - m) * scale * w[i] + b[i];
  for (uint32_t i = n; i < up(n, GROUP); i++) out[i] = 0;
}

/* What the next multiplication reads: a norm of x if there is a w, else y, through the activation if `act`. */
static void prepare(GPT *g, uint32_t me, uint32_t first, uint32_t n, const real *w, uint32_t columns, int act) {
  uint64_t wide = widest(&g->h), C = up(g->h.n_embd, LANES), from = up(columns, LANES);
  float *row = g->rows + me*wide;
  for (uint32_t p = me; p < n; p += g->n_threads) {
    if (w) normalise(g, row, g->x + (first + p)*C, w, columns, g->h.norm);
    else {
      uint64_t stride = act ? up(g->c_fc.outputs, LANES) : up(g->c_attn.outputs, LANES);
      const vec *y = (const vec *)(g->y + p*stride);
      for (uint32_t i = 0; i < from / LANES; i++) {
        vec v = y[i];
        if (act && g->h.mlp == GELU) v = logistic_times(v, (v + v*v*v * 0.044715f) * 1.59576912f);
        if (act && g->h.mlp == RELU2) { v = larger(v, zeros()); v *= v; }
        if (act && g->h.mlp == SWIGLU) {
          vec value; memcpy(&value, g->y + p*stride + columns + i*LANES, sizeof value);
          v = logistic_times(v, v) * value;
        }
        ((vec *)row)[i] = v;
      }
      for (uint64_t i = columns; i < up(columns, GROUP); i++) row[i] = 0;
    }
    pack(g, row, columns, p, n == 1 ? 1 : TILE);
  }
  meet(g);
}

/* A query or key: normalised (--qk-norm), turned to its position (RoPE), times a factor. */
static void turn(const GPT *g, float *out, const float *x, uint32_t t, float factor) {
  uint32_t hs = g->h.head_size, half = hs / 2;
  float square = 0;
  for (uint32_t i = 0; g->h.qk_norm && i < hs; i++) square += x[i] * x[i];
  if (g->h.qk_norm) factor /= sqrtf(square / (float)hs + g->h.eps);
  for (uint32_t i = 0; i < hs; i++) out[i] = x[i] * factor;
  for (uint32_t i = 0; g->h.pos == ROPE && i < half; i++) {
    const float *a = g->turns + (uint64_t)t*hs + 2*i, u = out[i], v = out[i + half];
    out[i] = u*a[0] - v*a[1]; out[i + half] = v*a[0] + u*a[1];
  }
}

/* Attention of the new positions for one head of keys and the heads of queries that share it. Keys lie like a matrix,
   sixteen positions side by side; the result takes the place of the queries. */
static void attend(GPT *g, uint32_t layer, uint32_t head, uint32_t me) {
  const Header *h = &g->h;
  uint32_t hs = h->head_size, hp = (uint32_t)up(hs, LANES), T = (uint32_t)up(h->block_size, LANES);
  uint32_t share = h->n_head / h->n_kv_head, A = h->n_head*hs, K = h->n_kv_head*hs;
  uint64_t cache = ((uint64_t)layer*h->n_kv_head + head) * T, stride = up(A + 2*K, LANES);
  float *scores = g->scores + (uint64_t)me*(T + 2*hp), *q = scores + T;
  float *keys = g->keys + cache*hs, *values = g->values + cache*hp;
  for (uint32_t p = 0; p < g->n; p++) {
    uint32_t t = g->start + p;
    const float *k = g->y + p*stride + A + head*hs;
    turn(g, q, k, t, 1);
    for (uint32_t i = 0; i < hs; i++) keys[(t / LANES * hs + i)*LANES + t % LANES] = q[i];
    memcpy(values + (uint64_t)t*hp, k + K, 4*hs);
  }
  for (uint32_t p = 0; p < g->n; p++) for (uint32_t s = 0; s < share; s++) {
    uint32_t n = g->start + p + 1, blocks = (n + LANES - 1) / LANES;
    float *y = g->y + p*stride + (head*share + s)*hs;
    turn(g, q, y, n - 1, 1 / sqrtf((float)hs));
    vec top = zeros() - 1e30f, sum = zeros(), out[4];
    for (uint32_t b = 0; b < blocks; b++) {
      vec a = zeros();
      const vec *k = (const vec *)keys + (uint64_t)b*hs;
      for (uint32_t i = 0; i < hs; i++) a += k[i] * q[i];
      ((vec *)scores)[b] = a;
    }
    for (uint32_t i = n; i < blocks*LANES; i++) scores[i] = -1e30f;  /* what is yet to come */
    for (uint32_t b = 0; b < blocks; b++) top = larger(top, ((vec *)scores)[b]);
    top = zeros() + largest(top);
    for (uint32_t b = 0; b < blocks; b++) sum += ((vec *)scores)[b] = exponential(((vec *)scores)[b] - top);
    float scale = 1 / total(sum);
    for (uint32_t i = 0; i < hp / LANES; i += 4) {
      uint32_t m = hp / LANES - i < 4 ? hp / LANES - i : 4;
      for (uint32_t j = 0; j < 4; j++) out[j] = zeros();
      const vec *v = (const vec *)values + i;
      if (m == 4) for (uint32_t t = 0; t < n; t++, v += hp / LANES)
        for (uint32_t j = 0; j < 4; j++) out[j] += v[j] * scores[t];
      else for (uint32_t t = 0; t < n; t++, v += hp / LANES) for (uint32_t j = 0; j < m; j++) out[j] += v[j] * scores[t];
      for (uint32_t j = 0; j < m; j++) ((vec *)q)[i + j] = out[j] * scale;
    }
    memcpy(y, q, 4*hs);
  }
}

/* One pass over the positions start ... start + n - 1, by all threads at once. */
static void forward(GPT *g, uint32_t me) {
  const Header *h = &g->h;
  uint32_t C = h->n_embd, A = h->n_head*h->head_size, n = g->n;
  uint64_t stride = up(C, LANES);
  for (uint32_t p = me; p < n; p += g->n_threads) {
    float *x = g->x + p*stride;
    unpack(g, g->wte, (uint32_t)g->ids[p], x);
    if (g->wpe) for (uint32_t i = 0; i < C; i++) x[i] += g->wpe[(g->start + p)*stride + i];
  }
  meet(g);
  for (uint32_t l = 0; l < h->n_layer; l++) {
    prepare(g, me, 0, n, AT(g->ln_1, l), C, 0);
    multiply(g, g->c_attn, l, g->b_attn, n, g->y, 0);
    for (uint32_t i; (i = take(g, 1)) < h->n_kv_head;) attend(g, l, i, me);
    meet(g);
    prepare(g, me, 0, n, NULL, A, 0);
    multiply(g, g->c_proj, l, g->b_proj, n, g->x, 1);
    prepare(g, me, 0, n, AT(g->ln_2, l), C, 0);
    multiply(g, g->c_fc, l, g->b_fc, n, g->y, 0);
    prepare(g, me, 0, n, NULL, h->n_hidden, 1);
    multiply(g, g->c_out, l, g->b_out, n, g->x, 1);
  }
  if (!g->last) return;
  prepare(g, me, n - 1, 1, g->ln_f, C, 0);
  multiply(g, g->head, 0, NULL, 1, g->logits, 0);
}

/* What threads 1, 2, ... do until `stop`: wait for a pass, and take part in it. */
static void help(GPT *g, uint32_t me) {
  for (meet(g); !g->stop; meet(g)) forward(g, me);
}

/* Read n tokens that stand at the positions start, start + 1, ...; the logits after the last of them. */
static float *read_tokens(GPT *g, const int32_t *ids, uint32_t n, uint32_t start) {
  while (n) {
    g->n = n < BATCH ? n : BATCH; g->ids = ids; g->start = start; g->last = g->n == n;
    meet(g);
    forward(g, 0);
    ids += g->n; start += g->n; n -= g->n;
  }
  return g->logits;
}

/* ---- 6. the tokenizer ---- */

static uint32_t token_size(const GPT *g, uint32_t i) { return g->offsets[i + 1] - g->offsets[i]; }

/* The token with these bytes; -1 if there is none. */
static int32_t find_token(const GPT *g, const char *text, uint32_t n) {
  uint32_t low = 0, high = g->h.n_sorted;
  while (low < high) {
    uint32_t middle = (low + high) / 2, i = g->sorted[middle], size = token_size(g, i);
    int order = memcmp(g->bytes + g->offsets[i], text, size < n ? size : n);
    if (!order && size == n) return (int32_t)i;
    if (order < 0 || (!order && size < n)) low = middle + 1; else high = middle;
  }
  return -1;
}

/* The id that two neighbours make; INT32_MAX if they don't merge. A merge that was learned earlier makes a lower id. */
static int32_t find_merge(const GPT *g, int32_t a, int32_t b) {
  uint32_t low = 0, high = g->h.n_merges;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    const word *m = g->merges + 3*middle;
    if (m[0] == (uint32_t)a && m[1] == (uint32_t)b) return (int32_t)m[2];
    if (m[0] < (uint32_t)a || (m[0] == (uint32_t)a && m[1] < (uint32_t)b)) low = middle + 1; else high = middle;
  }
  return INT32_MAX;
}

/* The bytes of the character that `text` begins with, and its code. The text is UTF-8. */
static uint32_t character(const char *text, uint32_t n, uint32_t *code) {
  const unsigned char *s = (const unsigned char *)text;
  uint32_t size = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
  if (size > n) size = 1;
  *code = size == 1 ? s[0] : s[0] & (0x7fu >> size);
  for (uint32_t i = 1; i < size; i++) *code = *code << 6 | (s[i] & 63);
  return size;
}

enum { OTHER, LETTER, DIGIT, SPACE };

static uint32_t class_of(const GPT *g, uint32_t code) {
  uint32_t low = 0, high = g->h.n_classes;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    const word *c = g->classes + 3*middle;
    if (code < c[0]) high = middle; else if (code > c[1]) low = middle + 1; else return c[2];
  }
  return OTHER;
}

/* How many of the n bytes are a run of at most `most` characters of one class. */
static uint32_t run(const GPT *g, const char *s, uint32_t n, uint32_t class, uint32_t most) {
  uint32_t i = 0, code;
  while (i < n && most--) {
    uint32_t size = character(s + i, n - i, &code);
    if (class_of(g, code) != class) break;
    i += size;
  }
  return i;
}

/* The length of the word that a text begins with, as GPT-2 and GPT-4 split it (the patterns are in tokenizer.py). */
static uint32_t next_word(const GPT *g, const char *s, uint32_t n) {
  static const char *const endings[] = {"s", "d", "m", "t", "ll", "ve", "re", "\xc5\xbf"};  /* the last is a long s */
  int gpt4 = g->h.tokenizer == WORDS_GPT4;
  uint32_t code, size = character(s, n, &code), class = class_of(g, code), length, i, last = 0;
  if (code == '\'') for (int e = 0; e < 7 + gpt4; e++) {
    for (i = 0; endings[e][i] && 1 + i < n; i++) {
      char c = s[1 + i];
      if (gpt4 && c >= 'A' && c <= 'Z') c = (char)(c + 32);
      if (c != endings[e][i]) break;
    }
    if (!endings[e][i]) return 1 + i;
  }
  uint32_t after = code == ' ' ? 1 : 0;  /* one space goes with the word after it */
  if (gpt4) {
    uint32_t skip = code == '\r' || code == '\n' || class == LETTER || class == DIGIT ? 0 : size;
    if ((length = run(g, s + skip, n - skip, LETTER, n))) return skip + length;
    if (class == DIGIT) return run(g, s, n, DIGIT, 3);
    if ((length = run(g, s + after, n - after, OTHER, n))) {
      for (i = after + length; i < n && (s[i] == '\r' || s[i] == '\n');) i++;
      return i;
    }
  } else for (uint32_t c = LETTER; c <= LETTER + 2; c++)
    if ((length = run(g, s + after, n - after, c % 3, n))) return after + length;
  length = run(g, s, n, SPACE, n);
  if (length == n) return n;
  if (gpt4) for (i = length; i-- > 0;) if (s[i] == '\r' || s[i] == '\n') return i + 1;
  for (i = 0; i < length; i += character(s + i, n - i, &code)) last = i;
  return last ? last : size;  /* white space but for its last character, which goes with what follows */
}

/* The ids of a text without special tokens; -1 if a character has none. Of n bytes there are at most n ids. */
static int32_t encode_ordinary(const GPT *g, const char *s, uint32_t n, int32_t *ids, uint32_t *bad) {
  int32_t count = 0;
  for (uint32_t at = 0, size, code; at < n; at += size) {
    size = g->h.tokenizer == CHARACTERS ? character(s + at, n - at, &code)
         : g->h.tokenizer == BYTES ? n : next_word(g, s + at, n - at);
    int32_t *w = ids + count, whole = find_token(g, s + at, size), k = (int32_t)size;
    *bad = at;
    if (whole >= 0) { *w = whole; count++; continue; }
    if (g->h.tokenizer == CHARACTERS) return -1;
    for (int32_t i = 0; i < k; i++) w[i] = (int32_t)g->byte_ids[(unsigned char)s[at + (uint32_t)i]];
    for (;;) {  /* merge the pair that was learned first, wherever it stands, until none is left */
      int32_t best = INT32_MAX, a = 0, b = 0, j = 0;
      for (int32_t i = 0; i + 1 < k; i++) {
        int32_t made = find_merge(g, w[i], w[i + 1]);
        if (made < best) { best = made; a = w[i]; b = w[i + 1]; }
      }
      if (best == INT32_MAX) break;
      for (int32_t i = 0; i < k; i++)
        if (i + 1 < k && w[i] == a && w[i + 1] == b) { w[j++] = best; i++; } else w[j++] = w[i];
      k = j;
    }
    count += k;
  }
  return count;
}

/* The ids of a UTF-8 text, special tokens included; -1, and where, if a character has none. */
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
    at += token_size(g, g->special[k]) - 1;
    from = at + 1;
  }
  return count;
}

/* ---- 7. what is shown: whole characters only, and nothing from the stop string on ---- */

typedef struct {
  unsigned char begun[4], low, high;      /* a character's first bytes, and what the next one may be */
  uint32_t n_begun, need, n_stop, n_held; /* held: what may be the beginning of the stop string */
  const char *stop;
  char *held;                             /* room for n_stop bytes */
  int stopped;
  void (*put)(const char *text, uint32_t n);
} Text;

static void show_byte(Text *t, char c) {
  if (!t->n_stop) { t->put(&c, 1); return; }
  t->held[t->n_held++] = c;
  while (t->n_held && memcmp(t->held, t->stop, t->n_held)) {
    t->put(t->held, 1);
    memmove(t->held, t->held + 1, --t->n_held);
  }
  if (t->n_held == t->n_stop) t->stopped = 1;
}

static void show_character(Text *t, const void *bytes, uint32_t n) {
  for (uint32_t i = 0; i < n && !t->stopped; i++) show_byte(t, ((const char *)bytes)[i]);
  t->n_begun = t->need = 0;
}

/* Bytes that are no UTF-8 are shown as U+FFFD, one for as much as could have begun a character, as Python does it. */
static void show(Text *t, const unsigned char *s, uint32_t n) {
  for (uint32_t i = 0; i < n && !t->stopped; i++) {
    unsigned char c = s[i];
    if (t->need && (c < t->low || c > t->high)) show_character(t, "\xef\xbf\xbd", 3);
    t->begun[t->n_begun++] = c;
    if (t->need) { if (!--t->need) show_character(t, t->begun, t->n_begun); t->low = 0x80; t->high = 0xbf; continue; }
    if (c < 0x80) show_character(t, &c, 1);
    else if (c < 0xc2 || c > 0xf4) show_character(t, "\xef\xbf\xbd", 3);
    else {
      t->need = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
      t->low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80; t->high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    }
  }
}

static void show_end(Text *t) {
  if (t->need) show_character(t, "\xef\xbf\xbd", 3);
  if (!t->stopped && t->n_held) t->put(t->held, t->n_held);
}

/* ---- 8. choosing a token ----

   The same numbers as in generate.py: NumPy's generator PCG64 (O'Neill 2014), begun from a seed by its SeedSequence. So
   the same seed gives the same text. */

typedef struct { uint64_t high, low, odd_high, odd_low; } Random;
typedef struct { double temperature, top_p; uint32_t top_k, *order; double *p; Random random; } Choice;

static uint64_t draw64(Random *r) {  /* state = state * multiplier + odd, in 128 bits */
  const uint64_t mh = 2549297995355413924u, ml = 4865540595714422341u, half = 0xffffffffu;
  uint64_t a = r->low >> 32, b = r->low & half, c = ml >> 32, d = ml & half;
  uint64_t bd = b*d, ad = a*d + (bd >> 32), bc = b*c + (ad & half);
  uint64_t high = a*c + (ad >> 32) + (bc >> 32) + r->high*ml + r->low*mh;
  r->low = r->low*ml + r->odd_low;
  r->high = high + r->odd_high + (r->low < r->odd_low);
  uint64_t x = r->high ^ r->low, n = r->high >> 58;
  return x >> n | x << (-n & 63);
}

static uint32_t stir(uint32_t value, uint32_t *constant, uint32_t multiplier) {
  value ^= *constant; *constant *= multiplier; value *= *constant;
  return value ^ value >> 16;
}

static Random seeded(uint64_t seed) {
  uint32_t pool[4] = {(uint32_t)seed, (uint32_t)(seed >> 32), 0, 0}, constant = 0x43b0d7e5, out[8];
  for (int i = 0; i < 4; i++) pool[i] = stir(pool[i], &constant, 0x931e8875);
  for (int i = 0; i < 4; i++) for (int j = 0; j < 4; j++) if (i != j) {
    uint32_t x = 0xca01f9ddu * pool[j] - 0x4973f715u * stir(pool[i], &constant, 0x931e8875);
    pool[j] = x ^ x >> 16;
  }
  constant = 0x8b51f9dd;
  for (int i = 0; i < 8; i++) out[i] = stir(pool[i % 4], &constant, 0x58f38ded);
  uint64_t w[4];
  for (int i = 0; i < 4; i++) w[i] = out[2*i] | (uint64_t)out[2*i + 1] << 32;
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
  for (i = k; i-- > 1;) {  /* the least likely goes to the end, again and again: sorted, the likeliest first */
    uint32_t least = order[0]; order[0] = order[i]; order[i] = least;
    sink(order, i, 0, z);
  }
  if (c->temperature == 0) return order[0];
  double sum = 0, reached = 0, *p = c->p, u;
  for (i = 0; i < k; i++) sum += p[i] = exp((double)z[order[i]] / c->temperature - (double)z[order[0]] / c->temperature);
  if (c->top_p < 1) {
    for (i = 0; i < k && reached < c->top_p; i++) reached += p[i] / sum;
    k = i;  /* up to and with the token that reaches top_p */
    for (sum = 0, i = 0; i < k; i++) sum += p[i];
  }
  u = (double)(draw64(&c->random) >> 11) / 9007199254740992.0 * sum;
  for (i = 0, reached = p[0]; i + 1 < k && reached <= u; reached += p[++i]) {}
  return order[i];
}

/* What is asked for, and the texts that go on: `ids` has `n` tokens and room for block_size. */
static void generate(GPT *g, Choice *c, Text *text, int32_t *ids, uint32_t n, uint32_t count, uint32_t keep,
                     void (*logits_seen)(const float *, uint32_t)) {
  uint32_t T = g->h.block_size, V = g->h.n_tokens, length = 0;  /* length: positions that the cache holds */
  if (n > T) { memmove(ids, ids + n - T, 4ull*T); n = T; }
  for (uint32_t made = 0; made < count && !text->stopped; made++) {
    if (length == T) {  /* positions count from the window's beginning, so all of it is read again */
      memmove(ids, ids + n - keep, 4ull*keep);
      n = keep; length = 0;
    }
    float *z = read_tokens(g, ids + length, n - length, length);
    length = n;
    if (logits_seen) logits_seen(z, V);
    uint32_t token = choose(c, z, V);
    if (n == T) memmove(ids, ids + 1, 4ull*(T - 1)), n--;
    ids[n++] = (int32_t)token;
    show(text, g->bytes + g->offsets[token], token_size(g, token));
  }
  if (!text->stopped) show_end(text);
}

/* ---- 9. a program around it ---- */

#ifndef NO_MAIN
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif

static const char *name = "model";
#if defined(EMBEDDED)
extern const uint64_t embedded[];  /* model.bin as numbers, at the end of this file */
#endif

static void fail(const char *what, const char *detail) {
  fprintf(stderr, "%s: %s%s\n", name, what, detail);
  exit(2);
}

static void print(const char *text, uint32_t n) { fwrite(text, 1, n, stdout); }
static void print_nothing(const char *text, uint32_t n) { (void)text; (void)n; }

static double first;  /* when the first token was chosen */

static double seconds(void) {
#if defined(TIME_UTC)
  struct timespec t; timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
#else
  return (double)time(NULL);
#endif
}

static void print_logits(const float *z, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) printf("%.9g%c", (double)z[i], i + 1 < n ? ' ' : '\n');
}

static void note_time(const float *z, uint32_t n) { (void)z; (void)n; if (first == 0) first = seconds(); }

static void *memory(uint64_t bytes) {  /* zero, and aligned to 64 */
  char *p = bytes < SIZE_MAX - 64 ? calloc(1, (size_t)bytes + 64) : NULL;
  if (!p) fail("there isn't enough memory for the model", "");
  return p + 64 - ((uintptr_t)p & 63);
}

static void *read_file(const char *path, uint64_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) fail("there is no file to read: ", path);
  long end = ftell(file);
  rewind(file);
  void *bytes = memory((uint64_t)end);
  if (end < 0 || fread(bytes, 1, (size_t)end, file) != (size_t)end) fail("this can't be read: ", path);
  fclose(file);
  *size = (uint64_t)end;
  return bytes;
}

typedef struct { const char *model, *prompt, *stop; double number[8]; int logits, verbose; } Options;
enum { COUNT, TEMPERATURE, TOP_K, TOP_P, SEED, KEEP, HELPERS };

static const struct { const char *name; double low, high; const char *help; } NUMBERS[] = {
  {"--max-new-tokens", 1, 1e9, "tokens to add to the prompt (500)"},
  {"--temperature", 0, 1e9, "0 always takes the likeliest token (0.8)"},
  {"--top-k", 0, 1e9, "choose among the k likeliest; 0 for all (200)"},
  {"--top-p", 0, 1, "choose among those that make up this much probability (1)"},
  {"--seed", 0, 9007199254740992, "of the choices (1337)"},
  {"--keep", 0, 1e9, "tokens kept when the context is full (all)"},
  {"--threads", 1, 256, "as many as the machine has cores"}};

static Options parse(int argc, char **argv, double threads) {
  Options o = {NULL, NULL, NULL, {500, 0.8, 200, 1, 1337, 0, threads}, 0, 0};
  for (int i = 1; i < argc; i++) {
    char *given = argv[i], *value = strchr(given, '='), *end;
    int n = HELPERS;
    if (!strcmp(given, "--logits")) { o.logits = 1; continue; }
    if (!strcmp(given, "--verbose")) { o.verbose = 1; continue; }
    if (!strcmp(given, "--help")) {
      printf("usage: %s [--model model.bin] [--prompt TEXT] [--stop TEXT] [--verbose] [--logits]\n", name);
      for (n = 0; n <= HELPERS; n++) printf("  %-18s%s\n", NUMBERS[n].name, NUMBERS[n].help);
      exit(0);
    }
    if (value) *value++ = 0; else value = i + 1 < argc ? argv[++i] : NULL;
    if (!value) fail("an option needs a value: ", given);
    if (!strcmp(given, "--model")) o.model = value;
    else if (!strcmp(given, "--prompt")) o.prompt = value;
    else if (!strcmp(given, "--stop")) o.stop = value;
    else {
      while (n >= 0 && strcmp(given, NUMBERS[n].name)) n--;
      if (n < 0) fail("there is no such option (see --help): ", given);
      o.number[n] = strtod(value, &end);
      if (end == value || *end || !(o.number[n] >= NUMBERS[n].low && o.number[n] <= NUMBERS[n].high) ||
          (n == TOP_P && o.number[n] == 0) || (n != TEMPERATURE && n != TOP_P && o.number[n] != floor(o.number[n])))
        fail("this value can't be: ", value);
    }
  }
  if (o.stop && !*o.stop) fail("--stop needs at least one character", "");
  return o;
}

#if defined(THREADS)
typedef struct { GPT *g; uint32_t me; } Helper;
static void *helper(void *argument) { Helper *h = argument; help(h->g, h->me); return NULL; }
#endif

int main(int argc, char **argv) {
  static GPT g;
  static char where[4096];
  double cores = 1;
  uint64_t size, byte;
#if defined(_SC_NPROCESSORS_ONLN) && defined(THREADS)
  cores = (double)sysconf(_SC_NPROCESSORS_ONLN);
#endif
#if defined(_WIN32)
  _setmode(_fileno(stdout), _O_BINARY);
#endif
  Options o = parse(argc, argv, cores < 1 ? 1 : cores > 64 ? 64 : cores);
#if defined(EMBEDDED)
  const void *file = embedded; size = EMBEDDED;
  if (o.model) file = read_file(o.model, &size);
#else
  const char *slash = strrchr(argv[0], '/');  /* model.bin lies beside the program */
  snprintf(where, sizeof where, "%.*smodel.bin", slash ? (int)(slash - argv[0] + 1) : 0, argv[0]);
  if (!o.model) o.model = where;
  const void *file = read_file(o.model, &size);
#endif
  const char *wrong = open_model(&g, file, size, &byte);
  if (wrong) {
    fprintf(stderr, "%s: %s is damaged: %s (byte %llu)\n", name, o.model, wrong, (unsigned long long)byte);
    return 2;
  }
  uint32_t T = g.h.block_size, n_threads = 1, bad = 0;
  const char *prompt = o.prompt ? o.prompt : "\n";
  size_t length = strlen(prompt);
  if (!length || length > 1 << 30) fail("--prompt needs at least one character", "");
  int32_t *ids = memory(4 * ((uint64_t)length + T)), n = encode(&g, prompt, (uint32_t)length, ids, &bad);
  if (n < 0 && o.prompt) fail("--prompt: its vocabulary doesn't have the character at the beginning of: ", prompt + bad);
  if (n < 0) { ids[0] = 0; n = 1; }  /* a vocabulary without a new line */
  if (o.number[KEEP] > T) fail("--keep can't be more than the tokens of context", "");
#if defined(THREADS)
  n_threads = (uint32_t)o.number[HELPERS];
#endif
  uint64_t need = lay_out(&g, NULL, n_threads);
  lay_out(&g, memory(need), n_threads);
  if ((uint64_t)n + (uint64_t)o.number[COUNT] > T)
    fprintf(stderr, "the model sees %u tokens at a time: of a longer text only the newest\n", T);
#if defined(THREADS)
  pthread_t threads[256];
  Helper helpers[256];
  for (uint32_t i = 1; i < n_threads; i++) {
    helpers[i].g = &g; helpers[i].me = i;
    if (pthread_create(threads + i, NULL, helper, helpers + i)) fail("a thread can't be started", "");
  }
#endif
  Choice c = {o.number[TEMPERATURE], o.number[TOP_P], (uint32_t)o.number[TOP_K], memory(4ull*g.h.vocab_size),
              memory(8ull*g.h.vocab_size), seeded((uint64_t)o.number[SEED])};
  Text text = {{0}, 0, 0, 0, 0, o.stop ? (uint32_t)strlen(o.stop) : 0, 0, o.stop, NULL, 0, o.logits ? print_nothing : print};
  text.held = memory(text.n_stop + 1);
  if (o.prompt && !o.logits) fputs(o.prompt, stdout);
  double began = seconds();
  uint32_t keep = o.number[KEEP] > 0 ? (uint32_t)o.number[KEEP] : T;
  generate(&g, &c, &text, ids, (uint32_t)n, (uint32_t)o.number[COUNT], keep, o.logits ? print_logits : note_time);
  puts("");
  g.stop = 1;
  meet(&g);
#if defined(THREADS)
  for (uint32_t i = 1; i < n_threads; i++) pthread_join(threads[i], NULL);
#endif
  if (o.verbose) fprintf(stderr, "%.1f MB of weights, %.1f MB of memory; the prompt's %d tokens in %.4f s, then %.2f "
                         "tokens/s\n", (double)size / 1e6, (double)need / 1e6, n, first - began,
                         (o.number[COUNT] - 1) / (seconds() - first));
  return 0;
}
#endif
