#include "mma.cuh"

#define HS ((D + 15) / 16 * 16)  /* channels of a head, in whole steps of mma; those from D on are 0 */
#define LD (HS + 8)              /* of a row in shared memory: 8 more, and eight rows lie in different banks */
#define BUFFERS (HS <= 80 ? 2 : 1) /* of each tile, as 48 KB hold: the next one arrives while this one is used */
#define INF __int_as_float(0x7f800000)

/* Send rows first to first + 63 of a head in X, `stride` numbers apart, into shared memory; 0 from row T on. */
__device__ __forceinline__ void tile(H* to, const H* X, long long stride, int first) {
  #pragma unroll
  for (int n = 0; n < TILE * (HS / 8) / THREADS; n++) {
    int i = n * THREADS + threadIdx.x, row = i / (HS / 8), col = i % (HS / 8) * 8;
    bool in = first + row < T && col < D;
    send(to + row * LD + col, in ? X + (first + row) * stride + col : X, in);
  }
}

/* Send 64 keys of a head and the values that go with them. */
__device__ __forceinline__ void keys(H* to, const H* x, int k0) {
  tile(to, x + C, 3 * C, k0); tile(to + TILE * LD, x + 2 * C, 3 * C, k0);
}

/* 2^x, as near as the GPU's one instruction for it comes: two units in the last place. */
__device__ __forceinline__ float power(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

/* Wait until all that this thread has sent is there. */
__device__ __forceinline__ void arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* The operand A of an mma: 16 rows and 16 columns from `at` on. */
__device__ __forceinline__ void left(unsigned* a, const H* at) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; i++) a[i] = *(const unsigned*)(at + (g + i % 2 * 8) * LD + i / 2 * 8 + 2 * t);
}

/* c[16, HS] += A[16, 16] M[16, HS] for the 16 rows of M from `at` on. */
__device__ __forceinline__ void add(float (*c)[4], const unsigned* a, const H* at) {
  int i = threadIdx.x % 32; unsigned b[4];
  #pragma unroll
  for (int n = 0; n < HS / 16; n++) {
    turned(b, at + (i % 16) * LD + n * 16 + i / 16 * 8);
    mma(c[2 * n], a, b); mma(c[2 * n + 1], a, b + 2);
  }
}

/* c[16, 16] = A[16, HS] M[16, HS]^T for the 16 rows of M from `at` on. */
__device__ __forceinline__ void dot(float (*c)[4], const unsigned (*a)[4], const H* at) {
  int i = threadIdx.x % 32; unsigned b[4];
  c[0][0] = c[0][1] = c[0][2] = c[0][3] = c[1][0] = c[1][1] = c[1][2] = c[1][3] = 0;
  #pragma unroll
  for (int k = 0; k < HS / 16; k++) {
    straight(b, at + (i / 16 * 8 + i % 8) * LD + k * 16 + i / 8 % 2 * 8);
    mma(c[0], a[k], b); mma(c[1], a[k], b + 2);
  }
}

/* c[16, HS] * scale as 16-bit rows first + g and first + g + 8 of a head in Y. */
__device__ __forceinline__ void store(H* Y, long long stride, int first, float (*c)[4], float up, float down) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  #pragma unroll
  for (int n = 0; n < HS / 8; n++) if (n * 8 < D) {
    if (first + g < T) *(unsigned*)(Y + (first + g) * stride + n * 8 + 2 * t) = pack(c[n][0] * up, c[n][1] * up);
    if (first + g + 8 < T)
      *(unsigned*)(Y + (first + g + 8) * stride + n * 8 + 2 * t) = pack(c[n][2] * down, c[n][3] * down);
  }
}

/* Whether dropout takes the weight of a key for a query: the hash of random_bits.py. */
__device__ __forceinline__ bool dropped(unsigned noise, int head, int query, int key) {
  unsigned h = ((unsigned)head * T + query) * T + key + noise;
  h = (h ^ h >> 16) * 0x7FEB352Du; h = (h ^ h >> 15) * 0x846CA68Bu;
  return (h ^ h >> 16) < LIMIT;
}
