#include "number.cuh"
#include "sums.cuh"

/* The gradient of X: with n = (x - mean) / sd and h = g w, (h - mean(h) - n mean(h n)) / sd. */
extern "C" __global__ void __launch_bounds__(THREADS)
layernorm_dx(H* D, const H* X, const float* S, const float* w, const H* G) {
  int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, first = threadIdx.x % 32 * 2;
  if (row >= M) return;
  long long from = (long long)row * C;
  float mean = S[2 * row], scale = S[2 * row + 1], sum = 0, dot = 0;
  #pragma unroll 8
  for (int c = first; c < C; c += 64) {
    float2 x = load(X + from + c), g = load(G + from + c);
    float h = g.x * w[c], k = g.y * w[c + 1];
    sum += h + k; dot += (h * (x.x - mean) + k * (x.y - mean)) * scale;
  }
  sum = warp_sum(sum) / C; dot = warp_sum(dot) / C;
  #pragma unroll 8
  for (int c = first; c < C; c += 64) {
    float2 x = load(X + from + c), g = load(G + from + c);
    store(D + from + c, scale * (g.x * w[c] - sum - (x.x - mean) * scale * dot),
          scale * (g.y * w[c + 1] - sum - (x.y - mean) * scale * dot));
  }
}
