#include "flash.cuh"

/* y = softmax(q k^T / sqrt(D)) v of 64 queries of a head, 64 keys at a time: the highest score so far (`top`, in powers
   of 2) and the sum of all weights relative to it follow along. L keeps top + log2(sum) of every query. */
extern "C" __global__ void __launch_bounds__(THREADS) attention(H* Y, float* L, const H* X,
                                                               const unsigned* seed) {
  __shared__ __align__(16) H shared[BUFFERS * 2 * TILE * LD];
  int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, h = blockIdx.y, b = blockIdx.z;
  int q0 = (gridDim.x - 1 - blockIdx.x) * TILE, mine = q0 + warp * 16;  /* those with the most keys begin first */
  const H* x = X + (long long)b * T * 3 * C + h * D;
  unsigned q[HS / 16][4], a[4]; float y[HS / 8][4], s[8][4], top[2] = {-INF, -INF}, sum[2] = {0, 0};
  tile(shared, x, 3 * C, q0); arrived();
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < HS / 16; k++) left(q[k], shared + warp * 16 * LD + k * 16);
  __syncthreads();
  H *here = shared, *next = shared + (BUFFERS - 1) * 2 * TILE * LD;
  keys(here, x, 0);
  #pragma unroll
  for (int n = 0; n < HS / 8; n++) y[n][0] = y[n][1] = y[n][2] = y[n][3] = 0;
  for (int k0 = 0; k0 <= q0; k0 += TILE) {
    const H *K = here, *V = here + TILE * LD;
    arrived();
    __syncthreads(); /* these keys and values are there, and all are done with those before them */
    if (BUFFERS == 2 && k0 < q0) keys(next, x, k0 + TILE);
    #pragma unroll
    for (int j = 0; j < 4; j++) dot(s + 2 * j, q, K + j * 16 * LD);
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      int query = mine + g + 8 * r; float high = -INF, scale;
      #pragma unroll
      for (int j = 0; j < 8; j++) for (int e = 0; e < 2; e++) {
        float* z = &s[j][2 * r + e];
        *z = k0 < q0 || k0 + j * 8 + 2 * t + e <= query ? *z * SCALE : -INF;
        high = fmaxf(high, *z);
      }
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
      high = fmaxf(top[r], high); scale = power(top[r] - high); top[r] = high; sum[r] *= scale;
      #pragma unroll
      for (int n = 0; n < HS / 8; n++) { y[n][2 * r] *= scale; y[n][2 * r + 1] *= scale; }
      #pragma unroll
      for (int j = 0; j < 8; j++) for (int e = 0; e < 2; e++) {
        float* z = &s[j][2 * r + e];
        *z = power(*z - high); sum[r] += *z;
        if (seed && dropped(seed[0], b * NH + h, query, k0 + j * 8 + 2 * t + e)) *z = 0;
      }
    }
    #pragma unroll
    for (int j = 0; j < 4; j++) {
      float (*w)[4] = s + 2 * j;
      a[0] = pack(w[0][0], w[0][1]); a[1] = pack(w[0][2], w[0][3]);
      a[2] = pack(w[1][0], w[1][1]); a[3] = pack(w[1][2], w[1][3]);
      add(y, a, V + j * 16 * LD);
    }
    if (BUFFERS == 1 && k0 < q0) {
      __syncthreads();
      keys(next, x, k0 + TILE);
    }
    H* used = here; here = next; next = used;
  }
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1); sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    if (t == 0 && mine + g + 8 * r < T) L[((long long)b * NH + h) * T + mine + g + 8 * r] = top[r] + log2f(sum[r]);
  }
  store(Y + (long long)b * T * C + h * D, C, mine, y, KEPT / sum[0], KEPT / sum[1]);
}
