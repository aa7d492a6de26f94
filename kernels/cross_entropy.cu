#include "number.cuh"
#include "sums.cuh"

/* The loss of a row of logits X[M, W], whose first V count: L = Z - x[target] with Z = log sum exp(x), a row a block. The
   highest logit so far, and the sum of all relative to it, follow along. */
extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(float* L, float* Z, const H* X, const int* target) {
  __shared__ float highest[THREADS / 32];
  const H* x = X + (long long)blockIdx.x * W;
  float top = -1e30f, sum = 0;
  #pragma unroll 4
  for (int c = 2 * threadIdx.x; c < V; c += 2 * THREADS) {
    float2 a = load(x + c);
    if (c + 1 >= V) a.y = -1e30f;
    float high = fmaxf(top, fmaxf(a.x, a.y));
    sum = sum * exp2f((top - high) * LOG2E) + exp2f((a.x - high) * LOG2E) + exp2f((a.y - high) * LOG2E);
    top = high;
  }
  float high = top;
  #pragma unroll
  for (int other = 16; other; other /= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, other));
  if (threadIdx.x % 32 == 0) highest[threadIdx.x / 32] = high;
  __syncthreads();
  for (int w = 0; w < THREADS / 32; w++) high = fmaxf(high, highest[w]);
  sum = block_sum(sum * exp2f((top - high) * LOG2E));
  if (threadIdx.x == 0) {
    int here = target[blockIdx.x];
    float z = high + log2f(sum) / LOG2E;
    Z[blockIdx.x] = z;
    L[blockIdx.x] = z - (here >= 0 && here < V ? (here % 2 ? load(x + here - 1).y : load(x + here).x) : 0);
  }
}
