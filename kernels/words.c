#include "gelu.c"
#include "layernorm.c"

/* Matrices of bfloat16 and int8, packed into words: computed by the very lines of the C file that a model is exported
   as. Their names and its types are other ones than those of gemm.c. */
#define KERNEL
#define NULL ((void*)0)
#define INT32_MAX __INT32_MAX__
typedef __INT8_TYPE__ int8_t; typedef __INT32_TYPE__ int32_t; typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
#define memcpy(to, from, n) words_copy(to, from, n)
#define memset __builtin_memset
#define memmove __builtin_memmove
#define memcmp __builtin_memcmp
#define strlen __builtin_strlen
#define pow __builtin_pow
#define cos __builtin_cos
#define sin __builtin_sin
#define exp __builtin_exp
#define sqrt __builtin_sqrt
#define sqrtf __builtin_sqrtf
#define NO_MAIN
#if defined(__AVX512F__)  /* immintrin.h isn't found without a library either */
typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
#if __clang_major__ >= 16
typedef __bf16 __m512bh __attribute__((vector_size(64)));
#else
typedef __m512i __m512bh;
#endif
#define _mm512_dpbf16_ps(s, a, b) ((__m512)__builtin_ia32_dpbf16ps_512(s, a, b))
#define _mm512_dpbusd_epi32(s, a, b) ((__m512i)__builtin_ia32_vpdpbusd512(s, a, b))
#define _mm512_set1_epi32(x) ((ivec){} + (x))
#endif
/* There is no library to call, which compilers do for copies of unknown size, also where they are a loop. */
static inline __attribute__((always_inline)) void words_copy(void* to, const void* from, uint64_t n) {
  typedef uint32_t number __attribute__((may_alias));
  if (__builtin_constant_p(n)) __builtin_memcpy(to, from, n);
  else for (uint64_t i = 0; i < n/4; i++) { ((number*)to)[i] = ((const number*)from)[i]; __asm__ volatile("" ::: "memory"); }
}
#define vec vec16
#define part words_part
#define row words_row
#define tile words_tile
#include "../exchange/model.c"
#undef part
#undef row
#undef tile
#undef vec

#define AT_ONCE 16  /* rows of X that are packed together */

/* Y[m, n] = act(norm(X)[m, k] W + bias[n]) + R[m, n]; W[n, k] in words, w and b those of the norm, w = 0 for none.
   Each core packs all of X for itself and has its own rows of W. */
WIDE static void words_step(float* Y, const float* X, const float* w, const float* b, const unsigned* W,
                            const float* bias, const float* R, int act, int rms, int dtype, long m, long n, long k,
                            float eps, long core, long cores) {
  long groups = (k + GROUP - 1) / GROUP, n0, n1, at = least(m, AT_ONCE), wide = groups * GROUP;
  part(n, LANES, core, cores, &n0, &n1);
  if (n0 == n1) return;
  long blocks = (n1 - n0 + LANES - 1) / LANES, rows = (at + TILE - 1) / TILE * TILE;
  float x[wide] __attribute__((aligned(64))), y[at*blocks*LANES] __attribute__((aligned(64)));
  float scales[groups*rows], S[2];
  unsigned words[wide*rows] __attribute__((aligned(64)));
  int sums[groups*rows];
  GPT g; g.h.dtype = dtype; g.words = words; g.scales = scales; g.sums = sums; g.n_threads = 1; g.stride = 0;
  g.next = g.arrived = g.turn = 0;
  Matrix mine = {(const uvec*)W + n0/LANES * groups * ((64 >> dtype) + (dtype == INT8)), n1 - n0, k};
  for (long i0 = 0; i0 < m; i0 += at) {
    long r = least(at, m - i0);
    for (long i = 0; i < r; i++) {
      const float* from = X + (i0 + i)*k;
      if (w) { layernorm(x, S, from, w, b, rms, 1, k, eps, 0, 1); from = x; }
      for (long j = 0; j < wide; j++) x[j] = j < k ? from[j] : 0;
      pack(&g, x, k, i, r == 1 ? 1 : TILE);
    }
    multiply(&g, mine, 0, 0, r, y, 0);
    for (long i = 0; i < r; i++) for (long j = n0; j < n1; j++) {
      float s = y[i*blocks*LANES + j - n0] + (bias ? bias[j] : 0);
      if (act) s *= logistic(s);
      Y[(i0 + i)*n + j] = s + (R ? R[(i0 + i)*n + j] : 0);
    }
  }
}

/* Rows of a table that is packed into words, plus rows of another. */
static void words_embed(float* Y, const unsigned* W, const float* P, const int* idx, int dtype, long m, long T, long c,
                        long v, long core, long cores) {
  GPT g; g.h.dtype = dtype;
  Matrix table = {(const uvec*)W, v, c};
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    float* y = Y + i*c;
    if (idx[i] < 0 || idx[i] >= v) for (long j = 0; j < c; j++) y[j] = 0;
    else unpack(&g, table, idx[i], y);
    if (P) for (long j = 0; j < c; j++) y[j] += P[i%T*c + j];
  }
}
