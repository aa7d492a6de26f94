#include "gemm.c"

/* The cell of C[m, n] that is this core's, in the grid of cores that leaves the least to the busiest one. */
static inline void cell(long m, long n, long core, long cores, long* m0, long* m1, long* n0, long* n1) {
  long wide = 1, least_work = 0;
  for (long w = 1; w <= cores; w++) if (cores % w == 0) {
    long high = cores / w, work = ((m + MR*high - 1) / (MR*high)) * ((n + NR*w - 1) / (NR*w));
    if (w == 1 || work <= least_work) { wide = w; least_work = work; }
  }
  part(m, MR, core / wide, cores / wide, m0, m1); part(n, NR, core % wide, wide, n0, n1);
}

/* y[n] = x[k] W[k, n] + bias for one row, as generation needs it: every weight is read once, in its own order. */
WIDE static void row(float* y, const float* x, const float* W, const float* bias, long n, long k, long rb, long cb,
                     long n0, long n1) {
  if (cb != 1) for (long j = n0; j < n1; j++) {
    float s = 0; for (long i = 0; i < k; i++) s += x[i] * W[i*rb + j*cb];
    y[j] = s;
  }
  else {
    long i = 0;
    for (long j = n0; j < n1; j++) y[j] = 0;
    for (; i + 4 <= k; i += 4) {
      const float* w = W + i*rb; float a = x[i], b = x[i+1], c = x[i+2], d = x[i+3];
      for (long j = n0; j < n1; j++) y[j] += a*w[j] + b*w[j + rb] + c*w[j + 2*rb] + d*w[j + 3*rb];
    }
    for (; i < k; i++) for (long j = n0; j < n1; j++) y[j] += x[i] * W[i*rb + j];
  }
  if (bias) for (long j = n0; j < n1; j++) y[j] += bias[j];
}

/* s[n0..n1): the sums of these columns of G[m, n], some vectors of columns at a time in registers. */
WIDE __attribute__((always_inline)) static inline
void strip(const int wide, float* s, const float* G, long m, long n) {
  vec a[4];
  for (int q = 0; q < wide; q++) a[q] = (vec)0.0f;
  for (long i = 0; i < m; i++) for (int q = 0; q < wide; q++) a[q] += *(const vec*)(G + i*n + q*VL);
  for (int q = 0; q < wide; q++) *(vec*)(s + q*VL) = a[q];
}

WIDE static void columns(float* s, const float* G, long m, long n, long n0, long n1) {
  long j = n0;
  for (; j + 4*VL <= n1; j += 4*VL) strip(4, s + j, G + j, m, n);
  for (; j + VL <= n1; j += VL) strip(1, s + j, G + j, m, n);
  for (; j < n1; j++) { s[j] = 0; for (long i = 0; i < m; i++) s[j] += G[i*n + j]; }
}

/* Y[m, n] = X[m, k] W[k, n] + bias[n]; W lies transposed where rb = 1. */
WIDE static void linear(float* Y, const float* X, const float* W, const float* bias, long m, long n, long k, long rb,
                        long cb, long core, long cores) {
  long m0, m1, n0, n1;
  if (m == 1) { part(n, 16, core, cores, &n0, &n1); row(Y, X, W, bias, n, k, rb, cb, n0, n1); return; }
  cell(m, n, core, cores, &m0, &m1, &n0, &n1);
  gemm(m1 - m0, n1 - n0, k, Y + m0*n + n0, n, X + m0*k, k, 1, W + n0*cb, rb, cb, 0, 0, bias ? bias + n0 : 0);
}

/* dW[k, n] = X[m, k]^T G[m, n], and db[n] the sums of G's columns. */
WIDE static void linear_dw(float* dW, float* db, const float* X, const float* G, long m, long n, long k, long core,
                           long cores) {
  long k0, k1, n0, n1;
  cell(k, n, core, cores, &k0, &k1, &n0, &n1);
  gemm(k1 - k0, n1 - n0, m, dW + k0*n + n0, n, X + k0, 1, k, G + n0, n, 1, 0, 0, 0);
  if (db && !k0) columns(db, G, m, n, n0, n1);
}
