#include "gemm.c"
#include "exp.c"

/* GELU's tanh form is x s(2 z), s the logistic function and z = sqrt(2/pi) (x + 0.044715 x^3). */
static inline float logistic(float x) { return 1.0f / (1.0f + exp_(-1.59576912f * (x + 0.044715f * x*x*x))); }

static void gelu(float* restrict Y, const float* restrict X, long n, long core, long cores) {
  long from, to; part(n, 16, core, cores, &from, &to);
  for (long i = from; i < to; i++) Y[i] = X[i] * logistic(X[i]);
}

static void gelu_dx(float* restrict D, const float* restrict X, const float* restrict G, long n, long core,
                    long cores) {
  long from, to; part(n, 16, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    float x = X[i], s = logistic(x);
    D[i] = G[i] * (s + x * s * (1.0f - s) * 1.59576912f * (1.0f + 3*0.044715f * x*x));
  }
}
