/* Y[M, N] = A B + bias in float32; A_T says that A lies transposed, as [K, M], and B_T that B does, as [N, K]. A block has
   64 x 64 numbers of Y, a thread 4 x 4 of them. 16 numbers of K at a time are brought to shared memory, and the next ones
   to registers meanwhile. With SPLIT > 1, blockIdx.z has a part of K, and Y has a matrix for each part. */
#define SIDE 64
#define DEEP 16
#define LD (SIDE + 4) /* of a row in shared memory: four more, and writes to different rows seldom meet in a bank */
#define EACH (SIDE * DEEP / THREADS)
#define PIECES ((K + DEEP - 1) / DEEP)

/* What this thread brings of a piece of X, from `first` of its M or N and from `k` of K on: in the order in which it lies. */
__device__ __forceinline__ void bring(float* mine, const float* X, int along, int first, int k, int count) {
  #pragma unroll
  for (int n = 0; n < EACH; n++) {
    int i = n * THREADS + threadIdx.x, s = first + (along ? i / DEEP : i % SIDE), d = k + (along ? i % DEEP : i / SIDE);
    mine[n] = s < count && d < K ? X[along ? (long long)s * K + d : (long long)d * count + s] : 0;
  }
}
__device__ __forceinline__ void keep(float (*to)[LD], const float* mine, int along) {
  #pragma unroll
  for (int n = 0; n < EACH; n++) {
    int i = n * THREADS + threadIdx.x;
    to[along ? i % DEEP : i / SIDE][along ? i / DEEP : i % SIDE] = mine[n];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) matmul32(float* Y, const float* A, const float* B, const float* bias) {
  __shared__ __align__(16) float a[DEEP][LD], b[DEEP][LD];
  int m0 = blockIdx.x * SIDE, n0 = blockIdx.y * SIDE, row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
  int piece = (int)((long long)PIECES * blockIdx.z / SPLIT), last = (int)((long long)PIECES * (blockIdx.z + 1) / SPLIT);
  float sum[4][4] = {}, next_a[EACH], next_b[EACH];
  bring(next_a, A, !A_T, m0, piece * DEEP, M); bring(next_b, B, B_T, n0, piece * DEEP, N);
  for (; piece < last; piece++) {
    __syncthreads(); /* all are done with the piece before it */
    keep(a, next_a, !A_T); keep(b, next_b, B_T);
    __syncthreads(); /* and this one is there */
    if (piece + 1 < last) {
      bring(next_a, A, !A_T, m0, (piece + 1) * DEEP, M); bring(next_b, B, B_T, n0, (piece + 1) * DEEP, N);
    }
    #pragma unroll
    for (int k = 0; k < DEEP; k++) {
      float4 left = *(const float4*)&a[k][row], right = *(const float4*)&b[k][column];
      float l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
      #pragma unroll
      for (int i = 0; i < 4; i++)
        #pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] += l[i] * r[j];
    }
  }
  #pragma unroll
  for (int i = 0; i < 4; i++)
    #pragma unroll
    for (int j = 0; j < 4; j++)
      if (m0 + row + i < M && n0 + column + j < N)
        Y[((long long)blockIdx.z * M + m0 + row + i) * N + n0 + column + j] = sum[i][j] + (bias ? bias[n0 + column + j] : 0);
}
