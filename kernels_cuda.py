"""Operations that tinygrad's scheduler has no good form for on an NVIDIA GPU, as CUDA kernels inside its graph.

Matrix products it renders for the tensor cores by itself, and they stay its own. What it does not find is attention
that never writes the T x T scores (Dao et al., "FlashAttention", arXiv:2205.14135, and -2, arXiv:2307.08691), an
embedding's gradient that adds rows up where it now multiplies by a matrix of zeros and ones, and an AdamW that reads
and writes everything once.

kernels.py calls them where `fast` says so, and keeps a plain-tensor twin of each: 16-bit numbers, and a GPU from Ampere
(sm_80) on. The tests run this very source on the CPU, thread by thread, with only the section PTX replaced.

In the shapes: B sequences of T tokens, C channels, nh heads of D = C / nh channels, V tokens to choose from.
"""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import backend  # before tinygrad
from backend import TESTED

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.helpers import DEBUG, Context
from tinygrad.renderer import Estimates
from tinygrad.renderer.cstyle import CUDARenderer
from tinygrad.uop.ops import KernelInfo, Ops, ProgramInfo, UOp

TILE = 64  # queries or keys of a block: four warps of 16
THREADS = 128

PTX = r"""
/* C[16, 8] += A[16, 16] B[16, 8], float32 sums of 16-bit numbers, each matrix spread over the 32 threads of a warp. Of
   thread 4 g + t: a holds rows g and g + 8, columns 2 t, 2 t + 1 and those + 8; b the same of B's transpose; c rows g
   and g + 8, columns 2 t and 2 t + 1 (PTX ISA, "Matrix fragments for mma.m16n8k16"). */
__device__ __forceinline__ void mma(float* c, const unsigned* a, const unsigned* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
               "{%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices of 16-bit numbers, transposed; thread i names row i % 8 of the one that is i / 8. Thread 4 g + t
   gets of each the rows 2 t and 2 t + 1 in column g. */
__device__ __forceinline__ void turned(unsigned* r, const H* row) {
  unsigned from = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

/* Two floats as 16-bit numbers in one register, x in the lower half. */
__device__ __forceinline__ unsigned pack(float x, float y) {
  unsigned r;
  asm("cvt.rn." KIND "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
  return r;
}
"""
FLASH = r"""
#define HS ((D + 15) / 16 * 16)  /* channels of a head, in whole steps of mma; those from D on are 0 */
#define LD (HS + 8)              /* of a row in shared memory: 8 more, and eight rows lie in different banks */
#define INF __int_as_float(0x7f800000)

/* Rows first to first + 63 of a head in X, `stride` numbers apart, into shared memory; 0 from row T on. */
__device__ __forceinline__ void tile(H* to, const H* X, long long stride, int first) {
  for (int i = threadIdx.x; i < TILE * (HS / 8); i += THREADS) {
    int row = i / (HS / 8), col = i % (HS / 8) * 8;
    uint4 eight = make_uint4(0, 0, 0, 0);
    if (first + row < T && col < D) eight = *(const uint4*)(X + (first + row) * stride + col);
    *(uint4*)(to + row * LD + col) = eight;
  }
}

/* The operand A of an mma: 16 rows and 16 columns from `at` on. */
__device__ __forceinline__ void left(unsigned* a, const H* at) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; i++) a[i] = *(const unsigned*)(at + (g + i % 2 * 8) * LD + i / 2 * 8 + 2 * t);
}

/* The operand B whose transpose lies at `at`: 8 rows and 16 columns of it. */
__device__ __forceinline__ void right(unsigned* b, const H* at) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  b[0] = *(const unsigned*)(at + g * LD + 2 * t); b[1] = *(const unsigned*)(at + g * LD + 8 + 2 * t);
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
  unsigned b[2];
  #pragma unroll
  for (int j = 0; j < 2; j++) {
    c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
    #pragma unroll
    for (int k = 0; k < HS / 16; k++) { right(b, at + j * 8 * LD + k * 16); mma(c[j], a[k], b); }
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

/* Whether dropout takes the weight of a key for a query: the hash of kernels.random_bits. */
__device__ __forceinline__ bool dropped(unsigned seed, int head, int query, int key) {
  unsigned h = ((unsigned)head * T + query) * T + key + seed;
  h = (h ^ h >> 16) * 0x7FEB352Du; h = (h ^ h >> 15) * 0x846CA68Bu;
  return (h ^ h >> 16) < LIMIT;
}
"""
FORWARD = r"""
/* y = softmax(q k^T / sqrt(D)) v of 64 queries of a head, 64 keys at a time: the highest score so far (`top`, in powers
   of 2) and the sum of all weights relative to it follow along. L keeps top + log2(sum) of every query. */
extern "C" __global__ void __launch_bounds__(THREADS) NAME(H* Y, float* L, const H* X SEED) {
  __shared__ __align__(16) H K[TILE * LD], V[TILE * LD];
  int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, h = blockIdx.y, b = blockIdx.z;
  int q0 = (gridDim.x - 1 - blockIdx.x) * TILE, mine = q0 + warp * 16;  /* those with the most keys begin first */
  const H* x = X + (long long)b * T * 3 * C + h * D;
  unsigned q[HS / 16][4], a[4]; float y[HS / 8][4], s[8][4], top[2] = {-INF, -INF}, sum[2] = {0, 0};
  tile(K, x, 3 * C, q0);
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < HS / 16; k++) left(q[k], K + warp * 16 * LD + k * 16);
  #pragma unroll
  for (int n = 0; n < HS / 8; n++) y[n][0] = y[n][1] = y[n][2] = y[n][3] = 0;
  for (int k0 = 0; k0 <= q0; k0 += TILE) {
    __syncthreads();
    tile(K, x + C, 3 * C, k0); tile(V, x + 2 * C, 3 * C, k0);
    __syncthreads();
    #pragma unroll
    for (int j = 0; j < 4; j++) dot(s + 2 * j, q, K + j * 16 * LD);
    #pragma unroll
    for (int r = 0; r < 2; r++) {
      int query = mine + g + 8 * r; float high = -INF, scale;
      #pragma unroll
      for (int j = 0; j < 8; j++) for (int e = 0; e < 2; e++) {
        float* z = &s[j][2 * r + e];
        *z = k0 + j * 8 + 2 * t + e <= query ? *z * SCALE : -INF;
        high = fmaxf(high, *z);
      }
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
      high = fmaxf(top[r], high); scale = exp2f(top[r] - high); top[r] = high; sum[r] *= scale;
      #pragma unroll
      for (int n = 0; n < HS / 8; n++) { y[n][2 * r] *= scale; y[n][2 * r + 1] *= scale; }
      #pragma unroll
      for (int j = 0; j < 8; j++) for (int e = 0; e < 2; e++) {
        float* z = &s[j][2 * r + e];
        *z = exp2f(*z - high); sum[r] += *z;
        if (DROPPED(query, k0 + j * 8 + 2 * t + e)) *z = 0;
      }
    }
    #pragma unroll
    for (int j = 0; j < 4; j++) {
      float (*w)[4] = s + 2 * j;
      a[0] = pack(w[0][0], w[0][1]); a[1] = pack(w[0][2], w[0][3]);
      a[2] = pack(w[1][0], w[1][1]); a[3] = pack(w[1][2], w[1][3]);
      add(y, a, V + j * 16 * LD);
    }
  }
  #pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1); sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    if (t == 0 && mine + g + 8 * r < T) L[((long long)b * NH + h) * T + mine + g + 8 * r] = top[r] + log2f(sum[r]);
  }
  store(Y + (long long)b * T * C + h * D, C, mine, y, KEPT / sum[0], KEPT / sum[1]);
}
"""
BACKWARD_Q = r"""
/* The gradient of 64 queries: dq = ds k / sqrt(D), where ds = w (dw - delta), w the weights, dw = dy v^T their gradient
   and delta the sum of w dw over a query's keys, which is that of dy y over its channels. */
extern "C" __global__ void __launch_bounds__(THREADS)
NAME(H* G, const H* X, const H* dY, const float* L, const float* delta SEED) {
  __shared__ __align__(16) H K[TILE * LD], V[TILE * LD];
  int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, h = blockIdx.y, b = blockIdx.z;
  int q0 = (gridDim.x - 1 - blockIdx.x) * TILE, mine = q0 + warp * 16;
  const H* x = X + (long long)b * T * 3 * C + h * D;
  unsigned q[HS / 16][4], dy[HS / 16][4], a[4]; float dq[HS / 8][4], s[2][4], dw[2][4], l[2] = {0, 0}, d[2] = {0, 0};
  tile(K, x, 3 * C, q0); tile(V, dY + (long long)b * T * C + h * D, C, q0);
  __syncthreads();
  #pragma unroll
  for (int k = 0; k < HS / 16; k++) {
    left(q[k], K + warp * 16 * LD + k * 16); left(dy[k], V + warp * 16 * LD + k * 16);
  }
  #pragma unroll
  for (int n = 0; n < HS / 8; n++) dq[n][0] = dq[n][1] = dq[n][2] = dq[n][3] = 0;
  for (int r = 0; r < 2; r++) if (mine + g + 8 * r < T) {
    l[r] = L[((long long)b * NH + h) * T + mine + g + 8 * r];
    d[r] = delta[((long long)b * T + mine + g + 8 * r) * NH + h];
  }
  for (int k0 = 0; k0 <= q0; k0 += TILE) {
    __syncthreads();
    tile(K, x + C, 3 * C, k0); tile(V, x + 2 * C, 3 * C, k0);
    __syncthreads();
    for (int j = 0; j < 4; j++) {
      dot(s, q, K + j * 16 * LD); dot(dw, dy, V + j * 16 * LD);
      #pragma unroll
      for (int i = 0; i < 8; i++) {
        int r = i % 4 / 2, key = k0 + j * 16 + i / 4 * 8 + 2 * t + i % 2, query = mine + g + 8 * r;
        float w = key <= query ? exp2f(s[i / 4][i % 4] * SCALE - l[r]) : 0;
        s[i / 4][i % 4] = w * ((DROPPED(query, key) ? 0 : dw[i / 4][i % 4] * KEPT) - d[r]);
      }
      a[0] = pack(s[0][0], s[0][1]); a[1] = pack(s[0][2], s[0][3]);
      a[2] = pack(s[1][0], s[1][1]); a[3] = pack(s[1][2], s[1][3]);
      add(dq, a, K + j * 16 * LD);
    }
  }
  store(G + (long long)b * T * 3 * C + h * D, 3 * C, mine, dq, ROOT, ROOT);
}
"""
BACKWARD_KV = r"""
/* The gradients of 64 keys and values: dk = ds^T q / sqrt(D) and dv = w^T dy, with w and ds of BACKWARD_Q. Everything
   is transposed, so that the rows of a warp are its keys. Each sum is one thread's: no atomics, the same every time. */
extern "C" __global__ void __launch_bounds__(THREADS)
NAME(H* G, const H* X, const H* dY, const float* L, const float* delta SEED) {
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
        bool gone = DROPPED(query, key);
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
"""
EMBED = r"""
/* y[i] = table[idx[i]] + positions[i % T]; a token outside the table reads nothing. */
extern "C" __global__ void __launch_bounds__(THREADS)
NAME(float* Y, const float* W, const float* P, const int* idx) {
  int i = blockIdx.x, token = idx[i];
  for (int c = threadIdx.x; c < C; c += THREADS)
    Y[(long long)i * C + c] = (token >= 0 && token < V ? W[(long long)token * C + c] : 0) + P[i % T * C + c];
}
"""
EMBED_DW = r"""
/* The gradient of ROWS rows of the table: the sum of the gradients of their tokens, in the order of the text. A thread
   owns its columns, so nothing is written by two. Each warp marks which of 32 tokens are of these rows, bit by bit. */
extern "C" __global__ void __launch_bounds__(THREADS) NAME(float* G, const int* idx, const float* dY) {
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
"""
ROWS = 16  # of the table, in a block
ADAMW = r"""
/* One step of AdamW in place for four numbers a thread; after a gradient whose norm isn't finite nothing changes. */
extern "C" __global__ void __launch_bounds__(THREADS)
NAME(float* p, float* m, float* v, const float* g, const float* hyper, const float* norm) {
  float rate = hyper[0], c1 = hyper[1], c2 = hyper[2], total = norm[0], scale = fminf(CLIP / (total + 1e-6f), 1.0f);
  if (!(total < __int_as_float(0x7f800000))) return;
  for (int j = 0; j < 4; j++) {
    long long i = ((long long)blockIdx.x * 4 + j) * THREADS + threadIdx.x;
    if (i >= N) break;
    float d = g[i] * scale, a = BETA1 * m[i] + (1 - BETA1) * d, b = BETA2 * v[i] + (1 - BETA2) * d * d, w = p[i];
    m[i] = a; v[i] = b; p[i] = w - rate * (a * c1 / (sqrtf(b * c2) + EPS) + DECAY * w);
  }
}
"""


