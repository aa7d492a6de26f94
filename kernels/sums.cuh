/* The sum of x over a warp, for each of its threads. */
__device__ __forceinline__ float warp_sum(float x) {
  #pragma unroll
  for (int other = 16; other; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

/* The sum of x over a block, for each of its threads: always in the same order. */
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float part[THREADS / 32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
  #pragma unroll
  for (int w = 0; w < THREADS / 32; w++) sum += part[w];
  return sum;
}
