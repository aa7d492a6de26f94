#include "gemm.c"

/* Y[m, c] = W[idx] + P[position], rows of two tables; an id that isn't in the table has no row. */
static void embed(float* restrict Y, const float* restrict W, const float* restrict P, const int* restrict idx, long m,
                  long T, long c, long v, long core, long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float* w = W + idx[i]*c; float* y = Y + i*c;
    if (idx[i] < 0 || idx[i] >= v) for (long j = 0; j < c; j++) y[j] = 0;
    else for (long j = 0; j < c; j++) y[j] = w[j];
    if (P) for (long j = 0; j < c; j++) y[j] += P[i%T*c + j];
  }
}

/* Each core adds up its columns of both tables: two tokens that are the same never meet. */
static void embed_dw(float* restrict dW, float* restrict dP, const int* restrict idx, const float* restrict G, long m,
                     long T, long c, long v, long rows, long core, long cores) {
  long from, to; part(c, 16, core, cores, &from, &to);
  for (long i = 0; i < v; i++) for (long j = from; j < to; j++) dW[i*c + j] = 0;
  if (dP) for (long i = 0; i < rows; i++) for (long j = from; j < to; j++) dP[i*c + j] = 0;
  for (long i = 0; i < m; i++) {
    const float* g = G + i*c;
    if (dP) for (long j = from; j < to; j++) dP[i%T*c + j] += g[j];
    if (idx[i] >= 0 && idx[i] < v) for (long j = from; j < to; j++) dW[idx[i]*c + j] += g[j];
  }
}
