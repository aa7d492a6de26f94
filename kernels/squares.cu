#include "sums.cuh"

/* A block's share of a sum of squares of N numbers, added to S[block]; with FIRST the 1,024 parts of S begin at 0. */
extern "C" __global__ void __launch_bounds__(THREADS) squares(float* S, const float* G) {
  float sum = 0;
  #pragma unroll 8
  for (long long i = blockIdx.x * THREADS + threadIdx.x; i < N; i += gridDim.x * THREADS) sum += G[i] * G[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) S[blockIdx.x] = (FIRST ? 0 : S[blockIdx.x]) + sum;
  if (FIRST && blockIdx.x == 0) for (int i = gridDim.x + threadIdx.x; i < PARTS; i += THREADS) S[i] = 0;
}
