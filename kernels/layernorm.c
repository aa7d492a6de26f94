#include "gemm.c"

/* Rows of Y[m, n] = (X - mean) / sd * w + b; mean and 1 / sd of each row stay in S[m, 2] for the way back. With `rms` the
   mean is taken to be 0. */
static void layernorm(float* restrict Y, float* restrict S, const float* restrict X, const float* restrict w,
                      const float* restrict b, int rms, long m, long n, float eps, long core, long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float* x = X + i*n; float* y = Y + i*n; float sum = 0, square = 0;
    for (long j = 0; j < n; j++) sum += x[j];
    float mean = rms ? 0.0f : sum / n;
    for (long j = 0; j < n; j++) square += (x[j] - mean) * (x[j] - mean);
    float scale = 1.0f / __builtin_sqrtf(square / n + eps);
    S[2*i] = mean; S[2*i + 1] = scale;
    if (b) for (long j = 0; j < n; j++) y[j] = (x[j] - mean) * scale * w[j] + b[j];
    else for (long j = 0; j < n; j++) y[j] = (x[j] - mean) * scale * w[j];
  }
}

static void layernorm_dx(float* restrict D, const float* restrict X, const float* restrict S, const float* restrict w,
                         const float* restrict G, int rms, long m, long n, long core, long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float *x = X + i*n, *g = G + i*n; float *d = D + i*n, mean = S[2*i], scale = S[2*i + 1], a = 0, c = 0;
    for (long j = 0; j < n; j++) { a += g[j] * w[j]; c += g[j] * w[j] * (x[j] - mean) * scale; }
    a = rms ? 0.0f : a / n; c /= n;
    for (long j = 0; j < n; j++) d[j] = scale * (g[j] * w[j] - a - (x[j] - mean) * scale * c);
  }
}

/* dw[n], db[n]: sums over the rows, each core its columns, so that nothing has to be added up between cores. */
WIDE __attribute__((always_inline)) static inline
void layernorm_strip(const int wide, float* dw, float* db, const float* X, const float* S, const float* G, long m,
                     long n) {
  vec a[4], b[4];
  for (int q = 0; q < wide; q++) a[q] = b[q] = (vec)0.0f;
  for (long i = 0; i < m; i++) for (int q = 0; q < wide; q++) {
    vec g = *(const vec*)(G + i*n + q*VL);
    a[q] += g * ((*(const vec*)(X + i*n + q*VL) - S[2*i]) * S[2*i + 1]); b[q] += g;
  }
  for (int q = 0; q < wide; q++) { *(vec*)(dw + q*VL) = a[q]; if (db) *(vec*)(db + q*VL) = b[q]; }
}

WIDE static void layernorm_dw(float* dw, float* db, const float* X, const float* S, const float* G, long m, long n,
                              long core, long cores) {
  long j, to; part(n, 16, core, cores, &j, &to);
  for (; j + 4*VL <= to; j += 4*VL) layernorm_strip(4, dw + j, db ? db + j : 0, X + j, S, G + j, m, n);
  for (; j + VL <= to; j += VL) layernorm_strip(1, dw + j, db ? db + j : 0, X + j, S, G + j, m, n);
  for (; j < to; j++) {
    float a = 0, b = 0;
    for (long i = 0; i < m; i++) { a += G[i*n + j] * (X[i*n + j] - S[2*i]) * S[2*i + 1]; b += G[i*n + j]; }
    dw[j] = a; if (db) db[j] = b;
  }
}
