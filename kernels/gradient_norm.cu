#include "sums.cuh"

/* The root of the sum of S, one number for each thread of one block. */
extern "C" __global__ void __launch_bounds__(THREADS) gradient_norm(float* R, const float* S) {
  float sum = block_sum(S[threadIdx.x]);
  if (threadIdx.x == 0) R[0] = sqrtf(sum);
}
