#include "gemm.c"
#include "exp.c"

#define ROWS 64  /* queries at a time: their scores against T = 1024 keys are 256 KB */

/* The mask of gpt.dropout: 0 where a hash of the element's index is below the threshold. */
static inline void drop(float* s, long n, unsigned index, unsigned threshold, float scale) {
  for (long j = 0; j < n; j++) {
    unsigned h = index + (unsigned)j;
    h = (h ^ (h >> 16)) * 0x7FEB352Du; h = (h ^ (h >> 15)) * 0x846CA68Bu; h ^= h >> 16;
    s[j] = h >= threshold ? s[j] * scale : 0.0f;
  }
}

/* Causal softmax of `rows` queries from position i0 on: row i sees i0 + i + 1 keys, the rest of its nc become 0. */
static void softmax(float* S, long ld, long i0, long rows, long nc, float scale) {
  for (long i = 0; i < rows; i++) {
    float *s = S + i*ld, top = -3e38f, sum = 0; long n = i0 + i + 1;
    for (long j = 0; j < n; j++) top = s[j] > top ? s[j] : top;
    for (long j = 0; j < n; j++) { s[j] = exp_((s[j] - top) * scale); sum += s[j]; }
    sum = 1.0f / sum;
    for (long j = 0; j < n; j++) s[j] *= sum;
    for (long j = n; j < nc; j++) s[j] = 0;
  }
}

/* Y[B, T, C] of X[B, T, 3 C], which holds q, k and v side by side, for every head of hs channels. Scores exist for ROWS
   queries of one head at a time: the T x T matrix is never written. */
WIDE static void attention(float* Y, const float* X, const unsigned* seed, long B, long T, long C, long nh, float scale,
                           unsigned threshold, float keep, float* S, long core, long cores) {
  long hs = C / nh, from, to; part(B*nh, 1, core, cores, &from, &to);
  for (long h = from; h < to; h++) {
    const float *q = X + h/nh*T*3*C + h%nh*hs, *k = q + C, *v = k + C; float* y = Y + h/nh*T*C + h%nh*hs;
    for (long i = 0; i < T; i += ROWS) {
      long r = least(ROWS, T - i), nc = i + r;
      gemm(r, nc, hs, S, T, q + i*3*C, 3*C, 1, k, 1, 3*C, 0, 0, 0);
      softmax(S, T, i, r, nc, scale);
      if (seed) for (long x = 0; x < r; x++) drop(S + x*T, nc, *seed + (unsigned)((h*T + i + x)*T), threshold, keep);
      gemm(r, hs, nc, y + i*C, C, S, T, 1, v, 3*C, 1, 0, 0, 0);
    }
  }
}

/* D[B, T, 3 C], the gradient of X for G[B, T, C] of Y. The scores are computed again. */
WIDE static void attention_dx(float* D, const float* X, const float* G, const unsigned* seed, long B, long T, long C,
                              long nh, float scale, unsigned threshold, float keep, float* S, float* E, long core,
                              long cores) {
  long hs = C / nh, from, to; part(B*nh, 1, core, cores, &from, &to);
  for (long h = from; h < to; h++) {
    long at = h/nh*T*3*C + h%nh*hs;
    const float *q = X + at, *k = q + C, *v = k + C, *g = G + h/nh*T*C + h%nh*hs;
    float *dq = D + at, *dk = dq + C, *dv = dk + C;
    for (long i = 0; i < T; i += ROWS) {
      long r = least(ROWS, T - i), nc = i + r; const float *qi = q + i*3*C, *gi = g + i*C;
      gemm(r, nc, hs, S, T, qi, 3*C, 1, k, 1, 3*C, 0, 0, 0);
      softmax(S, T, i, r, nc, scale);
      gemm(r, nc, hs, E, T, gi, C, 1, v, 1, 3*C, 0, 0, 0);  /* gradient of the weights */
      float* W = S;
      if (seed) {
        W = E + ROWS*T;  /* the weights after dropout, beside those before it */
        for (long x = 0; x < r; x++) {
          unsigned index = *seed + (unsigned)((h*T + i + x)*T);
          for (long j = 0; j < nc; j++) W[x*T + j] = S[x*T + j];
          drop(W + x*T, nc, index, threshold, keep); drop(E + x*T, nc, index, threshold, keep);
        }
      }
      /* Rows of dk and dv that no earlier block of queries saw start from nothing. */
      if (i) gemm(i, hs, r, dv, 3*C, W, 1, T, gi, C, 1, dv, 3*C, 0);
      gemm(r, hs, r, dv + i*3*C, 3*C, W + i, 1, T, gi, C, 1, 0, 0, 0);
      for (long x = 0; x < r; x++) {
        float *s = S + x*T, *e = E + x*T, sum = 0;
        for (long j = 0; j < nc; j++) sum += s[j] * e[j];
        for (long j = 0; j < nc; j++) e[j] = s[j] * (e[j] - sum) * scale;
      }
      gemm(r, hs, nc, dq + i*3*C, 3*C, E, T, 1, k, 3*C, 1, 0, 0, 0);
      if (i) gemm(i, hs, r, dk, 3*C, E, 1, T, qi, 3*C, 1, dk, 3*C, 0);
      gemm(r, hs, r, dk + i*3*C, 3*C, E + i, 1, T, qi, 3*C, 1, 0, 0, 0);
    }
  }
}
