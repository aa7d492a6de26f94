#include "linear.c"
#include "gelu.c"
#include "layernorm.c"

/* Y[m, n] = act(norm(X)[m, k] W[k, n] + bias[n]) + R[m, n] for the few rows of one step of generation; w and b are
   those of the LayerNorm, w = 0 for none. Each core normalises every row for itself: less than waking it again. */
WIDE static void step(float* Y, const float* X, const float* w, const float* b, const float* W, const float* bias,
                      const float* R, int act, int rms, long m, long n, long k, long rb, long cb, float eps,
                      long core, long cores) {
  float N[w ? m*k : 1], S[2*m]; long m0 = 0, m1 = m, n0, n1;
  if (w) { layernorm(N, S, X, w, b, rms, m, k, eps, 0, 1); X = N; }
  if (m == 1) { part(n, 16, core, cores, &n0, &n1); row(Y, X, W, bias, n, k, rb, cb, n0, n1); }
  else {
    cell(m, n, core, cores, &m0, &m1, &n0, &n1);
    gemm(m1 - m0, n1 - n0, k, Y + m0*n + n0, n, X + m0*k, k, 1, W + n0*cb, rb, cb, 0, 0, bias ? bias + n0 : 0);
  }
  for (long i = m0; i < m1; i++) {
    float* y = Y + i*n;
    if (act) for (long j = n0; j < n1; j++) y[j] *= logistic(y[j]);
    if (R) for (long j = n0; j < n1; j++) y[j] += R[i*n + j];
  }
}

/* The nk keys and values in X[B, T, W], behind the nh queries, into the caches K and V[B, nk, N, hs], those of sequence b
   from first[b] on. */
static void remember(float* K, float* V, const float* X, const int* first, long B, long T, long hs, long nh, long nk,
                     long N, long core, long cores) {
  long W = (nh + 2*nk)*hs, from, to; part(B*nk, 1, core, cores, &from, &to);
  for (long h = from; h < to; h++) for (long i = 0; i < T && i + first[h/nk] < N; i++) {
    const float* k = X + (h/nk*T + i)*W + (nh + h%nk)*hs; long at = (h*N + i + first[h/nk])*hs;
    for (long j = 0; j < hs; j++) { K[at + j] = k[j]; V[at + j] = k[nk*hs + j]; }
  }
}

/* One more position of every sequence, q, k and v in X[B, W]: Y[B, nh hs] is what each query finds among the positions
   from first[b], or the newest `window` of them, to `now`, which the new keys and values go into. */
WIDE static void attend(float* Y, float* K, float* V, const float* X, const int* first, long B, long hs, long nh, long nk,
                        long N, long window, float scale, long now, long core, long cores) {
  long W = (nh + 2*nk)*hs, n = nh/nk, from, to; part(B*nk, 1, core, cores, &from, &to);
  for (long h = from*n; h < to*n; h++) {
    const float *x = X + h/nh*W, *q = x + h%nh*hs, *new = x + (nh + h%nh/n)*hs;
    float *k = K + h/n*N*hs, *v = V + h/n*N*hs, *y = Y + h*hs;
    float S[N], top = -3e38f, sum = 0; long start = first[h/nh];
    if (window && start < now - window + 1) start = now - window + 1;
    for (long j = 0; j < hs; j++) { k[now*hs + j] = new[j]; v[now*hs + j] = new[nk*hs + j]; y[j] = 0; }
    for (long i = start; i <= now; i++) {
      float s = 0; for (long j = 0; j < hs; j++) s += q[j] * k[i*hs + j];
      S[i] = s; top = s > top ? s : top;
    }
    for (long i = start; i <= now; i++) { S[i] = exp_((S[i] - top) * scale); sum += S[i]; }
    for (long i = start; i <= now; i++) for (long j = 0; j < hs; j++) y[j] += S[i] / sum * v[i*hs + j];
  }
}