def fast(*tensors: Tensor) -> bool:
    """Whether these tensors can go through the kernels: of known shape, on a GPU where they work."""
    return all(
        isinstance(t.device, str)
        and t.device.split(":")[0] in ("CUDA", "NULL")
        and all(isinstance(n, int) and n > 0 for n in t.shape)
        and usable(t.device, str(Device[t.device].renderer.target))
        for t in tensors
    )


@functools.cache
def usable(device: str, target: str) -> bool:
    """Whether the kernels work on a device, with this compiler and architecture. Looked at once: small ones are
    compiled, run and compared with NumPy."""
    reason = ""
    if os.environ.get("KERNELS", "1") == "0":
        reason = "KERNELS=0 is set"
    elif version("tinygrad") != TESTED:
        reason = f"they are tested with tinygrad {TESTED}, this is {version('tinygrad')}"
    elif not isinstance(Device[device].renderer, CUDARenderer) or backend.compute_capability(device) < 80:
        reason = f"{device} compiles no CUDA for sm_80 or later"
    elif not device.startswith("NULL"):  # which runs nothing
        try:
            with Context(CAPTURING=0):  # the question may come up while a step is being captured
                reason = _compare(device)
        except Exception as error:  # whatever the compiler or the driver has against them, the twins still work
            reason = str(error).split("\n")[0]
    if reason and DEBUG >= 1:
        print(f"plain tensors instead of kernels_cuda.py: {reason}")
    return not reason


