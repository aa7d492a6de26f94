#include "flash.cuh"

/* Send 64 queries with their dy, and bring what attention.cu and the caller know of each. */
__device__ __forceinline__ void queries(H* to, float* known, const H* x, const H* dy, const float* L, const float* delta,
                                        int q0, int h, int b) {
  tile(to, x, 3 * C, q0); tile(to + TILE * LD, dy, C, q0);
  int query = q0 + threadIdx.x;
  if (threadIdx.x < TILE) {
    known[threadIdx.x] = query < T ? L[((long long)b * NH + h) * T + query] : 0;
    known[TILE + threadIdx.x] = query < T ? delta[((long long)b * T + query) * NH + h] : 0;
  }
}

/* The gradients of 64 keys and values: dk = ds^T q / sqrt(D) and dv = w^T dy, with w and ds of attention_dq.cu. Everything
   is transposed, so that the rows of a warp are its keys. Each sum is one thread's: no atomics, the same every time. */
extern "C" __global__ void __launch_bounds__(THREADS)
attention_dkv(H* G, const H* X, const H* dY, const float* L, const float* delta, const unsigned* seed) {
  __shared__ __align__(16) H shared[BUFFERS * 2 * TILE * LD];
  __shared__ float numbers[BUFFERS * 2 * TILE];
  int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, h = blockIdx.y, b = blockIdx.z;
  int k0 = blockIdx.x * TILE, mine = k0 + warp * 16;
  const H *x = X + (long long)b * T * 3 * C + h * D, *dy = dY + (long long)b * T * C + h * D;
  unsigned k[HS / 16][4], v[HS / 16][4], a[4], c[4]; float dk[HS / 8][4], dv[HS / 8][4], s[2][4], dw[2][4];
  tile(shared, x + C, 3 * C, k0); tile(shared + TILE * LD, x + 2 * C, 3 * C, k0); arrived();
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < HS / 16; i++) {
    left(k[i], shared + warp * 16 * LD + i * 16); left(v[i], shared + (TILE + warp * 16) * LD + i * 16);
  }
  __syncthreads();
  int now = 0; /* the row of `shared` where the buffer that is used begins */
  queries(shared, numbers, x, dy, L, delta, k0, h, b);
  #pragma unroll
  for (int n = 0; n < HS / 8; n++) for (int i = 0; i < 4; i++) dk[n][i] = dv[n][i] = 0;
  for (int q0 = k0; q0 < T; q0 += TILE) {
    const H *Q = shared + now * LD, *dO = Q + TILE * LD;
    const float *l = numbers + now, *d = l + TILE;
    int next = (2 * TILE - now) * (BUFFERS - 1);
    arrived();
    __syncthreads();
    if (BUFFERS == 2 && q0 + TILE < T) queries(shared + next * LD, numbers + next, x, dy, L, delta, q0 + TILE, h, b);
    for (int j = 0; j < 4; j++) {
      dot(s, k, Q + j * 16 * LD); dot(dw, v, dO + j * 16 * LD);
      #pragma unroll
      for (int i = 0; i < 8; i++) {
        int at = j * 16 + i / 4 * 8 + 2 * t + i % 2, key = mine + g + i % 4 / 2 * 8, query = q0 + at;
        float w = key <= query && query < T ? power(s[i / 4][i % 4] * SCALE - l[at]) : 0;
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
    if (BUFFERS == 1 && q0 + TILE < T) {
      __syncthreads();
      queries(shared, numbers, x, dy, L, delta, q0 + TILE, h, b);
    }
    now = next;
  }
  H* to = G + (long long)b * T * 3 * C + h * D;
  store(to + C, 3 * C, mine, dk, ROOT, ROOT); store(to + 2 * C, 3 * C, mine, dv, 1, 1);
}
