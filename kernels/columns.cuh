/* The sum of what each warp of a block has for two columns, to `to`. */
__device__ __forceinline__ void together(float* to, float2 sum, bool in) {
  __shared__ float2 part[THREADS];
  __syncthreads();
  part[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < 32 && in) {
    for (int w = 1; w < THREADS / 32; w++) { sum.x += part[w * 32 + threadIdx.x].x; sum.y += part[w * 32 + threadIdx.x].y; }
    to[0] = sum.x; to[1] = sum.y;
  }
}
