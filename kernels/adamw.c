#include "gemm.c"

/* sums[core]: the squares of this core's share of every gradient, `count` of them with n[i] numbers each. */
static void squares(float* sums, const float* const* g, const long* n, long count, long core, long cores) {
  double total = 0;
  for (long i = 0; i < count; i++) {
    long from, to; float sum = 0; part(n[i], 16, core, cores, &from, &to);
    for (long j = from; j < to; j++) sum += g[i][j] * g[i][j];
    total += sum;
  }
  sums[core] = (float)total;
}

static void adamw_one(float* restrict p, float* restrict m, float* restrict v, const float* restrict g, long n,
                      float beta1, float beta2, float eps, float decay, const float* hyper, float scale, long core,
                      long cores) {
  long from, to; part(n, 16, core, cores, &from, &to);
  float lr = hyper[0], c1 = hyper[1], c2 = hyper[2];
  for (long i = from; i < to; i++) {
    float d = g[i] * scale;
    m[i] = beta1 * m[i] + (1.0f - beta1) * d; v[i] = beta2 * v[i] + (1.0f - beta2) * d * d;
    p[i] -= lr * (m[i] * c1 / (__builtin_sqrtf(v[i] * c2) + eps) + decay * p[i]);
  }
}

/* One step for every parameter in place. `sums` has the squares of all gradients in `parts` pieces; their norm goes out,
   and where it isn't finite nothing changes. */
static void adamw(float* norm, float* const* p, float* const* m, float* const* v, const float* hyper, const float* sums,
                  const float* const* g, const long* n, const float* decay, long count, long parts, float beta1,
                  float beta2, float eps, float clip, long core, long cores) {
  double square = 0;
  for (long i = 0; i < parts; i++) square += sums[i];
  float total = __builtin_sqrtf((float)square), scale = clip == __builtin_inff() ? 1.0f : clip / (total + 1e-6f);
  scale = scale < 1.0f ? scale : 1.0f;
  if (core == 0) norm[0] = total;
  if (!(total <= 3.4e38f)) return;
  for (long i = 0; i < count; i++)
    adamw_one(p[i], m[i], v[i], g[i], n[i], beta1, beta2, eps, decay[i], hyper, scale, core, cores);
}
