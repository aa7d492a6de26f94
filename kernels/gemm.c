#if defined(__AVX512F__)
#define VL 16  /* floats in a vector */
#define MR 12  /* rows of C in a tile: 12 x 2 vectors of sums, 2 of B and 1 of A make 27 of the 32 registers */
#elif defined(__AVX2__)
#define VL 8
#define MR 6   /* 15 of 16 registers */
#else
#define VL 4
#define MR 12  /* NEON has 32 registers again */
#endif
#define NR (2*VL)  /* columns of C in a tile */
#define KC 256     /* rows of B in a panel: KC x NR floats are 32 KB with AVX-512, and stay in L1 */
#define WIDE __attribute__((min_vector_width(32*VL)))
#pragma clang fp contract(fast) reassociate(on)
typedef float vec __attribute__((ext_vector_type(VL), aligned(4)));
#if !__has_builtin(__builtin_elementwise_fma)  /* before clang 20; contract(fast) makes the same instruction of it */
#define __builtin_elementwise_fma(a, b, c) ((a)*(b) + (c))
#endif

static inline long least(long a, long b) { return a < b ? a : b; }

/* The work of one core: [from, to) of n things, in whole blocks. */
static inline void part(long n, long block, long core, long cores, long* from, long* to) {
  long blocks = (n + block - 1) / block;
  *from = least(n, blocks * core / cores * block); *to = least(n, blocks * (core + 1) / cores * block);
}

/* C[mr, nn] = A[mr, kc] P[kc, NR] + D + bias. The sums never leave the registers: 2 mr NR kc FLOPs for mr NR stores. */
WIDE __attribute__((always_inline)) static inline
void tile(const int mr, float* C, long ldc, const float* A, long ra, long ca, const float* P, long kc,
          const float* D, long ldd, const float* bias, int nn) {
  vec c[MR][2];
  for (int i = 0; i < mr; i++) c[i][0] = c[i][1] = (vec)0.0f;
  for (long k = 0; k < kc; k++) {
    vec b0 = *(const vec*)(P + k*NR), b1 = *(const vec*)(P + k*NR + VL);
    for (int i = 0; i < mr; i++) {
      vec a = (vec)A[i*ra + k*ca];
      c[i][0] = __builtin_elementwise_fma(a, b0, c[i][0]);
      c[i][1] = __builtin_elementwise_fma(a, b1, c[i][1]);
    }
  }
  for (int i = 0; i < mr; i++) {
    float* to = C + i*ldc; const float* d = D + i*ldd;
    if (nn == NR) for (int j = 0; j < 2; j++) {
      if (D) c[i][j] += *(const vec*)(d + j*VL);
      if (bias) c[i][j] += *(const vec*)(bias + j*VL);
      *(vec*)(to + j*VL) = c[i][j];
    }
    else for (int j = 0; j < nn; j++) to[j] = c[i][j/VL][j%VL] + (D ? d[j] : 0) + (bias ? bias[j] : 0);
  }
}

/* gemm for matrices that a tile would be too large for, like the scores of three tokens. */
WIDE static void small(long m, long n, long k, float* C, long ldc, const float* A, long ra, long ca, const float* B,
                       long rb, long cb, const float* D, long ldd, const float* bias) {
  for (long i = 0; i < m; i++) {
    const float *a = A + i*ra, *d = D + i*ldd; float* c = C + i*ldc; long j = 0;
    if (cb == 1) for (; j + VL <= n; j += VL) {  /* a row of C: the sum of rows of B */
      vec s = (vec)0.0f;
      for (long x = 0; x < k; x++) s += a[x*ca] * *(const vec*)(B + x*rb + j);
      if (D) s += *(const vec*)(d + j);
      if (bias) s += *(const vec*)(bias + j);
      *(vec*)(c + j) = s;
    }
    for (; j < n; j++) {  /* an element of C: a dot product */
      const float* b = B + j*cb; float s = (D ? d[j] : 0) + (bias ? bias[j] : 0); long x = 0;
      if (ca == 1 && rb == 1 && k >= VL) {
        vec t = (vec)0.0f;
        for (; x + VL <= k; x += VL) t += *(const vec*)(a + x) * *(const vec*)(b + x);
        for (int q = 0; q < VL; q++) s += t[q];
      }
      for (; x < k; x++) s += a[x*ca] * b[x*rb];
      c[j] = s;
    }
  }
}

/* C[m, n] = A[m, k] B[k, n] + D[m, n] + bias[n]; D and bias may be 0, D may be C. A and B have a stride for rows (ra,
   rb) and one for columns (ca, cb), so that the same code multiplies by a transposed matrix. */
WIDE __attribute__((noinline)) static
void gemm(long m, long n, long k, float* C, long ldc, const float* A, long ra, long ca, const float* B, long rb,
          long cb, const float* D, long ldd, const float* bias) {
  if (m*n*k <= 4096) { small(m, n, k, C, ldc, A, ra, ca, B, rb, cb, D, ldd, bias); return; }
  float P[KC*NR] __attribute__((aligned(64)));
  for (long k0 = 0; k0 < k; k0 += KC) {
    long kc = least(KC, k - k0);
    const float* d = k0 ? C : D; long ld = k0 ? ldc : ldd;
    for (long j0 = 0; j0 < n; j0 += NR) {
      long nn = least(NR, n - j0); const float* b = B + k0*rb + j0*cb;
      if (cb == 1 && nn == NR) for (long x = 0; x < kc; x++) {
        *(vec*)(P + x*NR) = *(const vec*)(b + x*rb); *(vec*)(P + x*NR + VL) = *(const vec*)(b + x*rb + VL);
      }
      else {
        for (long x = 0; x < kc*NR && nn < NR; x += VL) *(vec*)(P + x) = (vec)0.0f;
        for (long x0 = 0; x0 < kc; x0 += 16) for (long j = 0; j < nn; j++)  /* 16: a line of each column at a time */
          for (long x = x0; x < least(kc, x0 + 16); x++) P[x*NR + j] = b[x*rb + j*cb];
      }
      const float* a = A + k0*ca; const float* e = d ? d + j0 : 0; const float* s = k0 || !bias ? 0 : bias + j0;
      float* c = C + j0; long i = 0;
      for (; i + MR <= m; i += MR) tile(MR, c + i*ldc, ldc, a + i*ra, ra, ca, P, kc, e ? e + i*ld : 0, ld, s, nn);
      for (; i + 4 <= m; i += 4) tile(4, c + i*ldc, ldc, a + i*ra, ra, ca, P, kc, e ? e + i*ld : 0, ld, s, nn);
      for (; i < m; i++) tile(1, c + i*ldc, ldc, a + i*ra, ra, ca, P, kc, e ? e + i*ld : 0, ld, s, nn);
    }
  }
}
