/* The gradient of ROWS rows of the table: the sum of the gradients of their tokens, in the order of the text. A thread
   owns its columns, so nothing is written by two. Each warp marks which of 32 tokens are of these rows, bit by bit. */
extern "C" __global__ void __launch_bounds__(THREADS) embed_dw(float* G, const int* idx, const float* dY) {
  __shared__ unsigned found[THREADS / 32];
  int first = blockIdx.x * ROWS, last = min(first + ROWS, V);
  for (int v = first; v < last; v++) for (int c = threadIdx.x; c < C; c += THREADS) G[(long long)v * C + c] = 0;
  for (int from = 0; from < N; from += THREADS) {
    int i = from + threadIdx.x, token = i < N ? idx[i] : -1;
    unsigned mine = __ballot_sync(0xffffffffu, token >= first && token < last);
    __syncthreads();
    if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = mine;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; w++) for (unsigned bits = found[w]; bits; bits &= bits - 1) {
      int at = from + w * 32 + __ffs(bits) - 1; long long v = idx[at];
      for (int c = threadIdx.x; c < C; c += THREADS) G[v * C + c] += dY[(long long)at * C + c];
    }
  }
}