def _compare(device: str) -> str:
    """What is wrong with the kernels' results for a head of 70 tokens and for a table of 40; nothing if they are right.

    The gradient of softmax(s) v, s = q k^T / sqrt(D), for dy is dv = w^T dy and ds = w (dw - sum(w dw)), dw = dy v^T.
    """
    rng, T, D = np.random.default_rng(0), 70, 16
    qkv, dy = (rng.standard_normal(s).astype(np.float16) for s in ((T, 3 * D), (T, D)))
    x = Tensor(qkv[None], device=device).realize()
    y = attention(x, 1, 0.0, None)
    dx = y.gradient(x, gradient=Tensor(dy[None], device=device).realize())[0]
    q, k, v = np.split(qkv.astype(np.float64), 3, axis=1)
    w = np.tri(T) * np.exp(q @ k.T / math.sqrt(D))
    w /= w.sum(1, keepdims=True)
    dw = dy @ v.T
    ds = w * (dw - (w * dw).sum(1, keepdims=True)) / math.sqrt(D)
    wanted = [w @ v, np.concatenate([ds @ k, ds.T @ q, w.T @ dy], axis=1)]
    for got, right in zip((y.realize().numpy()[0], dx.realize().numpy()[0]), wanted):
        if not np.abs(got - right).max() < 0.02 * np.abs(right).max():
            return "attention came out wrong"
    table, idx, ones = np.eye(40, 5, dtype=np.float32), rng.integers(0, 40, (2, T)).astype(np.int32), np.ones((2, T, 5))
    weights, zeros = (Tensor(a, device=device).realize() for a in (table, np.zeros((T, 5), np.float32)))
    y = embed(weights, Tensor(idx, device=device).realize(), zeros)
    dx = y.gradient(weights, gradient=Tensor(ones.astype(np.float32), device=device).realize())[0]
    right = np.repeat(np.bincount(idx.ravel(), minlength=40)[:, None], 5, axis=1)
    if not ((y.realize().numpy() == table[idx]).all() and (dx.realize().numpy() == right).all()):
        return "an embedding came out wrong"
    weight, mean, square, half = ({"": Tensor([x] * 5, device=device).realize()} for x in (1.0, 0.0, 0.0, 0.5))
    hyper = Tensor([0.1, 10.0, 20.0], device=device).realize()
    # A step of 1 and a decay of 0.5, each times 0.1.
    adamw(weight, half, mean, square, hyper, {"": 0.5}, (0.9, 0.95), 1e-8, math.inf)
    if not np.abs(weight[""].numpy() - 0.85).max() < 1e-5:
        return "AdamW came out wrong"
    return ""


