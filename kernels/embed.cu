/* y[i] = table[idx[i]] + positions[i % T]; a token outside the table reads nothing. */
extern "C" __global__ void __launch_bounds__(THREADS)
embed(float* Y, const float* W, const float* P, const int* idx) {
  int i = blockIdx.x, token = idx[i];
  for (int c = threadIdx.x; c < C; c += THREADS)
    Y[(long long)i * C + c] = (token >= 0 && token < V ? W[(long long)token * C + c] : 0) + P[i % T * C + c];
}
