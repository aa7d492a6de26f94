#include "number.cuh"
#include "sums.cuh"

/* Rows of Y[M, C] = (X - mean) / sd * w + b, a row for each warp; its mean and 1 / sd stay in S[M, 2] for the way back. */
extern "C" __global__ void __launch_bounds__(THREADS)
layernorm(H* Y, float* S, const H* X, const float* w, const float* b) {
  int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, first = threadIdx.x % 32 * 2;
  if (row >= M) return;
  const H* x = X + (long long)row * C; H* y = Y + (long long)row * C;
  float sum = 0, square = 0;
  #pragma unroll 8
  for (int c = first; c < C; c += 64) { float2 a = load(x + c); sum += a.x + a.y; }
  float mean = warp_sum(sum) / C;
  #pragma unroll 8
  for (int c = first; c < C; c += 64) {
    float2 a = load(x + c);
    square += (a.x - mean) * (a.x - mean) + (a.y - mean) * (a.y - mean);
  }
  float scale = 1 / sqrtf(warp_sum(square) / C + EPS);
  #pragma unroll 8
  for (int c = first; c < C; c += 64) {
    float2 a = load(x + c);
    store(y + c, (a.x - mean) * scale * w[c] + (b ? b[c] : 0), (a.y - mean) * scale * w[c + 1] + (b ? b[c + 1] : 0));
  }
  if (first == 0) { S[2 * row] = mean; S[2 * row + 1] = scale; }
}
