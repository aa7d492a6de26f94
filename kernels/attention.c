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

/* Causal softmax of `rows` queries from position i0 on, over the keys from c0 on: row i sees those up to i0 + i, and with
   a window only the newest `window` of them, or those from position first[i] on. The rest of its nc weights become 0. */
static void softmax(float* S, long ld, long i0, long c0, long rows, long nc, long window, const int* first,
                    float scale) {
  for (long i = 0; i < rows; i++) {
    float *s = S + i*ld, top = -3e38f, sum = 0; long n = i0 + i + 1 - c0, old = window ? n - window : 0;
    if (first && first[i] - c0 > old) old = first[i] - c0;
    old = old < 0 ? 0 : old;
    for (long j = 0; j < old; j++) s[j] = 0;
    for (long j = old; j < n; j++) top = s[j] > top ? s[j] : top;
    for (long j = old; j < n; j++) { s[j] = exp_((s[j] - top) * scale); sum += s[j]; }
    sum = 1.0f / sum;
    for (long j = old; j < n; j++) s[j] *= sum;
    for (long j = n; j < nc; j++) s[j] = 0;
  }
}

/* The first key that a block of r queries from position i on sees. */
static inline long oldest(long i, long r, long window, const int* first) {
  long start = window && i >= window ? i - window + 1 : 0, least = i;
  for (long a = 0; first && a < r; a++) least = first[a] < least ? first[a] : least;
  return first && least > start ? least : start;
}

/* Y[B, T, C] of X[B, T, W], which holds the nh queries of hs channels, then nk keys and nk values, side by side: nh / nk
   queries share a key. Scores exist for ROWS queries of one head at a time: the T x T matrix is never written. With
   first[B, T] a query sees no key before that position. */
WIDE static void attention(float* Y, const float* X, const unsigned* seed, const int* first, long B,
                           long T, long hs, long nh, long nk, long window, float scale, unsigned threshold, float keep,
                           float* S, long core, long cores) {
  long C = nh*hs, W = C + 2*nk*hs, from, to; part(B*nh, 1, core, cores, &from, &to);
  for (long h = from; h < to; h++) {
    const float *x = X + h/nh*T*W, *q = x + h%nh*hs, *k = x + C + h%nh*nk/nh*hs, *v = k + nk*hs;
    float* y = Y + h/nh*T*C + h%nh*hs;
    for (long i = 0; i < T; i += ROWS) {
      const int* f = first ? first + h/nh*T + i : 0; long r = least(ROWS, T - i), c = oldest(i, r, window, f);
      long nc = i + r - c;
      gemm(r, nc, hs, S, T, q + i*W, W, 1, k + c*W, 1, W, 0, 0, 0);
      softmax(S, T, i, c, r, nc, window, f, scale);
      if (seed) for (long a = 0; a < r; a++)
        drop(S + a*T, nc, *seed + (unsigned)((h*T + i + a)*T + c), threshold, keep);
      gemm(r, hs, nc, y + i*C, C, S, T, 1, v + c*W, W, 1, 0, 0, 0);
    }
  }
}

/* D[B, T, W], the gradient of X for G[B, T, C] of Y. The scores are computed again. A core has whole keys, with all the
   queries that share them. */
WIDE static void attention_dx(float* D, const float* X, const float* G, const unsigned* seed, const int* first,
                              long B, long T, long hs, long nh, long nk, long window, float scale, unsigned threshold,
                              float keep, float* S, float* E, long core, long cores) {
  long C = nh*hs, W = C + 2*nk*hs, n = nh/nk, from, to; part(B*nk, 1, core, cores, &from, &to);
  for (long h = from*n; h < to*n; h++) {
    long at = h/nh*T*W, shared = C + h%nh/n*hs; int more = h%n != 0;  /* an earlier query has been at these keys */
    const float *q = X + at + h%nh*hs, *k = X + at + shared, *v = k + nk*hs, *g = G + h/nh*T*C + h%nh*hs;
    float *dq = D + at + h%nh*hs, *dk = D + at + shared, *dv = dk + nk*hs;
    for (long i = 0; i < T; i += ROWS) {
      const int* f = first ? first + h/nh*T + i : 0; long r = least(ROWS, T - i), c = oldest(i, r, window, f);
      long nc = i + r - c, past = i - c;
      const float *qi = q + i*W, *gi = g + i*C;
      gemm(r, nc, hs, S, T, qi, W, 1, k + c*W, 1, W, 0, 0, 0);
      softmax(S, T, i, c, r, nc, window, f, scale);
      gemm(r, nc, hs, E, T, gi, C, 1, v + c*W, 1, W, 0, 0, 0);  /* gradient of the weights */
      float* P = S;
      if (seed) {
        P = E + ROWS*T;  /* the weights after dropout, beside those before it */
        for (long x = 0; x < r; x++) {
          unsigned index = *seed + (unsigned)((h*T + i + x)*T + c);
          for (long j = 0; j < nc; j++) P[x*T + j] = S[x*T + j];
          drop(P + x*T, nc, index, threshold, keep); drop(E + x*T, nc, index, threshold, keep);
        }
      }
      /* Rows of dk and dv that no earlier block of queries saw start from nothing. */
      if (past) gemm(past, hs, r, dv + c*W, W, P, 1, T, gi, C, 1, dv + c*W, W, 0);
      gemm(r, hs, r, dv + i*W, W, P + past, 1, T, gi, C, 1, more ? dv + i*W : 0, W, 0);
      for (long x = 0; x < r; x++) {
        float *s = S + x*T, *e = E + x*T, sum = 0;
        for (long j = 0; j < nc; j++) sum += s[j] * e[j];
        for (long j = 0; j < nc; j++) e[j] = s[j] * (e[j] - sum) * scale;
      }
      gemm(r, hs, nc, dq + i*W, W, E, T, 1, k + c*W, W, 1, 0, 0, 0);
      if (past) gemm(past, hs, r, dk + c*W, W, E, 1, T, qi, W, 1, dk + c*W, W, 0);
      gemm(r, hs, r, dk + i*W, W, E + past, 1, T, qi, W, 1, more ? dk + i*W : 0, W, 0);
    }
  }
}
