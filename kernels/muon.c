#include "gemm.c"

/* C[m, m] = X X^T for X[m, n]: what is on and below the diagonal, in columns of a tile, and then its mirror image. */
WIDE static void gram(float* C, const float* X, long m, long n) {
  for (long j = 0; j < m; j += NR)
    gemm(m - j, least(NR, m - j), n, C + j*m + j, m, X + j*n, n, 1, X + j*n, 1, n, 0, 0, 0);
  for (long i = 0; i < m; i++) for (long j = i + 1; j < m; j++) C[i*m + j] = C[j*m + i];
}

/* Y[m, n] or X, where the result lies: five steps of Newton and Schulz's iteration on X[m, n], m <= n. Each is
   (3.4445 - 4.7750 A + 2.0315 A A) X for A = X X^T; A and B hold [m, m]. */
WIDE static float* orthogonalize(float* X, float* Y, float* A, float* B, long m, long n) {
  for (int step = 0; step < 5; step++) {
    gram(A, X, m, n);
    gram(B, A, m, m);
    for (long i = 0; i < m*m; i++) B[i] = 2.0315f * B[i] - 4.7750f * A[i];
    for (long i = 0; i < m; i++) B[i*m + i] += 3.4445f;
    gemm(m, n, m, Y, n, B, m, 1, X, n, 1, 0, 0, 0);
    float* done = Y; Y = X; X = done;
  }
  return X;
}

/* One step of Muon for `count` matrices p[i] of r[i] x c[i] in place. A core takes whole matrices, about as much work as
   the others; S has room for the largest. */
WIDE static void muon(float* const* p, float* const* v, const float* hyper, const float* const* g, const long* r,
                      const long* c, long count, float beta, float decay, float* S, long core, long cores) {
  double all = 0, before = 0;
  for (long i = 0; i < count; i++) { long m = least(r[i], c[i]), n = r[i] + c[i] - m; all += (double)m*m*(2*n + m); }
  for (long i = 0; i < count; i++) {
    long m = least(r[i], c[i]), n = r[i] + c[i] - m, size = m*n; double work = (double)m*m*(2*n + m);
    long owner = (long)((before + work/2) * cores / all); before += work;
    if (owner != core) continue;
    float *X = S, *Y = X + size, *A = Y + size, *B = A + m*m; double square = 0;
    for (long j = 0; j < size; j++) v[i][j] = beta * v[i][j] + g[i][j];
    for (long a = 0; a < r[i]; a++) {
      float sum = 0;
      for (long b = 0; b < c[i]; b++) {
        float u = g[i][a*c[i] + b] + beta * v[i][a*c[i] + b];  /* Nesterov's momentum */
        X[r[i] > c[i] ? b*n + a : a*n + b] = u; sum += u*u;
      }
      square += sum;
    }
    float unit = 1.0f / (__builtin_sqrtf((float)square) + 1e-7f), scale = 0.2f * __builtin_sqrtf((float)n);
    for (long j = 0; j < size; j++) X[j] *= unit;
    X = orthogonalize(X, Y, A, B, m, n);
    for (long a = 0; a < r[i]; a++) for (long b = 0; b < c[i]; b++) {
      float* w = p[i] + a*c[i] + b;
      *w -= hyper[0] * (X[r[i] > c[i] ? b*n + a : a*n + b] * scale + decay * *w);
    }
  }
}