def _kernel(
    name: str,
    source: str,
    grid: tuple[int, int, int],
    outs: Sequence[Tensor],
    ins: Sequence[Tensor],
    ops: int,
    tensor_ops: int = 0,
    backward: Callable[[Tensor], Sequence[Tensor | None]] | None = None,
) -> list[Tensor]:
    """Outputs of a kernel of THREADS threads. `backward(g)`: the gradient of each of `ins` for g, the first output's.

    Of its `ops` FLOPs, `tensor_ops` are in the tensor cores.
    """
    device = outs[0].device
    code = f"// {tensor_ops} FLOPs in mma.sync\n#define NAME {name}\n#define THREADS {THREADS}\n{source}"

    def make(*buffers: UOp) -> UOp:
        traffic = sum(b.dtype.itemsize * math.prod(int(n) for n in b.shape) for b in buffers)
        sink = UOp.sink(*[b.base for b in buffers], arg=KernelInfo(name, estimates=Estimates(ops, traffic, traffic)))
        every = tuple(range(len(buffers)))
        about = ProgramInfo(name, grid, (THREADS, 1, 1), (), every, every[: len(outs)], every[len(outs) :])
        order, text = UOp(Ops.LINEAR, src=(*sink.src, sink)), UOp(Ops.SOURCE, arg=code)
        return UOp(Ops.PROGRAM, src=(sink, UOp(Ops.DEVICE, arg=device), order, text), arg=about)

    def gradients(g: UOp, call: UOp) -> tuple[UOp | None, ...]:
        assert backward
        return (None,) * len(outs) + tuple(None if d is None else d.uop for d in backward(Tensor(g)))

    return Tensor.custom_kernel(*outs, *ins, fxn=make, grad_fxn=gradients if backward else None)[: len(outs)]


