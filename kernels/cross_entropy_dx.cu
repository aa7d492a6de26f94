#include "number.cuh"

/* The gradient of the logits: (softmax(x) - 1 at the target) g, and 0 from V on. */
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy_dx(H* D, const H* X, const int* target, const float* Z, const float* G) {
  long long from = (long long)blockIdx.x * W;
  int here = target[blockIdx.x];
  float z = Z[blockIdx.x], g = G[blockIdx.x];
  #pragma unroll 4
  for (int c = 2 * threadIdx.x; c < W; c += 2 * THREADS) {
    float2 x = load(X + from + c);
    x.x = c < V ? (exp2f((x.x - z) * LOG2E) - (c == here)) * g : 0;
    x.y = c + 1 < V ? (exp2f((x.y - z) * LOG2E) - (c + 1 == here)) * g : 0;
    store(D + from + c, x.x, x.y);
  }
}
