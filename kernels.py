"""The operations that decide how long a step takes on a CPU, as C kernels inside tinygrad's graph, with gradients.

tinygrad compiles every kernel by itself and well, but for one thing: on a CPU its matmul reaches 27 to 45 GFLOPS here
(two cores), the one below 170 to 210 on each core, because it copies a panel of B into L1 and keeps a tile of C in
registers (Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). What is left then is traffic
and the number of kernels: so each operation is one kernel forward and one or two backward, whatever it does inside.

The model calls one function for each operation. On a CPU it adds a kernel to the graph, as one that tinygrad had made
itself: the same JIT, the same cores, the same buffers, the same autograd. On any other device, with `KERNELS=0`, or
where the kernels can't be built, the plain-tensor twin `plain_NAME` runs: it is what the operation means, and what the
tests hold the kernel to. Three operations have a kernel for NVIDIA's GPUs as well, in kernels_cuda.py.

To see how one works from end to end, read GELU: `gelu` is what the model calls and `plain_gelu` its twin; `_gelu` makes
the buffer of the output and says which C function fills it, and what the gradient is; `_kernel` and `_program` put that
into the graph; the C functions `gelu` and `gelu_dx` do the work, and `part` gives each core its share of it. The other
operations differ in nothing but what they compute.

An operation computes in the dtype of its activations: where those are bfloat16 or float16 it rounds its float32 weights
to them for its matmul, and works out means, exponentials, sums and losses in float32 (mixed precision, Micikevicius et
al., arXiv:1710.03740). The kernels know float32 alone, so half precision is the twins' on any device.

The C is written for clang's generic vectors: 16 floats with AVX-512, 8 with AVX2, 4 with NEON. In the shapes, as in the
model: B sequences of T tokens, C channels, V tokens to choose from.
"""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import backend  # before tinygrad
from backend import TESTED

from tinygrad import Device, Tensor, dtypes
from tinygrad.helpers import DEBUG, Context
from tinygrad.renderer import Estimates
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo, UOp

import kernels_cuda

CORES = backend.cores()


