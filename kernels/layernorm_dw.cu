#include "number.cuh"
#include "columns.cuh"

/* The gradients of w and b, summed over ROWS rows at a time, as in columns.cu: W[M / ROWS, C] and B[M / ROWS, C]. */
extern "C" __global__ void __launch_bounds__(THREADS)
layernorm_dw(float* W, float* B, const H* X, const float* S, const H* G) {
  int c = blockIdx.x * 64 + threadIdx.x % 32 * 2, first = blockIdx.y * ROWS, last = min(first + ROWS, M);
  float2 dw = make_float2(0, 0), db = make_float2(0, 0);
  if (c < C)
    #pragma unroll 8
    for (int row = first + threadIdx.x / 32; row < last; row += THREADS / 32) {
      float2 x = load(X + (long long)row * C + c), g = load(G + (long long)row * C + c);
      float mean = S[2 * row], scale = S[2 * row + 1];
      dw.x += g.x * (x.x - mean) * scale; dw.y += g.y * (x.y - mean) * scale;
      db.x += g.x; db.y += g.y;
    }
  together(W + (long long)blockIdx.y * C + c, dw, c < C);
  together(B + (long long)blockIdx.y * C + c, db, c < C);
}
