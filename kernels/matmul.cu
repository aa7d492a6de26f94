#include "mma.cuh"

/* Y[M, N] = A B for 16-bit numbers and float32 sums; A_T says that A lies transposed, as [K, M], and B_T that B does, as
   [N, K]. A block has a tile of BM x BN of Y, its warps WM x WN parts of that. BK numbers of K at a time pass through
   shared memory, and STAGES - 2 (which is LATE) such pieces are on their way while one is multiplied. With SPLIT > 1, blockIdx.z has a
   part of K, and Y has a matrix for each part. */
#define PIECES ((K + BK - 1) / BK)
#define TILES_M ((M + BM - 1) / BM)
#define TILES_N ((N + BN - 1) / BN)
#define ROWS_A (A_T ? BK : BM)
#define ROWS_B (B_T ? BN : BK)
#define WIDE_A (A_T ? BM : BK)
#define WIDE_B (B_T ? BK : BN)
#define ACROSS 8 /* rows of tiles that blocks take together: they share what they read, in the L2 cache */

/* Where the eight numbers from a row and column on lie in a piece. Eight rows of a column lie in different banks. */
__device__ __forceinline__ int place(int row, int column, int width) {
  return row * width + (column / 8 ^ (width == 32 ? row / 2 % 4 : row % 8)) * 8;
}

/* A piece of `rows` x `wide` numbers of X[height, width], from a row and a column on. A thread keeps to its column, and
   goes down by `step` rows, a multiple of 8: all but the first address are constants apart. */
__device__ __forceinline__ void fetch(H* to, const H* X, int row, int column, int rows, int wide, int height, int width) {
  const int across = wide / 8, step = THREADS / across;
  int r = threadIdx.x / across, c = threadIdx.x % across * 8;
  bool column_in = width % wide == 0 || column + c < width;
  const H* from = X + (long long)(row + r) * width + column + c;
  to += place(r, c, wide);
  #pragma unroll
  for (int down = 0; down < rows; down += step) {
    bool in = column_in && (height % rows == 0 || row + r + down < height);
    send(to + down * wide, in ? from + (long long)down * width : X, in);
  }
}

/* GELU and its slope: x s(2 z) with z = sqrt(2/pi) (x + 0.044715 x^3), s the logistic function. */
__device__ __forceinline__ float logistic(float x) { return 1 / (1 + exp2f(-2.3022082f * (x + 0.044715f * x * x * x))); }
__device__ __forceinline__ float slope(float x) {
  float s = logistic(x);
  return s + x * s * (1 - s) * 1.5957691f * (1 + 3 * 0.044715f * x * x);
}

/* The epilogue, where there is more than the product p: z = p + bias, kept in Z; y = GELU(z) or z; y += R. Or, on the way
   back through GELU, y = p times the slope at what was kept, which is P then. */