def cores_for(flops: int) -> int:
    """How many cores a kernel should wake: each costs some 20 microseconds, which it must save.

    The sum of both times is least where the number of cores is the root of what one alone would take, over that cost.
    """
    return max(1, min(CORES, math.isqrt(flops // 250_000)))


GEMM = r"""
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
"""
LINEAR = r"""
/* The cell of C[m, n] that is this core's, in the grid of cores that leaves the least to the busiest one. */
static inline void cell(long m, long n, long core, long cores, long* m0, long* m1, long* n0, long* n1) {
  long wide = 1, least_work = 0;
  for (long w = 1; w <= cores; w++) if (cores % w == 0) {
    long high = cores / w, work = ((m + MR*high - 1) / (MR*high)) * ((n + NR*w - 1) / (NR*w));
    if (w == 1 || work <= least_work) { wide = w; least_work = work; }
  }
  part(m, MR, core / wide, cores / wide, m0, m1); part(n, NR, core % wide, wide, n0, n1);
}

/* y[n] = x[k] W[k, n] + bias + r for one row, as generation needs it: every weight is read once, in its own order. */
WIDE static void row(float* y, const float* x, const float* W, const float* bias, const float* r, long n, long k,
                     long rb, long cb, long n0, long n1) {
  if (cb != 1) for (long j = n0; j < n1; j++) {
    float s = 0; for (long i = 0; i < k; i++) s += x[i] * W[i*rb + j*cb];
    y[j] = s;
  }
  else {
    long i = 0;
    for (long j = n0; j < n1; j++) y[j] = 0;
    for (; i + 4 <= k; i += 4) {
      const float* w = W + i*rb; float a = x[i], b = x[i+1], c = x[i+2], d = x[i+3];
      for (long j = n0; j < n1; j++) y[j] += a*w[j] + b*w[j + rb] + c*w[j + 2*rb] + d*w[j + 3*rb];
    }
    for (; i < k; i++) for (long j = n0; j < n1; j++) y[j] += x[i] * W[i*rb + j];
  }
  for (long j = n0; j < n1; j++) y[j] += (bias ? bias[j] : 0) + (r ? r[j] : 0);
}

/* s[n0..n1): the sums of these columns of G[m, n], some vectors of columns at a time in registers. */
WIDE __attribute__((always_inline)) static inline
void strip(const int wide, float* s, const float* G, long m, long n) {
  vec a[4];
  for (int q = 0; q < wide; q++) a[q] = (vec)0.0f;
  for (long i = 0; i < m; i++) for (int q = 0; q < wide; q++) a[q] += *(const vec*)(G + i*n + q*VL);
  for (int q = 0; q < wide; q++) *(vec*)(s + q*VL) = a[q];
}

WIDE static void columns(float* s, const float* G, long m, long n, long n0, long n1) {
  long j = n0;
  for (; j + 4*VL <= n1; j += 4*VL) strip(4, s + j, G + j, m, n);
  for (; j + VL <= n1; j += VL) strip(1, s + j, G + j, m, n);
  for (; j < n1; j++) { s[j] = 0; for (long i = 0; i < m; i++) s[j] += G[i*n + j]; }
}

/* Y[m, n] = X[m, k] W[k, n] + bias[n] + R[m, n]; W lies transposed where rb = 1. */
WIDE static void linear(float* Y, const float* X, const float* W, const float* bias, const float* R, long m, long n,
                        long k, long rb, long cb, long core, long cores) {
  long m0, m1, n0, n1;
  if (m == 1) { part(n, 16, core, cores, &n0, &n1); row(Y, X, W, bias, R, n, k, rb, cb, n0, n1); return; }
  cell(m, n, core, cores, &m0, &m1, &n0, &n1);
  gemm(m1 - m0, n1 - n0, k, Y + m0*n + n0, n, X + m0*k, k, 1, W + n0*cb, rb, cb, R ? R + m0*n + n0 : 0, n,
       bias ? bias + n0 : 0);
}

/* dW[k, n] = X[m, k]^T G[m, n], and db[n] the sums of G's columns. */
WIDE static void linear_dw(float* dW, float* db, const float* X, const float* G, long m, long n, long k, long core,
                           long cores) {
  long k0, k1, n0, n1;
  cell(k, n, core, cores, &k0, &k1, &n0, &n1);
  gemm(k1 - k0, n1 - n0, m, dW + k0*n + n0, n, X + k0, 1, k, G + n0, n, 1, 0, 0, 0);
  if (db && !k0) columns(db, G, m, n, n0, n1);
}
"""
EXP = r"""
/* e^x to about 1e-7 of it: 2^r by the exponent's bits, 2^f for f in [-1/2, 1/2] by its Taylor series. */
static inline float exp_(float x) {
  x *= 1.44269504f;
  x = x < -126.0f ? -126.0f : x > 127.0f ? 127.0f : x;
  float r = __builtin_roundevenf(x), f = x - r;
  float p = 1.5403530e-4f;
  p = p*f + 1.3333558e-3f; p = p*f + 9.6181291e-3f; p = p*f + 5.5504109e-2f; p = p*f + 2.4022651e-1f;
  p = p*f + 6.9314718e-1f; p = p*f + 1.0f;
  union { int i; float f; } two = { ((int)r + 127) << 23 };
  return p * two.f;
}
"""
GELU = r"""
/* GELU's tanh form is x s(2 z), s the logistic function and z = sqrt(2/pi) (x + 0.044715 x^3). */
static inline float logistic(float x) { return 1.0f / (1.0f + exp_(-1.59576912f * (x + 0.044715f * x*x*x))); }

static void gelu(float* restrict Y, const float* restrict X, long n, long core, long cores) {
  long from, to; part(n, 16, core, cores, &from, &to);
  for (long i = from; i < to; i++) Y[i] = X[i] * logistic(X[i]);
}

static void gelu_dx(float* restrict D, const float* restrict X, const float* restrict G, long n, long core,
                    long cores) {
  long from, to; part(n, 16, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    float x = X[i], s = logistic(x);
    D[i] = G[i] * (s + x * s * (1.0f - s) * 1.59576912f * (1.0f + 3*0.044715f * x*x));
  }
}
"""
NORM = r"""
/* Rows of Y[m, n] = (X - mean) / sd * w + b; mean and 1 / sd of each row stay in S[m, 2] for the way back. */
static void layernorm(float* restrict Y, float* restrict S, const float* restrict X, const float* restrict w,
                      const float* restrict b, long m, long n, float eps, long core, long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float* x = X + i*n; float* y = Y + i*n; float sum = 0, square = 0;
    for (long j = 0; j < n; j++) sum += x[j];
    float mean = sum / n;
    for (long j = 0; j < n; j++) square += (x[j] - mean) * (x[j] - mean);
    float scale = 1.0f / __builtin_sqrtf(square / n + eps);
    S[2*i] = mean; S[2*i + 1] = scale;
    if (b) for (long j = 0; j < n; j++) y[j] = (x[j] - mean) * scale * w[j] + b[j];
    else for (long j = 0; j < n; j++) y[j] = (x[j] - mean) * scale * w[j];
  }
}

static void layernorm_dx(float* restrict D, const float* restrict X, const float* restrict S, const float* restrict w,
                         const float* restrict G, long m, long n, long core, long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float *x = X + i*n, *g = G + i*n; float *d = D + i*n, mean = S[2*i], scale = S[2*i + 1], a = 0, c = 0;
    for (long j = 0; j < n; j++) { a += g[j] * w[j]; c += g[j] * w[j] * (x[j] - mean) * scale; }
    a /= n; c /= n;
    for (long j = 0; j < n; j++) d[j] = scale * (g[j] * w[j] - a - (x[j] - mean) * scale * c);
  }
}

/* dw[n], db[n]: sums over the rows, each core its columns, so that nothing has to be added up between cores. */
WIDE __attribute__((always_inline)) static inline
void layernorm_strip(const int wide, float* dw, float* db, const float* X, const float* S, const float* G, long m,
                     long n) {
  vec a[4], b[4];
  for (int q = 0; q < wide; q++) a[q] = b[q] = (vec)0.0f;
  for (long i = 0; i < m; i++) for (int q = 0; q < wide; q++) {
    vec g = *(const vec*)(G + i*n + q*VL);
    a[q] += g * ((*(const vec*)(X + i*n + q*VL) - S[2*i]) * S[2*i + 1]); b[q] += g;
  }
  for (int q = 0; q < wide; q++) { *(vec*)(dw + q*VL) = a[q]; if (db) *(vec*)(db + q*VL) = b[q]; }
}

WIDE static void layernorm_dw(float* dw, float* db, const float* X, const float* S, const float* G, long m, long n,
                              long core, long cores) {
  long j, to; part(n, 16, core, cores, &j, &to);
  for (; j + 4*VL <= to; j += 4*VL) layernorm_strip(4, dw + j, db ? db + j : 0, X + j, S, G + j, m, n);
  for (; j + VL <= to; j += VL) layernorm_strip(1, dw + j, db ? db + j : 0, X + j, S, G + j, m, n);
  for (; j < to; j++) {
    float a = 0, b = 0;
    for (long i = 0; i < m; i++) { a += G[i*n + j] * (X[i*n + j] - S[2*i]) * S[2*i + 1]; b += G[i*n + j]; }
    dw[j] = a; if (db) db[j] = b;
  }
}
"""
ATTENTION = r"""
#define ROWS 64  /* queries at a time: their scores against T = 1024 keys are 256 KB */

/* The mask of gpt.dropout: zero where a hash of the element's index is below the threshold. */
static inline void drop(float* s, long n, unsigned index, unsigned threshold, float scale) {
  for (long j = 0; j < n; j++) {
    unsigned h = index + (unsigned)j;
    h = (h ^ (h >> 16)) * 0x7FEB352Du; h = (h ^ (h >> 15)) * 0x846CA68Bu; h ^= h >> 16;
    s[j] = h >= threshold ? s[j] * scale : 0.0f;
  }
}

/* Causal softmax of `rows` queries from position i0 on: row i sees i0 + i + 1 keys, the rest of its nc become 0. */
static void softmax(float* S, long ld, long i0, long rows, long nc, float scale) {
  for (long i = 0; i < rows; i++) {
    float *s = S + i*ld, top = -3e38f, sum = 0; long n = i0 + i + 1;
    for (long j = 0; j < n; j++) top = s[j] > top ? s[j] : top;
    for (long j = 0; j < n; j++) { s[j] = exp_((s[j] - top) * scale); sum += s[j]; }
    sum = 1.0f / sum;
    for (long j = 0; j < n; j++) s[j] *= sum;
    for (long j = n; j < nc; j++) s[j] = 0;
  }
}

/* Y[B, T, C] of X[B, T, 3 C], which holds q, k and v side by side, for every head of hs channels. Scores exist for ROWS
   queries of one head at a time: the T x T matrix is never written. */
WIDE static void attention(float* Y, const float* X, const unsigned* seed, long B, long T, long C, long nh, float scale,
                           unsigned threshold, float keep, float* S, long core, long cores) {
  long hs = C / nh, from, to; part(B*nh, 1, core, cores, &from, &to);
  for (long h = from; h < to; h++) {
    const float *q = X + h/nh*T*3*C + h%nh*hs, *k = q + C, *v = k + C; float* y = Y + h/nh*T*C + h%nh*hs;
    for (long i = 0; i < T; i += ROWS) {
      long r = least(ROWS, T - i), nc = i + r;
      gemm(r, nc, hs, S, T, q + i*3*C, 3*C, 1, k, 1, 3*C, 0, 0, 0);
      softmax(S, T, i, r, nc, scale);
      if (seed) for (long x = 0; x < r; x++) drop(S + x*T, nc, *seed + (unsigned)((h*T + i + x)*T), threshold, keep);
      gemm(r, hs, nc, y + i*C, C, S, T, 1, v, 3*C, 1, 0, 0, 0);
    }
  }
}

/* D[B, T, 3 C], the gradient of X for G[B, T, C] of Y. The scores are computed again. */
WIDE static void attention_dx(float* D, const float* X, const float* G, const unsigned* seed, long B, long T, long C,
                              long nh, float scale, unsigned threshold, float keep, float* S, float* E, long core,
                              long cores) {
  long hs = C / nh, from, to; part(B*nh, 1, core, cores, &from, &to);
  for (long h = from; h < to; h++) {
    long at = h/nh*T*3*C + h%nh*hs;
    const float *q = X + at, *k = q + C, *v = k + C, *g = G + h/nh*T*C + h%nh*hs;
    float *dq = D + at, *dk = dq + C, *dv = dk + C;
    for (long i = 0; i < T; i += ROWS) {
      long r = least(ROWS, T - i), nc = i + r; const float *qi = q + i*3*C, *gi = g + i*C;
      gemm(r, nc, hs, S, T, qi, 3*C, 1, k, 1, 3*C, 0, 0, 0);
      softmax(S, T, i, r, nc, scale);
      gemm(r, nc, hs, E, T, gi, C, 1, v, 1, 3*C, 0, 0, 0);  /* gradient of the weights */
      float* W = S;
      if (seed) {
        W = E + ROWS*T;  /* the weights after dropout, beside those before it */
        for (long x = 0; x < r; x++) {
          unsigned index = *seed + (unsigned)((h*T + i + x)*T);
          for (long j = 0; j < nc; j++) W[x*T + j] = S[x*T + j];
          drop(W + x*T, nc, index, threshold, keep); drop(E + x*T, nc, index, threshold, keep);
        }
      }
      /* Rows of dk and dv that no earlier block of queries saw start from nothing. */
      if (i) gemm(i, hs, r, dv, 3*C, W, 1, T, gi, C, 1, dv, 3*C, 0);
      gemm(r, hs, r, dv + i*3*C, 3*C, W + i, 1, T, gi, C, 1, 0, 0, 0);
      for (long x = 0; x < r; x++) {
        float *s = S + x*T, *e = E + x*T, sum = 0;
        for (long j = 0; j < nc; j++) sum += s[j] * e[j];
        for (long j = 0; j < nc; j++) e[j] = s[j] * (e[j] - sum) * scale;
      }
      gemm(r, hs, nc, dq + i*3*C, 3*C, E, T, 1, k, 3*C, 1, 0, 0, 0);
      if (i) gemm(i, hs, r, dk, 3*C, E, 1, T, qi, 3*C, 1, dk, 3*C, 0);
      gemm(r, hs, r, dk + i*3*C, 3*C, E + i, 1, T, qi, 3*C, 1, 0, 0, 0);
    }
  }
}
"""
STEP = r"""
/* Y[m, n] = act(norm(X)[m, k] W[k, n] + bias[n]) + R[m, n] for the few rows of one step of generation; w and b are
   those of the LayerNorm, w = 0 for none. Each core normalises every row for itself: less than waking it again. */
WIDE static void step(float* Y, const float* X, const float* w, const float* b, const float* W, const float* bias,
                      const float* R, int act, long m, long n, long k, long rb, long cb, float eps, long core,
                      long cores) {
  float N[w ? m*k : 1], S[2*m]; long m0 = 0, m1 = m, n0, n1;
  if (w) { layernorm(N, S, X, w, b, m, k, eps, 0, 1); X = N; }
  if (m == 1) { part(n, 16, core, cores, &n0, &n1); row(Y, X, W, bias, 0, n, k, rb, cb, n0, n1); }
  else {
    cell(m, n, core, cores, &m0, &m1, &n0, &n1);
    gemm(m1 - m0, n1 - n0, k, Y + m0*n + n0, n, X + m0*k, k, 1, W + n0*cb, rb, cb, 0, 0, bias ? bias + n0 : 0);
  }
  for (long i = m0; i < m1; i++) {
    float* y = Y + i*n;
    if (act) for (long j = n0; j < n1; j++) y[j] *= logistic(y[j]);
    if (R) for (long j = n0; j < n1; j++) y[j] += R[i*n + j];
  }
}

/* The keys and values of X[B, T, 3 C] into the caches K and V[B, nh, N, hs], those of sequence b from first[b] on. */
static void remember(float* K, float* V, const float* X, const int* first, long B, long T, long C, long nh, long N,
                     long core, long cores) {
  long hs = C / nh, from, to; part(B*nh, 1, core, cores, &from, &to);
  for (long h = from; h < to; h++) for (long i = 0; i < T && i + first[h/nh] < N; i++) {
    const float* k = X + (h/nh*T + i)*3*C + C + h%nh*hs; long at = (h*N + i + first[h/nh])*hs;
    for (long j = 0; j < hs; j++) { K[at + j] = k[j]; V[at + j] = k[C + j]; }
  }
}

/* One more position of every sequence, q, k and v in X[B, 3 C]: Y[B, C] is what its query finds among the positions
   from first[b] to `now`, which its own key and value go into. */
WIDE static void attend(float* Y, float* K, float* V, const float* X, const int* first, long B, long C, long nh, long N,
                        float scale, long now, long core, long cores) {
  long hs = C / nh, from, to; part(B*nh, 1, core, cores, &from, &to);
  for (long h = from; h < to; h++) {
    const float* q = X + h/nh*3*C + h%nh*hs; float *k = K + h*N*hs, *v = V + h*N*hs, *y = Y + h*hs;
    float S[N], top = -3e38f, sum = 0; long start = first[h/nh];
    for (long j = 0; j < hs; j++) { k[now*hs + j] = q[C + j]; v[now*hs + j] = q[2*C + j]; y[j] = 0; }
    for (long i = start; i <= now; i++) {
      float s = 0; for (long j = 0; j < hs; j++) s += q[j] * k[i*hs + j];
      S[i] = s; top = s > top ? s : top;
    }
    for (long i = start; i <= now; i++) { S[i] = exp_((S[i] - top) * scale); sum += S[i]; }
    for (long i = start; i <= now; i++) for (long j = 0; j < hs; j++) y[j] += S[i] / sum * v[i*hs + j];
  }
}
"""
HEAD = r"""
#define TOKENS 512  /* logits exist for 512 tokens and 64 of the vocabulary at a time: 128 KB */
#define WORDS 64

/* ln x for x >= 1, by Newton's method on e^y = x from the bits of x. */
static inline float log_(float x) {
  union { float f; int i; } u = { x };
  float y = (u.i - 0x3F7A0000) * 8.26295829e-8f;
  for (int i = 0; i < 3; i++) y += x * exp_(-y) - 1.0f;
  return y;
}

/* L[m] = Z - logit of the target Y, Z[m] = ln sum exp of the logits X[m, c] W[v, c]^T. */
WIDE static void head_loss(float* L, float* Z, const float* X, const float* W, const int* Y, long m, long c, long v,
                           long core, long cores) {
  float S[TOKENS*WORDS] __attribute__((aligned(64))), top[TOKENS], sum[TOKENS];
  long from, to; part(m, MR, core, cores, &from, &to);
  for (long i0 = from; i0 < to; i0 += TOKENS) {
    long r = least(TOKENS, to - i0);
    for (long i = 0; i < r; i++) { top[i] = -3e38f; sum[i] = 0; L[i0 + i] = 0; }
    for (long j0 = 0; j0 < v; j0 += WORDS) {
      long n = least(WORDS, v - j0);
      gemm(r, n, c, S, WORDS, X + i0*c, c, 1, W + j0*c, 1, c, 0, 0, 0);
      for (long i = 0; i < r; i++) {
        float *s = S + i*WORDS, high = top[i], more = 0; int y = Y[i0 + i];
        for (long j = 0; j < n; j++) high = s[j] > high ? s[j] : high;
        for (long j = 0; j < n; j++) more += exp_(s[j] - high);
        sum[i] = sum[i] * exp_(top[i] - high) + more; top[i] = high;
        if (y >= j0 && y < j0 + n) L[i0 + i] = s[y - j0];
      }
    }
    for (long i = 0; i < r; i++) { Z[i0 + i] = top[i] + log_(sum[i]); L[i0 + i] = Z[i0 + i] - L[i0 + i]; }
  }
}

/* Gradients for G[m] of L. Each core has its words, so its rows of dW[v, c], and a dX[m, c] of its own to be added up.
   The logits are computed again: a third more FLOPs, and no m x v matrix to write and read five times. */
WIDE static void head_loss_dx(float* dX, float* dW, const float* X, const float* W, const int* Y, const float* Z,
                              const float* G, long m, long c, long v, long core, long cores) {
  float S[TOKENS*WORDS] __attribute__((aligned(64)));
  long from, to; part(v, NR, core, cores, &from, &to);
  dX += core*m*c;
  for (long i = 0; i < m*c; i++) dX[i] = 0;
  for (long i0 = 0; i0 < m; i0 += TOKENS) for (long j0 = from; j0 < to; j0 += WORDS) {
    long r = least(TOKENS, m - i0), n = least(WORDS, to - j0); const float *x = X + i0*c, *w = W + j0*c;
    gemm(r, n, c, S, WORDS, x, c, 1, w, 1, c, 0, 0, 0);
    for (long i = 0; i < r; i++) {
      float *s = S + i*WORDS, z = Z[i0 + i], g = G[i0 + i]; int y = Y[i0 + i];
      for (long j = 0; j < n; j++) s[j] = exp_(s[j] - z) * g;
      if (y >= j0 && y < j0 + n) s[y - j0] -= g;
    }
    gemm(r, c, n, dX + i0*c, c, S, WORDS, 1, w, c, 1, dX + i0*c, c, 0);
    gemm(n, c, r, dW + j0*c, c, S, 1, WORDS, x, c, 1, i0 ? dW + j0*c : 0, c, 0);
  }
}

/* Y[m, c] = W[idx] + P[position], rows of two tables; an id that isn't in the table has no row. */
static void embed(float* restrict Y, const float* restrict W, const float* restrict P, const int* restrict idx, long m,
                  long T, long c, long v, long core, long cores) {
  long from, to; part(m, 1, core, cores, &from, &to);
  for (long i = from; i < to; i++) {
    const float* w = W + idx[i]*c; float* y = Y + i*c;
    if (idx[i] < 0 || idx[i] >= v) for (long j = 0; j < c; j++) y[j] = 0;
    else for (long j = 0; j < c; j++) y[j] = w[j];
    if (P) for (long j = 0; j < c; j++) y[j] += P[i%T*c + j];
  }
}

/* Each core adds up its columns of both tables: two tokens that are the same never meet. */
static void embed_dw(float* restrict dW, float* restrict dP, const int* restrict idx, const float* restrict G, long m,
                     long T, long c, long v, long rows, long core, long cores) {
  long from, to; part(c, 16, core, cores, &from, &to);
  for (long i = 0; i < v; i++) for (long j = from; j < to; j++) dW[i*c + j] = 0;
  if (dP) for (long i = 0; i < rows; i++) for (long j = from; j < to; j++) dP[i*c + j] = 0;
  for (long i = 0; i < m; i++) {
    const float* g = G + i*c;
    if (dP) for (long j = from; j < to; j++) dP[i%T*c + j] += g[j];
    if (idx[i] >= 0 && idx[i] < v) for (long j = from; j < to; j++) dW[idx[i]*c + j] += g[j];
  }
}
"""
OPTIMIZER = r"""
static double squares(const float* g, long n, long core, long cores) {
  long from, to; float sum = 0; part(n, 16, core, cores, &from, &to);
  for (long i = from; i < to; i++) sum += g[i] * g[i];
  return sum;
}

static inline float norm(const float* partial, long cores) {
  double sum = 0; for (long i = 0; i < cores; i++) sum += partial[i];
  return __builtin_sqrtf((float)sum);
}

static void adamw(float* restrict p, float* restrict m, float* restrict v, const float* restrict g, long n, float beta1,
                  float beta2, float eps, float decay, const float* hyper, float scale, long core, long cores) {
  long from, to; part(n, 16, core, cores, &from, &to);
  float lr = hyper[0], c1 = hyper[1], c2 = hyper[2];
  for (long i = from; i < to; i++) {
    float d = g[i] * scale;
    m[i] = beta1 * m[i] + (1.0f - beta1) * d; v[i] = beta2 * v[i] + (1.0f - beta2) * d * d;
    p[i] -= lr * (m[i] * c1 / (__builtin_sqrtf(v[i] * c2) + eps) + decay * p[i]);
  }
}
"""

# ---- adding a kernel to tinygrad's graph ----


def _program(
    name: str, buffers: Sequence[UOp], outs: int, sections: str, body: str, cores: int, flops: int, now: UOp | None
) -> UOp:
    """A compiled-program node around C source, for the CPU. `body` calls it with buffers b0, b1, ..., core, cores.

    `now` is a variable of tinygrad's, an int argument of the same name: its value comes with each call of a jitted
    step.
    """
    kinds = {dtypes.float32: "float", dtypes.int32: "int", dtypes.uint32: "unsigned"}
    arguments = [f"{'' if i < outs else 'const '}{kinds[b.dtype.base]}* b{i}" for i, b in enumerate(buffers)]
    # tinygrad runs a kernel with a variable of this name once on each of that many threads.
    core = (UOp.variable("core_id", 0, cores - 1),) if cores > 1 else ()
    variables = core + ((now,) if now is not None else ())
    arguments += ["int core"] * len(core) + ["int now"] * (now is not None)
    head = f"WIDE void {name}({', '.join(arguments)})"
    constants = f"const long cores = {cores};" if core else "const long core = 0, cores = 1;"
    traffic = sum(b.dtype.itemsize * math.prod(int(n) for n in b.shape) for b in buffers)
    info = KernelInfo(name, estimates=Estimates(flops, traffic, traffic))
    sink = UOp.sink(*[b.base for b in buffers], *variables, arg=info)
    everything = tuple(range(len(buffers)))
    about = ProgramInfo(name, (cores, 1, 1), (1, 1, 1), variables, everything, everything[:outs], everything[outs:])
    source = UOp(Ops.SOURCE, arg=f"{GEMM}{sections}{head} {{ {constants} {body} }}\n")
    order = UOp(Ops.LINEAR, src=(*sink.src, sink))
    return UOp(Ops.PROGRAM, src=(sink, UOp(Ops.DEVICE, arg="CPU"), order, source), arg=about)


def _kernel(
    name: str,
    outs: Sequence[Tensor],
    ins: Sequence[Tensor],
    sections: str,
    body: str,
    flops: int,
    backward: Callable[[Tensor], Sequence[Tensor | None]] | None = None,
    now: UOp | None = None,
) -> list[Tensor]:
    """Outputs of a kernel. `backward(g)` gives the gradient of each of `ins` for g, that of the first output."""
    cores = cores_for(flops)

    def make(*buffers: UOp) -> UOp:
        return _program(name, buffers, len(outs), sections, body, cores, flops, now)

    def gradients(g: UOp, call: UOp) -> tuple[UOp | None, ...]:
        assert backward
        return (None,) * len(outs) + tuple(None if d is None else d.uop for d in backward(_lying(Tensor(g))))

    return Tensor.custom_kernel(*outs, *ins, fxn=make, grad_fxn=gradients if backward else None)[: len(outs)]


def _c(number: float) -> str:
    """A number as C writes it."""
    return f"{float(number)!r}f"


def _new(shape: Sequence[Any], like: Tensor) -> Tensor:
    return Tensor.empty(*shape, device=like.device, dtype=dtypes.float32)


def _lying(x: Tensor) -> Tensor:
    """x as it has to lie in memory for a kernel. What a kernel made lies so already: tinygrad would copy it."""
    return x if x.uop.op is Ops.AFTER else x.contiguous()


def _sizes(x: Tensor) -> tuple[int, int]:
    """Rows and columns of `(..., n)`: a kernel sees a matrix whatever the shape, as a reshape would be a copy."""
    columns = int(x.shape[-1])
    return int(x.numel()) // columns, columns


@functools.cache
def usable() -> bool:
    """Whether the kernels can be built here. Looked at once: a small matmul is compiled, run and compared."""
    reason = ""
    if os.environ.get("KERNELS", "1") == "0":
        reason = "KERNELS=0 is set"
    elif version("tinygrad") != TESTED:
        reason = f"they are tested with tinygrad {TESTED}, this is {version('tinygrad')}"
    elif type(Device["CPU"].renderer).__name__ != "ClangJITRenderer":
        reason = "the CPU's kernels aren't compiled from C"
    else:
        try:
            with Context(CAPTURING=0):  # the question may come up while a step is being captured
                x = Tensor([[1.0, 2.0], [3.0, 4.0]], device="CPU").realize()
                product = _linear(x, x, None, transposed=True).realize().uop.base.buffer
            if product.numpy().tolist() != [5.0, 11.0, 11.0, 25.0]:  # type: ignore[union-attr]
                reason = "a matmul came out wrong"
        except Exception as error:  # whatever the compiler or the loader has against them, the twins still work
            reason = str(error).split("\n")[0]
    if reason and DEBUG >= 1:
        print(f"plain tensors instead of kernels.py: {reason}")
    return not reason


def fast(*tensors: Tensor | None) -> bool:
    """Whether these tensors can go through a kernel: on the CPU, of known shape, and the kernels can be built."""
    for t in tensors:
        if t is not None and not (
            isinstance(t.device, str)
            and t.device.split(":")[0] == "CPU"
            and t.dtype in (dtypes.float32, dtypes.int32, dtypes.uint32)
            and all(isinstance(n, int) and n > 0 for n in t.shape)
        ):
            return False
    return usable()


# ---- plain pieces ----


def edge(x: Tensor) -> Tensor:
    """A line that tinygrad's scheduler doesn't fuse across, forward or backward.

    Left alone it computes GELU, LayerNorm and softmax again in every tile of the matmul that reads them: without edges
    a step of the CPU preset's plain twin takes three times as long (523 against 171 ms in one run, two cores).
    """
    return x.contiguous().contiguous_backward()


def dropout(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """Zero each element with probability p and scale the rest by 1 / (1 - p); `seed` None means not training.

    The mask is a hash of the element's index and the seed (Wellons' lowbias32, `(numel,)` uint32), not a draw from a
    generator: the same step has the same mask on every device, in a resumed run, and in the backward pass.
    """
    if seed is None or p == 0:
        return x
    return (random_bits(x, seed) >= int(p * 2**32)).where(x * (1 / (1 - p)), 0)


def random_bits(x: Tensor, seed: Tensor) -> Tensor:
    """A uint32 for each element of x: the hash of its index and the seed."""
    h = Tensor.arange(x.numel(), dtype=dtypes.uint32, device=x.device).reshape(x.shape) + seed
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    return h ^ (h >> 16)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) at every position `(...)`, in nats, for logits `(..., V)`."""
    top = logits.max(-1, keepdim=True).detach()  # softmax doesn't change when it is subtracted, and exp can't overflow
    log_sum = (logits - top).exp().sum(-1).log() + top.squeeze(-1)  # (...)
    hit = targets.unsqueeze(-1) == Tensor.arange(logits.shape[-1], device=logits.device)
    return log_sum - hit.where(logits, 0).sum(-1)


# ---- y = x w + b ----


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """`(..., K) @ (K, N) + (N,)` -> `(..., N)`; with `transposed` the matrix lies as `(N, K)`, like an embedding."""
    if not fast(x, w, bias):
        return plain_linear(x, w, bias, transposed)
    return _linear(x, w, bias, transposed)


def plain_linear(x: Tensor, w: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    w = rounded(w, x)
    y = edge(edge(x) @ (w.T if transposed else w))
    return y if bias is None else y + bias.cast(x.dtype)


def rounded(w: Tensor, x: Tensor) -> Tensor:
    """A matrix in the dtype of the activations x: in half precision a copy, which the backward pass reads again."""
    return w if w.dtype == x.dtype else w.cast(x.dtype).contiguous()


def _linear(x: Tensor, w: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    x, w = _lying(x), _lying(w)
    (m, k), n = _sizes(x), int(w.shape[0 if transposed else 1])

    def backward(g: Tensor) -> list[Tensor | None]:  # g is (..., n)
        dx = _linear(g, w, None, not transposed)
        if transposed:  # (n, m) @ (m, k)
            return [dx, _linear_dw(g, x, False)[0]]
        return [dx, *_linear_dw(x, g, bias is not None)]

    ins = [x, w] if bias is None else [x, w, _lying(bias)]
    strides = f"1, {k}" if transposed else f"{n}, 1"
    body = f"linear(b0, b1, b2, {'0' if bias is None else 'b3'}, 0, {m}, {n}, {k}, {strides}, core, cores);"
    name = f"linear_{m}x{k}x{n}{'t' * transposed}"
    return _kernel(name, [_new((*x.shape[:-1], n), x)], ins, LINEAR, body, 2 * m * n * k, backward)[0]


def _linear_dw(x: Tensor, g: Tensor, bias: bool) -> list[Tensor]:
    """Gradients of w `(K, N)` and, if there is one, the bias `(N,)`, for x `(..., K)` and y's gradient `(..., N)`."""
    (m, k), (_, n) = _sizes(x), _sizes(g)
    outs = [_new((k, n), x)] + [_new((n,), x)] * bias
    body = f"linear_dw(b0, {'b1, b2, b3' if bias else '0, b1, b2'}, {m}, {n}, {k}, core, cores);"
    return _kernel(f"linear_dw_{m}x{k}x{n}", outs, [x, g], LINEAR, body, 2 * m * n * k)


# ---- GELU ----


def gelu(x: Tensor) -> Tensor:
    """GPT-2's activation, the tanh form of Hendrycks & Gimpel (arXiv:1606.08415), of any shape."""
    return _gelu(x) if fast(x) else plain_gelu(x)


def plain_gelu(x: Tensor) -> Tensor:
    return edge(x).float().gelu().cast(x.dtype)  # tinygrad's is the tanh form too


def _gelu(x: Tensor) -> Tensor:
    x, n = _lying(x), int(x.numel())

    def backward(g: Tensor) -> list[Tensor | None]:
        body = f"gelu_dx(b0, b1, b2, {n}, core, cores);"
        return [*_kernel(f"gelu_dx_{n}", [_new(x.shape, x)], [x, g], EXP + GELU, body, 20 * n)]

    body = f"gelu(b0, b1, {n}, core, cores);"
    return _kernel(f"gelu_{n}", [_new(x.shape, x)], [x], EXP + GELU, body, 15 * n, backward)[0]


# ---- LayerNorm ----


def layernorm(x: Tensor, w: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * w + bias over the last axis (Ba et al., arXiv:1607.06450)."""
    return _layernorm(x, w, bias, eps) if fast(x, w, bias) else plain_layernorm(x, w, bias, eps)


def plain_layernorm(x: Tensor, w: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    y = x.float().layernorm(eps=eps) * w
    return (y if bias is None else y + bias).cast(x.dtype)


def _layernorm(x: Tensor, w: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    x, w = _lying(x), _lying(w)
    m, n = _sizes(x)

    def backward(g: Tensor) -> list[Tensor | None]:
        body = f"layernorm_dx(b0, b1, b2, b3, b4, {m}, {n}, core, cores);"
        dx = _kernel(f"layernorm_dx_{m}x{n}", [_new(x.shape, x)], [x, stats, w, g], NORM, body, 12 * m * n)
        outs = [_new((n,), x) for _ in ins[1:]]
        body = f"layernorm_dw(b0, {'0, b1, b2, b3' if bias is None else 'b1, b2, b3, b4'}, {m}, {n}, core, cores);"
        return [*dx, *_kernel(f"layernorm_dw_{m}x{n}", outs, [x, stats, g], NORM, body, 5 * m * n)]

    ins = [x, w] if bias is None else [x, w, _lying(bias)]
    body = f"layernorm(b0, b1, b2, b3, {'0' if bias is None else 'b4'}, {m}, {n}, {_c(eps)}, core, cores);"
    outs = [_new(x.shape, x), _new((m, 2), x)]
    y, stats = _kernel(f"layernorm_{m}x{n}", outs, ins, NORM, body, 8 * m * n, backward)
    return y


# ---- attention ----


def attention(qkv: Tensor, n_head: int, p: float = 0.0, seed: Tensor | None = None) -> Tensor:
    """Causal self-attention (Vaswani et al., arXiv:1706.03762): `(B, T, 3 C)`, q, k and v side by side, -> `(B, T, C)`.

    Softmax weights are dropped with probability p where there is a `seed`.
    """
    if kernels_cuda.can_attend(qkv, n_head):
        return kernels_cuda.attention(qkv, n_head, p, seed if p else None)
    if not fast(qkv, seed) or qkv.shape[1] > LONGEST:
        return plain_attention(qkv, n_head, p, seed)
    return _attention(qkv, n_head, p, seed if p else None)


LONGEST = 8192  # tokens: their scores for 64 queries are 2 MB, three times, on a thread's stack of 8 MB


def plain_attention(qkv: Tensor, n_head: int, p: float = 0.0, seed: Tensor | None = None) -> Tensor:
    B, T, C = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // 3
    qkv = edge(qkv).reshape(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)  # (3, B, nh, T, hs)
    q, k, v = edge(qkv[0]), edge(qkv[1]), edge(qkv[2])  # (B, nh, T, hs) each
    scores = edge(q.matmul(k.transpose(-2, -1), dtype=dtypes.float32)) * (C // n_head) ** -0.5  # (B, nh, T, T)
    past = Tensor.ones(T, T, dtype=dtypes.bool, device=qkv.device).tril()
    scores = past.where(scores, -1e30)
    # Softmax by hand, to keep the exponentials: tinygrad's own computes them again for the sum, for the quotient
    # and twice in the backward pass, 16 ms of a 170 ms step.
    e = (scores - scores.max(-1, keepdim=True).detach()).exp().contiguous()
    weights = edge(e / e.sum(-1, keepdim=True))
    y = edge(dropout(weights, p, seed).cast(v.dtype) @ v)  # (B, nh, T, hs)
    return y.transpose(1, 2).reshape(B, T, C)


def _attention(qkv: Tensor, n_head: int, p: float, seed: Tensor | None) -> Tensor:
    B, T, C = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // 3
    qkv = _lying(qkv)
    seeds = [] if seed is None else [_lying(seed)]
    numbers = f"{B}, {T}, {C}, {n_head}, {_c((C // n_head) ** -0.5)}, {int(p * 2**32)}u, {_c(1 / (1 - p))}"
    flops, name = 2 * B * T * T * C, f"{B}x{T}x{C}_{n_head}"  # half of 4 B T^2 C, as the mask halves it

    def backward(g: Tensor) -> list[Tensor | None]:
        body = f"float S[ROWS*{T}], E[{2 if seeds else 1}*ROWS*{T}];"
        body += f" attention_dx(b0, b1, b2, {'b3' if seeds else '0'}, {numbers}, S, E, core, cores);"
        outs = [_new(qkv.shape, qkv)]
        dx = _kernel(f"attention_dx_{name}", outs, [qkv, g, *seeds], EXP + ATTENTION, body, flops * 5 // 2)
        return [*dx, *[None for _ in seeds]]

    body = f"float S[ROWS*{T}]; attention(b0, b1, {'b2' if seeds else '0'}, {numbers}, S, core, cores);"
    outs = [_new((B, T, C), qkv)]
    return _kernel(f"attention_{name}", outs, [qkv, *seeds], EXP + ATTENTION, body, flops, backward)[0]


# ---- one position at a time, with the keys and values of those before it kept ----


def step_linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    norm: tuple[Tensor, Tensor | None] | None = None,
    act: bool = False,
    add: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """`linear` with what stands around it in a block: a LayerNorm before (its weight and bias), GELU behind (`act`),
    and a sum with `add` `(..., N)`. No gradient: it is for generation, where a step of one row `(B, K)` has no time for
    more than one kernel that reads the weights once."""
    if norm and x.numel() > 1 << 18:  # each core would normalise all of it, on its stack
        x, norm = layernorm(x, *norm), None
    if not fast(x, w, bias, add, *(norm or ())):
        y = x if norm is None else plain_layernorm(x, *norm)
        y = plain_linear(y, w, bias, transposed)
        y = plain_gelu(y) if act else y
        return edge(y if add is None else y + add)
    (m, k), n = _sizes(x), int(w.shape[0 if transposed else 1])
    ins: list[Tensor] = []

    def argument(t: Tensor | None) -> str:
        if t is None:
            return "0"
        ins.append(_lying(t))
        return f"b{len(ins)}"

    before, after = norm or (None, None)
    pointers = ", ".join(argument(t) for t in (x, before, after, w, bias, add))
    strides = f"1, {k}" if transposed else f"{n}, 1"
    body = f"step(b0, {pointers}, {int(act)}, {m}, {n}, {k}, {strides}, 1e-5f, core, cores);"
    kind = "".join(str(int(t is not None)) for t in (before, after, bias, add)) + "t" * transposed + "g" * act
    name = f"step_{m}x{k}x{n}_{kind}"
    outs = [_new((*x.shape[:-1], n), x)]
    return _kernel(name, outs, ins, LINEAR + EXP + GELU + NORM + STEP, body, 2 * m * n * k)[0]


def remember(qkv: Tensor, keys: Tensor, values: Tensor, first: Tensor) -> None:
    """Write the keys and values of `(B, T, 3 C)` into the caches `(B, nh, N, hs)`, in place: those of sequence b from
    position first[b] `(B,)` on."""
    B, T, C = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // 3
    nh, N = int(keys.shape[1]), int(keys.shape[2])
    if fast(qkv, keys, values, first):
        body = f"remember(b0, b1, b2, b3, {B}, {T}, {C}, {nh}, {N}, core, cores);"
        name, sections = f"remember_{B}x{T}x{C}_{nh}x{N}", LINEAR + EXP + GELU + NORM + STEP
        Tensor.realize(*_kernel(name, [keys, values], [_lying(qkv), first], sections, body, 4 * B * T * C))
        return
    source = (Tensor.arange(N, device=qkv.device).reshape(1, 1, N, 1) - first.reshape(B, 1, 1, 1)).clip(0, T - 1)
    for i, cache in ((1, keys), (2, values)):
        lying = qkv.reshape(B, T, 3, nh, C // nh)[:, :, i].transpose(1, 2)  # (B, nh, T, hs)
        cache.assign(lying.gather(2, source.expand(*cache.shape)).contiguous())
    Tensor.realize(keys, values)


def attend(qkv: Tensor, keys: Tensor, values: Tensor, first: Tensor, now: UOp) -> Tensor:
    """Attention `(B, C)` of one more position of every sequence, whose q, k and v are `(B, 3 C)` side by side.

    Its key and value go into the caches `(B, nh, N, hs)` at `now`, a bound variable, so that one jitted step serves
    every position; it looks at the positions of sequence b from first[b] `(B,)` to its own.
    """
    if not fast(qkv, keys, values, first):
        return plain_attend(qkv, keys, values, first, now)
    (B, nh, N, hs), C = (int(n) for n in keys.shape), int(qkv.shape[1]) // 3
    body = f"attend(b0, b1, b2, b3, b4, {B}, {C}, {nh}, {N}, {_c(hs ** -0.5)}, now, core, cores);"
    name, sections = f"attend_{B}x{C}_{nh}x{N}", LINEAR + EXP + GELU + NORM + STEP
    outs = [_new((B, C), qkv), keys, values]
    return _kernel(name, outs, [_lying(qkv), first], sections, body, 4 * B * N * C, now=now.unbind()[0])[0]


def plain_attend(qkv: Tensor, keys: Tensor, values: Tensor, first: Tensor, now: UOp) -> Tensor:
    B, nh, N, hs = (int(n) for n in keys.shape)
    parts = edge(qkv).reshape(B, 3, nh, 1, hs).permute(1, 0, 2, 3, 4)
    q, k, v = parts[0], parts[1], parts[2]  # (B, nh, 1, hs) each
    seen = []  # (B, nh, now + 1, hs)
    for cache, new in ((keys, k), (values, v)):
        written = cache.uop.after(cache[:, :, now : now + 1].uop.store(new.contiguous().uop))
        seen.append(Tensor(written)[:, :, : now + 1])
    scores = (q @ seen[0].transpose(-2, -1)) * hs**-0.5  # (B, nh, 1, now + 1)
    known = Tensor.arange(N, device=qkv.device)[: now + 1].reshape(1, 1, 1, now + 1) >= first.reshape(B, 1, 1, 1)
    weights = known.where(scores, -1e30).softmax(-1).contiguous()
    return edge(weights @ seen[1]).reshape(B, nh * hs)


# ---- the two ends: embedding, and the head with its loss ----


def embed(table: Tensor, idx: Tensor, positions: Tensor | None = None) -> Tensor:
    """Rows `(B, T, C)` of a table `(V, C)` for tokens `(B, T)`, plus the first T rows of `positions` `(block, C)`."""
    if positions is not None and kernels_cuda.can_embed(table, idx, positions):
        return kernels_cuda.embed(table, idx, positions)
    return _embed(table, idx, positions) if fast(table, idx, positions) else plain_embed(table, idx, positions)


def plain_embed(table: Tensor, idx: Tensor, positions: Tensor | None = None) -> Tensor:
    return table[idx] if positions is None else table[idx] + positions[: idx.shape[1]]


def _embed(table: Tensor, idx: Tensor, positions: Tensor | None) -> Tensor:
    (V, C), (_, T) = _sizes(table), _sizes(idx)
    tables = [_lying(t) for t in (table, positions) if t is not None]
    idx, n = _lying(idx), int(idx.numel())

    def backward(g: Tensor) -> list[Tensor | None]:
        outs = [_new(t.shape, g) for t in tables]
        sizes = f"{n}, {T}, {C}, {V}, {0 if positions is None else positions.shape[0]}"
        body = f"embed_dw(b0, {'0, b1, b2' if positions is None else 'b1, b2, b3'}, {sizes}, core, cores);"
        return [*_kernel(f"embed_dw_{n}x{C}x{V}", outs, [idx, g], EXP + HEAD, body, V * C + 2 * n * C), None]

    body = f"embed(b0, b1, {'0, b2' if positions is None else 'b2, b3'}, {n}, {T}, {C}, {V}, core, cores);"
    outs = [_new((*idx.shape, C), table)]
    return _kernel(f"embed_{n}x{C}x{V}", outs, [*tables, idx], EXP + HEAD, body, 2 * n * C, backward)[0]


def head_loss(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy `(...)` in nats of the logits x @ table.T, for x `(..., C)`, a table `(V, C)` and targets `(...)`.

    The kernel never holds more than a tile of the logits: of 3,072 tokens and GPT-2's vocabulary all of them would be
    617 MB, once forward and once backward.
    """
    return _head_loss(x, table, targets) if fast(x, table, targets) else plain_head_loss(x, table, targets)


def plain_head_loss(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    V, more = int(table.shape[0]), padding(table)
    if more:  # in a copy: nothing outside sees the rows, and what they would learn goes nowhere
        table = edge(table.pad(((0, more), (0, 0))).cast(x.dtype))
    logits = plain_linear(x, table, None, transposed=True).float()
    if more:
        known = Tensor.arange(V + more, device=x.device) < V
        logits = known.where(logits, -1e30)  # probability 0, gradient 0
    return cross_entropy(logits, targets)


def padding(table: Tensor) -> int:
    """Rows to add to a table `(V, C)` before it multiplies: on an NVIDIA GPU those to the next multiple of 128.

    Of GPT-2's 50,257 rows tinygrad makes no tiles for the tensor cores: compiled for sm_89 in bfloat16 none of the
    head's three matmuls is theirs, with 47 more rows all three are. A small table isn't worth the copy.
    """
    V, device = int(table.shape[0]), table.device if isinstance(table.device, str) else (table.device or ("CPU",))[0]
    return -V % 128 if V > 1024 and backend.compute_capability(device) else 0


def _head_loss(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    x, table, targets = _lying(x), _lying(table), _lying(targets)
    (m, C), (V, _) = _sizes(x), _sizes(table)

    def backward(g: Tensor) -> list[Tensor | None]:
        outs = [_new((cores_for(6 * m * C * V), *x.shape), x), _new((V, C), x)]
        body = f"head_loss_dx(b0, b1, b2, b3, b4, b5, b6, {m}, {C}, {V}, core, cores);"
        name = f"head_loss_dx_{m}x{C}x{V}"
        dx, dw = _kernel(name, outs, [x, table, targets, lse, g], EXP + HEAD, body, 6 * m * C * V)
        return [dx.sum(0), dw, None]

    body = f"head_loss(b0, b1, b2, b3, b4, {m}, {C}, {V}, core, cores);"
    outs = [_new(x.shape[:-1], x), _new((m,), x)]
    name = f"head_loss_{m}x{C}x{V}"
    loss, lse = _kernel(name, outs, [x, table, targets], EXP + HEAD, body, 2 * m * C * V, backward)
    return loss


# ---- AdamW ----


def adamw(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    m: Mapping[str, Tensor],
    v: Mapping[str, Tensor],
    hyper: Tensor,
    decay: Mapping[str, float],
    betas: tuple[float, float],
    eps: float,
    clip: float,
) -> Tensor:
    """One step of AdamW (Loshchilov & Hutter, arXiv:1711.05101) in place; the gradient's norm before clipping, `()`.

    `hyper` is `(3,)`: the learning rate and both bias corrections. `clip` is the highest norm of all gradients together
    (math.inf for none), `decay` the weight decay of each parameter. Gradients whose norm isn't finite change nothing.
    """
    chosen = _adamw if fast(hyper, *params.values(), *grads.values()) else plain_adamw
    if kernels_cuda.can_update(hyper, *params.values(), *grads.values()):
        chosen = kernels_cuda.adamw
    return chosen(params, grads, m, v, hyper, decay, betas, eps, clip)


def plain_adamw(params, grads, m, v, hyper, decay, betas, eps, clip) -> Tensor:
    norm = Tensor.stack(*[g.square().sum() for g in grads.values()]).sum().sqrt()
    scale = (clip / (norm + 1e-6)).minimum(1.0)
    good = norm < math.inf
    Tensor.realize(norm, scale, good)
    lr, correct1, correct2 = hyper[0], hyper[1], hyper[2]
    for name, p in params.items():
        g = grads[name] * scale
        m[name].assign(good.where(betas[0] * m[name] + (1 - betas[0]) * g, m[name]))
        v[name].assign(good.where(betas[1] * v[name] + (1 - betas[1]) * g.square(), v[name]))
        step = (m[name] * correct1) / ((v[name] * correct2).sqrt() + eps) + decay[name] * p.detach()
        p.assign(p.detach() - good.where(lr * step, 0))
    Tensor.realize(*params.values(), *m.values(), *v.values())
    return norm


def _adamw(params, grads, m, v, hyper, decay, betas, eps, clip) -> Tensor:
    names, sizes = list(params), [int(p.numel()) for p in params.values()]
    n, total = len(names), sum(sizes)
    cores = cores_for(2 * total)
    parts = [f"squares(b{i + 1}, {size}, core, cores)" for i, size in enumerate(sizes)]
    body = f"b0[core] = (float)({' + '.join(parts)});"
    sums = _kernel("squares_all", [_new((cores,), hyper)], [grads[k] for k in names], OPTIMIZER, body, 2 * total)[0]
    limit = "1.0f" if clip == math.inf else f"{_c(clip)} / (total + 1e-6f)"
    body = f"float total = norm(b{3 * n + 2}, {cores}), scale = {limit}; scale = scale < 1.0f ? scale : 1.0f;"
    body += " if (core == 0) b0[0] = total; if (!(total <= 3.4e38f)) return;"
    for i, (k, size) in enumerate(zip(names, sizes)):
        numbers = f"{size}, {', '.join(map(_c, (*betas, eps, decay[k])))}, b{3 * n + 1}, scale, core, cores"
        body += f" adamw(b{1 + i}, b{1 + n + i}, b{1 + 2 * n + i}, b{3 * n + 3 + i}, {numbers});"
    outs = [_new((1,), hyper), *[t[k] for t in (params, m, v) for k in names]]
    done = _kernel("adamw_all", outs, [hyper, sums, *[grads[k] for k in names]], OPTIMIZER, body, 15 * total)
    Tensor.realize(*done)
    return done[0].reshape(())