def _lying(x: Tensor, dtype: Any = None) -> Tensor:
    """x as it has to lie in memory for a kernel. What a kernel made lies so already: tinygrad would copy it."""
    x = x if dtype is None or x.dtype == dtype else x.cast(dtype)
    return x if x.uop.op is Ops.AFTER else x.contiguous()


def can_attend(qkv: Tensor, n_head: int) -> bool:
    """Whether `attention` takes these: 16-bit numbers, and heads of 8, 16, ... or 128 channels."""
    head = int(qkv.shape[2]) // 3 // n_head
    return qkv.dtype in (dtypes.half, dtypes.bfloat16) and head % 8 == 0 and head <= 128 and fast(qkv)


def attention(qkv: Tensor, n_head: int, p: float, seed: Tensor | None) -> Tensor:
    """Causal self-attention, as kernels.attention: `(B, T, 3 C)` of 16-bit numbers -> `(B, T, C)` of the same."""
    B, T, C = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // 3
    D, kind = C // n_head, qkv.dtype
    new = lambda *shape, dtype=kind: Tensor.empty(*shape, device=qkv.device, dtype=dtype)
    x, seeds = _lying(qkv), [] if seed is None else [_lying(seed)]
    numbers = {
        "KIND": '"f16"' if kind == dtypes.half else '"bf16"', "H": "unsigned short", "TILE": TILE, "T": T, "C": C,
        "D": D, "NH": n_head, "SCALE": f"{math.log2(math.e) * D**-0.5!r}f", "ROOT": f"{D**-0.5!r}f",
        "KEPT": f"{1 / (1 - p) if seeds else 1.0!r}f", "LIMIT": f"{int(p * 2**32)}u",
        "SEED": ", const unsigned* seed" if seeds else "",
        "DROPPED(query, key)": "dropped(seed[0], b * NH + h, query, key)" if seeds else "false",
    }  # fmt: skip
    head = "".join(f"#define {name} {value}\n" for name, value in numbers.items()) + PTX + FLASH
    tiles, name = -(-T // TILE), f"{'' if kind == dtypes.half else 'b'}{B}x{T}x{C}_{n_head}{'_drop' * len(seeds)}"
    grid, scores = (tiles, n_head, B), B * n_head * tiles * (tiles + 1) // 2 * TILE * TILE
    one = 2 * scores * (-(-D // 16) * 16)  # a product of all these scores with a head's channels

    def backward(g: Tensor) -> list[Tensor | None]:
        dy = _lying(g, kind)
        delta = (dy.float() * y.float()).reshape(B, T, n_head, D).sum(-1).contiguous()  # (B, T, nh)
        ins = [x, dy, lse, delta, *seeds]
        outs = [new(B, T, 3 * C)]
        dq = _kernel(f"attention_dq_{name}", head + BACKWARD_Q, grid, outs, ins, 3 * one + 9 * scores, 3 * one)[0]
        # The second kernel writes the other two thirds of what the first one made.
        done = _kernel(f"attention_dkv_{name}", head + BACKWARD_KV, grid, [dq], ins, 4 * one + 10 * scores, 4 * one)
        return [done[0], *[None for _ in seeds]]

    outs = [new(B, T, C), new(B, n_head, T, dtype=dtypes.float32)]
    ops, ins = 2 * one + 7 * scores, [x, *seeds]
    y, lse = _kernel(f"attention_{name}", head + FORWARD, grid, outs, ins, ops, 2 * one, backward)
    return y


def can_embed(table: Tensor, idx: Tensor, positions: Tensor) -> bool:
    """Whether `embed` takes these, and is worth it: for few tokens a matrix of zeros and ones is small."""
    kinds = [table.dtype, positions.dtype, idx.dtype] == [dtypes.float32, dtypes.float32, dtypes.int32]
    return kinds and int(table.shape[0]) >= 1024 and fast(table, idx, positions)


def embed(table: Tensor, idx: Tensor, positions: Tensor) -> Tensor:
    """Rows `(B, T, C)` of a table `(V, C)` for tokens `(B, T)`, plus those of `positions` `(block, C)`."""
    (V, C), (B, T) = (int(n) for n in table.shape), (int(n) for n in idx.shape)
    head = "".join(f"#define {k} {v}\n" for k, v in {"V": V, "C": C, "N": B * T, "T": T, "ROWS": ROWS}.items())
    idx, name = _lying(idx), f"{B * T}x{C}x{V}"

    def backward(g: Tensor) -> list[Tensor | None]:
        g = _lying(g, dtypes.float32)
        out, grid = Tensor.empty(V, C, device=g.device), (-(-V // ROWS), 1, 1)
        dw = _kernel(f"embed_dw_{name}", head + EMBED_DW, grid, [out], [idx, g], B * T * C)[0]
        dp = g.sum(0).pad(((0, int(positions.shape[0]) - T), (0, 0)))
        return [dw, dp, None]

    ins = [_lying(table), _lying(positions), idx]
    outs = [Tensor.empty(B, T, C, device=table.device)]
    return _kernel(f"embed_{name}", head + EMBED, (B * T, 1, 1), outs, ins, B * T * C, 0, backward)[0]


def can_update(*tensors: Tensor) -> bool:
    """Whether `adamw` takes these."""
    return all(t.dtype == dtypes.float32 for t in tensors) and fast(*tensors)


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
    """One step of AdamW in place, as kernels.adamw; one kernel for each parameter, and the norm of the gradient."""
    norm = Tensor.stack(*[g.square().sum() for g in grads.values()]).sum().sqrt().reshape(1).contiguous()
    done: list[Tensor] = []
    for name, p in params.items():
        n = int(p.numel())
        limit = "__int_as_float(0x7f800000)" if clip == math.inf else f"{float(clip)!r}f"
        numbers = {"BETA1": betas[0], "BETA2": betas[1], "EPS": eps, "DECAY": decay[name]}
        head = f"#define N {n}\n#define CLIP {limit}\n"
        head += "".join(f"#define {key} {float(value)!r}f\n" for key, value in numbers.items())
        ins, grid = [_lying(grads[name]), hyper, norm], (-(-n // (4 * THREADS)), 1, 1)
        done += _kernel(f"adamw_{n}", head + ADAMW, grid, [p, m[name], v[name]], ins, 15 * n)
    Tensor.realize(norm, *done)
    return norm.reshape(())
