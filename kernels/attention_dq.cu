#include "flash.cuh"

/* The gradient of 64 queries: dq = ds k / sqrt(D), where ds = w (dw - delta), w the weights, dw = dy v^T their gradient
   and delta the sum of w dw over a query's keys, which is that of dy y over its channels. */
extern "C" __global__ void __launch_bounds__(THREADS)
attention_dq(H* G, const H* X, const H* dY, const float* L, const float* delta, const unsigned* seed) {
  __shared__ __align__(16) H shared[BUFFERS * 2 * TILE * LD];
  int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, h = blockIdx.y, b = blockIdx.z;
  int q0 = (gridDim.x - 1 - blockIdx.x) * TILE, mine = q0 + warp * 16;
  const H* x = X + (long long)b * T * 3 * C + h * D;
  unsigned q[HS / 16][4], dy[HS / 16][4], a[4]; float dq[HS / 8][4], s[2][4], dw[2][4], l[2] = {0, 0}, d[2] = {0, 0};
  tile(shared, x, 3 * C, q0); tile(shared + TILE * LD, dY + (long long)b * T * C + h * D, C, q0); arrived();
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < HS / 16; k++) {
    left(q[k], shared + warp * 16 * LD + k * 16); left(dy[k], shared + (TILE + warp * 16) * LD + k * 16);
  }
  __syncthreads();
  H *here = shared, *next = shared + (BUFFERS - 1) * 2 * TILE * LD;
  keys(here, x, 0);
  #pragma unroll
  for (int n = 0; n < HS / 8; n++) dq[n][0] = dq[n][1] = dq[n][2] = dq[n][3] = 0;
  for (int r = 0; r < 2; r++) if (mine + g + 8 * r < T) {
    l[r] = L[((long long)b * NH + h) * T + mine + g + 8 * r];
    d[r] = delta[((long long)b * T + mine + g + 8 * r) * NH + h];
  }
  for (int k0 = 0; k0 <= q0; k0 += TILE) {
    const H *K = here, *V = here + TILE * LD;
    arrived();
    __syncthreads();
    if (BUFFERS == 2 && k0 < q0) keys(next, x, k0 + TILE);
    for (int j = 0; j < 4; j++) {
      dot(s, q, K + j * 16 * LD); dot(dw, dy, V + j * 16 * LD);
      #pragma unroll
      for (int i = 0; i < 8; i++) {
        int r = i % 4 / 2, key = k0 + j * 16 + i / 4 * 8 + 2 * t + i % 2, query = mine + g + 8 * r;
        float w = k0 < q0 || key <= query ? power(s[i / 4][i % 4] * SCALE - l[r]) : 0;
        s[i / 4][i % 4] = w * (((seed && dropped(seed[0], b * NH + h, query, key)) ? 0 : dw[i / 4][i % 4] * KEPT) - d[r]);
      }
      a[0] = pack(s[0][0], s[0][1]); a[1] = pack(s[0][2], s[0][3]);
      a[2] = pack(s[1][0], s[1][1]); a[3] = pack(s[1][2], s[1][3]);
      add(dq, a, K + j * 16 * LD);
    }
    if (BUFFERS == 1 && k0 < q0) {
      __syncthreads();
      keys(next, x, k0 + TILE);
    }
    H* used = here; here = next; next = used;
  }
  store(G + (long long)b * T * 3 * C + h * D, 3 * C, mine, dq, ROOT, ROOT);
}
