#include "number.cuh"
#include "columns.cuh"

/* Sums of X[M, C] over ROWS rows at a time: S[M / ROWS, C]. A warp has 64 columns and every fourth row. */
extern "C" __global__ void __launch_bounds__(THREADS) columns(float* S, const H* X) {
  int c = blockIdx.x * 64 + threadIdx.x % 32 * 2, first = blockIdx.y * ROWS, last = min(first + ROWS, M);
  float2 sum = make_float2(0, 0);
  if (c < C)
    #pragma unroll 8
    for (int row = first + threadIdx.x / 32; row < last; row += THREADS / 32) {
      float2 x = load(X + (long long)row * C + c);
      sum.x += x.x; sum.y += x.y;
    }
  together(S + (long long)blockIdx.y * C + c, sum, c < C);
}
