#include "flash.cuh"

/* The gradients of 64 keys and values: dk = ds^T q / sqrt(D) and dv = w^T dy, with w and ds of attention_dq.cu. Everything
   is transposed, so that the rows of a warp are its keys. Each sum is one thread's: no atomics, the same every time. */
extern "C" __global__ void __launch_bounds__(THREADS)
attention_dkv(H* G, const H* X, const H* dY, const float* L, const float* delta, const unsigned* seed) {
  __shared__ __align__(16) H Q[TILE * LD], dO[TILE * LD];
  __shared__ float l[TILE], d[TILE];
  int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, h = blockIdx.y, b = blockIdx.z;
  int k0 = blockIdx.x * TILE, mine = k0 + warp * 16;
  const H *x = X + (long long)b * T * 3 * C + h * D, *dy = dY + (long long)b * T * C + h * D;
  unsigned k[HS / 16][4], v[HS / 16][4], a[4], c[4]; float dk[HS / 8][4], dv[HS / 8][4], s[2][4], dw[2][4];
  tile(Q, x + C, 3 * C, k0); tile(dO, x + 2 * C, 3 * C, k0);
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < HS / 16; i++) {
    left(k[i], Q + warp * 16 * LD + i * 16); left(v[i], dO + warp * 16 * LD + i * 16);
  }
  #pragma unroll
  for (int n = 0; n < HS / 8; n++) for (int i = 0; i < 4; i++) dk[n][i] = dv[n][i] = 0;
  for (int q0 = k0; q0 < T; q0 += TILE) {
    __syncthreads();
    tile(Q, x, 3 * C, q0); tile(dO, dy, C, q0);
    if (threadIdx.x < TILE) {
      int query = q0 + threadIdx.x;
      l[threadIdx.x] = query < T ? L[((long long)b * NH + h) * T + query] : 0;
      d[threadIdx.x] = query < T ? delta[((long long)b * T + query) * NH + h] : 0;
    }
    __syncthreads();
    for (int j = 0; j < 4; j++) {
      dot(s, k, Q + j * 16 * LD); dot(dw, v, dO + j * 16 * LD);
      #pragma unroll
      for (int i = 0; i < 8; i++) {
        int at = j * 16 + i / 4 * 8 + 2 * t + i % 2, key = mine + g + i % 4 / 2 * 8, query = q0 + at;
        float w = key <= query && query < T ? exp2f(s[i / 4][i % 4] * SCALE - l[at]) : 0;
        bool gone = (seed && dropped(seed[0], b * NH + h, query, key));
        s[i / 4][i % 4] = gone ? 0 : w * KEPT;
        dw[i / 4][i % 4] = w * ((gone ? 0 : dw[i / 4][i % 4] * KEPT) - d[at]);
      }
      a[0] = pack(s[0][0], s[0][1]); a[1] = pack(s[0][2], s[0][3]);
      a[2] = pack(s[1][0], s[1][1]); a[3] = pack(s[1][2], s[1][3]);
      c[0] = pack(dw[0][0], dw[0][1]); c[1] = pack(dw[0][2], dw[0][3]);
      c[2] = pack(dw[1][0], dw[1][1]); c[3] = pack(dw[1][2], dw[1][3]);
      add(dv, a, dO + j * 16 * LD); add(dk, c, Q + j * 16 * LD);
    }
  }
  H* to = G + (long long)b * T * 3 * C + h * D;
  store(to + C, 3 * C, mine, dk, ROOT, ROOT); store(to + 2 * C, 3 * C, mine, dv, 1, 1);
}
