/* One step of AdamW in place for four numbers a thread; after a gradient whose norm isn't finite nothing changes. */
extern "C" __global__ void __launch_bounds__(THREADS)
adamw(float* p, float* m, float* v, const float* g, const float* hyper, const float* norm) {
  float rate = hyper[0], c1 = hyper[1], c2 = hyper[2], total = norm[0], scale = fminf(CLIP / (total + 1e-6f), 1.0f);
  if (!(total < __int_as_float(0x7f800000))) return;
  for (int j = 0; j < 4; j++) {
    long long i = ((long long)blockIdx.x * 4 + j) * THREADS + threadIdx.x;
    if (i >= N) break;
    float d = g[i] * scale, a = BETA1 * m[i] + (1 - BETA1) * d, b = BETA2 * v[i] + (1 - BETA2) * d * d, w = p[i];
    m[i] = a; v[i] = b; p[i] = w - rate * (a * c1 / (sqrtf(b * c2) + EPS) + DECAY * w);
  }
}