extern "C" __global__ void __launch_bounds__(THREADS)
matmul(O* Y, H* Z, const H* A, const H* B, const float* bias, const H* P, const H* R) {
  __shared__ __align__(128) H shared[STAGES * (BM + BN) * BK];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  int before = blockIdx.x / (ACROSS * TILES_N) * ACROSS, rows = min(ACROSS, TILES_M - before);
  int m0 = (before + blockIdx.x % (ACROSS * TILES_N) % rows) * BM, n0 = blockIdx.x % (ACROSS * TILES_N) / rows * BN;
  int first = (int)((long long)PIECES * blockIdx.z / SPLIT), last = (int)((long long)PIECES * (blockIdx.z + 1) / SPLIT);
  int wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
  /* Of each 16 x 16 numbers a thread names a row for ldmatrix, in the order of the fragments of A or of B. */
  int r = lane % 16, c = lane / 16 * 8, turned_r = lane / 16 * 8 + lane % 8, turned_c = lane / 8 % 2 * 8;
  float sum[WM / 16][WN / 8][4];
  #pragma unroll
  for (int i = 0; i < WM / 16; i++)
    #pragma unroll
    for (int j = 0; j < WN / 8; j++) sum[i][j][0] = sum[i][j][1] = sum[i][j][2] = sum[i][j][3] = 0;
  #pragma unroll
  for (int ahead = 0; ahead < STAGES - 1; ahead++) {
    int piece = first + ahead;
    H* to = shared + ahead * (BM + BN) * BK;
    if (piece < last) {
      fetch(to, A, A_T ? piece * BK : m0, A_T ? m0 : piece * BK, ROWS_A, WIDE_A, A_T ? K : M, A_T ? M : K);
      fetch(to + BM * BK, B, B_T ? n0 : piece * BK, B_T ? piece * BK : n0, ROWS_B, WIDE_B, B_T ? N : K, B_T ? K : N);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  for (int piece = first; piece < last; piece++) {
    asm volatile("cp.async.wait_group " LATE ";" ::: "memory"); /* what this thread has sent for this piece is there */
    __syncthreads(); /* and what all have; they are done with the piece before it */
    int next = piece + STAGES - 1;
    if (next < last) {
      H* to = shared + (next - first) % STAGES * (BM + BN) * BK;
      fetch(to, A, A_T ? next * BK : m0, A_T ? m0 : next * BK, ROWS_A, WIDE_A, A_T ? K : M, A_T ? M : K);
      fetch(to + BM * BK, B, B_T ? n0 : next * BK, B_T ? next * BK : n0, ROWS_B, WIDE_B, B_T ? N : K, B_T ? K : N);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    const H *a = shared + (piece - first) % STAGES * (BM + BN) * BK, *b = a + BM * BK;
    #pragma unroll
    for (int k = 0; k < BK; k += 16) {
      unsigned left[WM / 16][4], right[WN / 16][4];
      #pragma unroll
      for (int i = 0; i < WM / 16; i++)
        if (A_T) turned(left[i], a + place(k + turned_r, wm + i * 16 + turned_c, WIDE_A));
        else straight(left[i], a + place(wm + i * 16 + r, k + c, WIDE_A));
      #pragma unroll
      for (int j = 0; j < WN / 16; j++)
        if (B_T) straight(right[j], b + place(wn + j * 16 + turned_r, k + turned_c, WIDE_B));
        else turned(right[j], b + place(k + r, wn + j * 16 + c, WIDE_B));
      #pragma unroll
      for (int i = 0; i < WM / 16; i++)
        #pragma unroll
        for (int j = 0; j < WN / 8; j++) mma(sum[i][j], left[i], right[j / 2] + j % 2 * 2);
    }
  }
  #pragma unroll
  for (int i = 0; i < WM / 16; i++)
    #pragma unroll
    for (int j = 0; j < WN / 8; j++)
      #pragma unroll
      for (int below = 0; below < 2; below++) {
        int row = m0 + wm + i * 16 + g + 8 * below, column = n0 + wn + j * 8 + 2 * t;
        if (row >= M || column >= N) continue;
        long long at = (long long)row * N + column;
        float x = sum[i][j][2 * below], y = sum[i][j][2 * below + 1];
        if (bias) { x += bias[column]; y += bias[column + 1]; }
        if (GELU) {
          unsigned z = pack(x, y); float2 kept = wide(z);
          *(unsigned*)(Z + at) = z;
          x = kept.x * logistic(kept.x); y = kept.y * logistic(kept.y);
        }
        if (P) { float2 z = wide(*(const unsigned*)(P + at)); x *= slope(z.x); y *= slope(z.y); }
        if (R) { float2 z = wide(*(const unsigned*)(R + at)); x += z.x; y += z.y; }
        O* to = Y + (long long)blockIdx.z * M * N + at;
        if (sizeof(O) == 4) *(float2*)to = make_float2(x, y); else *(unsigned*)to = pack(x, y);
      }
}
