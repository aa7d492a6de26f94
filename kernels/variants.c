#include "gemm.c"
#include "exp.c"

/* Y[m, W]: the first n of its heads of hs channels turned, the rest as they are. Pairs j and j + hs/2 of row i turn by
   the angle whose cosine and sine are P[i % rows, j] and P[i % rows, j + hs/2]; sign = -1 turns them back. */
static void rotate(float* restrict Y, const float* restrict X, const float* restrict P, float sign, long m, long W,
                   long n, long hs, long rows, long core, long cores) {
  long half = hs/2, from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float *x = X + i*W, *c = P + i%rows*hs, *s = c + half; float* y = Y + i*W;
    for (long h = 0; h < n*hs; h += hs) for (long j = 0; j < half; j++) {
      float a = x[h + j], b = x[h + j + half];
      y[h + j] = a*c[j] - sign*b*s[j]; y[h + j + half] = b*c[j] + sign*a*s[j];
    }
    for (long j = n*hs; j < W; j++) y[j] = x[j];
  }
}

/* Y[m, W]: the first n of its heads of hs channels divided by the root of their mean square, the rest as they are. */
static void normalise(float* restrict Y, const float* restrict X, float eps, long m, long W, long n, long hs, long core,
                      long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float* x = X + i*W; float* y = Y + i*W;
    for (long h = 0; h < n*hs; h += hs) {
      float square = 0; for (long j = 0; j < hs; j++) square += x[h + j] * x[h + j];
      float scale = 1.0f / __builtin_sqrtf(square / hs + eps);
      for (long j = 0; j < hs; j++) y[h + j] = x[h + j] * scale;
    }
    for (long j = n*hs; j < W; j++) y[j] = x[j];
  }
}

static void normalise_dx(float* restrict D, const float* restrict X, const float* restrict G, float eps, long m, long W,
                         long n, long hs, long core, long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float *x = X + i*W, *g = G + i*W; float* d = D + i*W;
    for (long h = 0; h < n*hs; h += hs) {
      float square = 0, along = 0;
      for (long j = 0; j < hs; j++) { square += x[h + j] * x[h + j]; along += x[h + j] * g[h + j]; }
      float scale = 1.0f / __builtin_sqrtf(square / hs + eps); along *= scale*scale / hs;
      for (long j = 0; j < hs; j++) d[h + j] = scale * (g[h + j] - x[h + j]*along);
    }
    for (long j = n*hs; j < W; j++) d[j] = g[j];
  }
}

static void relu2(float* restrict Y, const float* restrict X, long n, long core, long cores) {
  long from, to; part(n, 16, core, cores, &from, &to);
  for (long i = from; i < to; i++) { float x = X[i] > 0 ? X[i] : 0; Y[i] = x*x; }
}

static void relu2_dx(float* restrict D, const float* restrict X, const float* restrict G, long n, long core,
                     long cores) {
  long from, to; part(n, 16, core, cores, &from, &to);
  for (long i = from; i < to; i++) D[i] = X[i] > 0 ? 2*X[i]*G[i] : 0;
}

/* Y[m, n] = silu(gate) up of X[m, 2 n], which holds gate and up side by side; silu(x) = x / (1 + e^-x). */
static void swiglu(float* restrict Y, const float* restrict X, long m, long n, long core, long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float *x = X + 2*i*n, *up = x + n; float* y = Y + i*n;
    for (long j = 0; j < n; j++) y[j] = x[j] / (1.0f + exp_(-x[j])) * up[j];
  }
}

static void swiglu_dx(float* restrict D, const float* restrict X, const float* restrict G, long m, long n, long core,
                      long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float *x = X + 2*i*n, *up = x + n, *g = G + i*n; float *d = D + 2*i*n, *dup = d + n;
    for (long j = 0; j < n; j++) {
      float s = 1.0f / (1.0f + exp_(-x[j]));
      d[j] = g[j] * up[j] * s * (1.0f + x[j] * (1.0f - s)); dup[j] = g[j] * x[j] * s;
    }
  }
}
