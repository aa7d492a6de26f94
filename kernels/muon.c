#include "gemm.c"

/* C[m, m] = A[m, k] B[k, m], which has to be symmetric: what is on and below the diagonal, in columns of a tile, and
   then its mirror image. Strides as in gemm. */
WIDE static void symmetric(float* C, long m, long k, const float* A, long ra, long ca, const float* B, long rb,
                           long cb) {
  for (long j = 0; j < m; j += NR)
    gemm(m - j, least(NR, m - j), k, C + j*m + j, m, A + j*ra, ra, ca, B + j*cb, rb, cb, 0, 0, 0);
  for (long i = 0; i < m; i++) for (long j = i + 1; j < m; j++) C[i*m + j] = C[j*m + i];
}

/* P[m, m], by which five steps of Newton and Schulz's iteration multiply X, from A = X X^T, which is lost; Q and R hold
   [m, m]. A step takes X to Q X for Q = 3.4445 - 4.7750 A + 2.0315 A A, and so A to Q A Q. All of these are polynomials
   of the first A: symmetric, and in a product of two the order doesn't matter. So the steps need no X with its many
   columns. Small singular values of X are squared in A, near its rounding: P X is up to 1e-3 of its norm away from the
   exact result where X is nearly singular, and 1e-5 where it is noise. Muon's authors iterate in bfloat16, which rounds
   each number by up to 4e-3. */
WIDE static void newton_schulz(float* P, float* A, float* Q, float* R, long m) {
  for (int step = 0; step < 5; step++) {
    symmetric(Q, m, m, A, m, 1, A, m, 1);
    for (long i = 0; i < m*m; i++) Q[i] = 2.0315f * Q[i] - 4.7750f * A[i];
    for (long i = 0; i < m; i++) Q[i*m + i] += 3.4445f;
    if (step) symmetric(R, m, m, Q, m, 1, P, m, 1);
    for (long i = 0; i < m*m; i++) P[i] = step ? R[i] : Q[i];
    if (step == 4) break;
    symmetric(R, m, m, Q, m, 1, A, m, 1);
    symmetric(A, m, m, R, m, 1, Q, m, 1);
  }
}

/* One step of Muon for `count` matrices p[i] of r[i] x c[i] in place. A core takes whole matrices, about as much work
   as the others; S has room for the largest, and four times for its smaller side squared. */
WIDE static void muon(float* const* p, float* const* v, const float* hyper, const float* const* g, const long* r,
                      const long* c, long count, float beta, float decay, float* S, long core, long cores) {
  double all = 0, before = 0;
  for (long i = 0; i < count; i++) { long m = least(r[i], c[i]), n = r[i] + c[i] - m; all += (double)m*m*(17*m + 3*n); }
  for (long i = 0; i < count; i++) {
    long m = least(r[i], c[i]), n = r[i] + c[i] - m, size = m*n; double work = (double)m*m*(17*m + 3*n);
    long owner = (long)((before + work/2) * cores / all); before += work;
    if (owner != core) continue;
    float *X = S, *A = X + size, *P = A + m*m; double square = 0;
    for (long a = 0; a < size; a += c[i]) {  /* a row */
      float sum = 0;
      for (long j = a; j < a + c[i]; j++) {
        v[i][j] = beta * v[i][j] + g[i][j]; p[i][j] -= hyper[0] * decay * p[i][j];
        X[j] = g[i][j] + beta * v[i][j]; sum += X[j] * X[j];  /* Nesterov's momentum */
      }
      square += sum;
    }
    float unit = 1.0f / (__builtin_sqrtf((float)square) + 1e-7f), scale = -0.2f * hyper[0] * __builtin_sqrtf((float)n);
    for (long j = 0; j < size; j++) X[j] *= unit;
    int wide = m == r[i]; long row = wide ? n : 1, column = wide ? 1 : m;
    symmetric(A, m, n, X, row, column, X, column, row);
    newton_schulz(P, A, P + m*m, P + 2*m*m, m);
    for (long j = 0; j < m*m; j++) P[j] *= scale;
    gemm(r[i], c[i], m, p[i], c[i], wide ? P : X, m, 1, wide ? X : P, c[i], 1, p[i], c[i], 0);  /* p += P X or X P */
  }
}
