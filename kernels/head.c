#include "gemm.c"
#include "exp.c"

#define TOKENS 512  /* logits exist for 512 tokens and 64 of the vocabulary at a time: 128 KB */
#define WORDS 64

/* ln x for x >= 1, by Newton's method on e^y = x from the bits of x. */
static inline float log_(float x) {
  union { float f; int i; } u = { x };
  float y = (u.i - 0x3F7A0000) * 8.26295829e-8f;
  for (int i = 0; i < 3; i++) y += x * exp_(-y) - 1.0f;
  return y;
}

/* L[m] = Z - logit of the target Y, Z[m] = ln sum exp of the logits X[m, c] W[v, c]^T. */
WIDE static void head_loss(float* L, float* Z, const float* X, const float* W, const int* Y, long m, long c, long v,
                           long core, long cores) {
  float S[TOKENS*WORDS] __attribute__((aligned(64))), top[TOKENS], sum[TOKENS];
  long from, to; part(m, MR, core, cores, &from, &to);
  for (long i0 = from; i0 < to; i0 += TOKENS) {
    long r = least(TOKENS, to - i0);
    for (long i = 0; i < r; i++) { top[i] = -3e38f; sum[i] = 0; L[i0 + i] = 0; }
    for (long j0 = 0; j0 < v; j0 += WORDS) {
      long n = least(WORDS, v - j0);
      gemm(r, n, c, S, WORDS, X + i0*c, c, 1, W + j0*c, 1, c, 0, 0, 0);
      for (long i = 0; i < r; i++) {
        float *s = S + i*WORDS, high = top[i], more = 0; int y = Y[i0 + i];
        for (long j = 0; j < n; j++) high = s[j] > high ? s[j] : high;
        for (long j = 0; j < n; j++) more += exp_(s[j] - high);
        sum[i] = sum[i] * exp_(top[i] - high) + more; top[i] = high;
        if (y >= j0 && y < j0 + n) L[i0 + i] = s[y - j0];
      }
    }
    for (long i = 0; i < r; i++) { Z[i0 + i] = top[i] + log_(sum[i]); L[i0 + i] = Z[i0 + i] - L[i0 + i]; }
  }
}

/* Gradients for G[m] of L. Each core has its words, so its rows of dW[v, c], and a dX[m, c] of its own to be added up.
   The logits are computed again: a third more FLOPs, and no m x v matrix to write and read five times. */
WIDE static void head_loss_dx(float* dX, float* dW, const float* X, const float* W, const int* Y, const float* Z,
                              const float* G, long m, long c, long v, long core, long cores) {
  float S[TOKENS*WORDS] __attribute__((aligned(64)));
  long from, to; part(v, NR, core, cores, &from, &to);
  dX += core*m*c;
  for (long i = 0; i < m*c; i++) dX[i] = 0;
  for (long i0 = 0; i0 < m; i0 += TOKENS) for (long j0 = from; j0 < to; j0 += WORDS) {
    long r = least(TOKENS, m - i0), n = least(WORDS, to - j0); const float *x = X + i0*c, *w = W + j0*c;
    gemm(r, n, c, S, WORDS, x, c, 1, w, 1, c, 0, 0, 0);
    for (long i = 0; i < r; i++) {
      float *s = S + i*WORDS, z = Z[i0 + i], g = G[i0 + i]; int y = Y[i0 + i];
      for (long j = 0; j < n; j++) s[j] = exp_(s[j] - z) * g;
      if (y >= j0 && y < j0 + n) s[y - j0] -= g;
    }
    gemm(r, c, n, dX + i0*c, c, S, WORDS, 1, w, c, 1, dX + i0*c, c, 0);
    gemm(n, c, r, dW + j0*c, c, S, 1, WORDS, x, c, 1, i0 ? dW + j0*c : 0, c, 0);
  }
}
