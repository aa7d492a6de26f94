/* CUDA C for the CPU, as far as kernels/cuda.py needs it: each thread of a block is a fiber, one after the other until
   it waits for the others, and what a warp does together goes through a table of its 32 threads. This stands in for the
   instructions of mma.cuh; the kernels themselves are compiled as they are. For tests: it is right, not fast. */

#include <math.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(n)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static /* one block runs at a time */
#define __int_as_float(bits) INFINITY

struct dim3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static const int STACK = 1 << 17;
static ucontext_t scheduler, fiber[THREADS];
static char stacks[THREADS][STACK] __attribute__((aligned(64)));
static bool finished[THREADS];
static int now;
static dim3 blockIdx, gridDim;
static struct { operator dim3() const { return {(unsigned)now, 0, 0}; } } thread_;
#define threadIdx ((dim3)thread_)

struct Barrier { int waiting, round; };
static Barrier all, warps[THREADS / 32];
static void wait(Barrier& b, int threads) {
  int round = b.round;
  if (++b.waiting == threads) { b.waiting = 0; b.round++; }
  else while (b.round == round) swapcontext(&fiber[now], &scheduler);
}
static void __syncthreads() { wait(all, THREADS); }

/* What the threads of a warp show each other. */
static unsigned shown[THREADS][6];
static unsigned (*meet(const unsigned* mine, int n))[6] {
  memcpy(shown[now], mine, 4 * n);
  wait(warps[now / 32], 32);
  return shown + now / 32 * 32;
}
static void part() { wait(warps[now / 32], 32); }

static float __shfl_xor_sync(unsigned, float x, int other) {
  unsigned bits; memcpy(&bits, &x, 4);
  bits = meet(&bits, 1)[now % 32 ^ other][0];
  part();
  memcpy(&x, &bits, 4);
  return x;
}
static unsigned __ballot_sync(unsigned, bool yes) {
  unsigned bits = yes, result = 0; auto warp = meet(&bits, 1);
  for (int i = 0; i < 32; i++) result |= warp[i][0] << i;
  part();
  return result;
}
static int __ffs(unsigned bits) { return __builtin_ffs(bits); }
static int min(int a, int b) { return a < b ? a : b; }

static float number(unsigned short bits) {
  if (KIND[0] == 'b') { unsigned wide = (unsigned)bits << 16; float x; memcpy(&x, &wide, 4); return x; }
  _Float16 x; memcpy(&x, &bits, 2);
  return x;
}
static unsigned short bits_of(float x) {
  unsigned short bits;
  if (KIND[0] == 'b') {
    unsigned wide; memcpy(&wide, &x, 4);
    return (wide + 0x7fff + (wide >> 16 & 1)) >> 16; /* to the nearest, ties to even */
  }
  _Float16 h = x; memcpy(&bits, &h, 2);
  return bits;
}
static unsigned pack(float x, float y) { return bits_of(x) | (unsigned)bits_of(y) << 16; }

extern "C" { long long products; } /* how many mma a launch has done */

/* The tables of the PTX ISA, "Matrix fragments for mma.m16n8k16", from an element to its thread and register. */
static float element(unsigned (*warp)[6], int thread, int reg, int half) {
  return number(warp[thread][reg] >> 16 * half);
}
static void mma(float* c, const unsigned* a, const unsigned* b) {
  unsigned both[6]; memcpy(both, a, 16); memcpy(both + 4, b, 8);
  auto warp = meet(both, 6);
  for (int i = 0; i < 4; i++) {
    int row = now % 32 / 4 + (i >= 2 ? 8 : 0), column = now % 4 * 2 + (i & 1);
    double sum = c[i];
    for (int k = 0; k < 16; k++) {
      float left = element(warp, row % 8 * 4 + k % 8 / 2, (k >= 8 ? 2 : 0) + (row >= 8), k & 1);
      float right = element(warp, column * 4 + k % 8 / 2, 4 + (k >= 8), k & 1);
      sum += (double)left * right;
    }
    c[i] = sum;
  }
  products += now % 32 == 0;
  part();
}
static void turned(unsigned* r, const unsigned short* row) {
  if ((unsigned long)row % 16) __builtin_trap(); /* as ldmatrix would */
  unsigned address[2]; memcpy(address, &row, 8);
  auto warp = meet(address, 2);
  for (int i = 0; i < 4; i++) {
    const unsigned short* rows[2];
    for (int k = 0; k < 2; k++) memcpy(&rows[k], warp[i * 8 + now % 4 * 2 + k], 8);
    r[i] = rows[0][now % 32 / 4] | (unsigned)rows[1][now % 32 / 4] << 16;
  }
  part();
}

/* Runs every block of a grid. The kernel's arguments are all pointers. */
template <class P, class Q, class R> void apply(void (*f)(P, Q, R), void** a) { f((P)a[0], (Q)a[1], (R)a[2]); }
template <class P, class Q, class R, class S> void apply(void (*f)(P, Q, R, S), void** a) {
  f((P)a[0], (Q)a[1], (R)a[2], (S)a[3]);
}
template <class P, class Q, class R, class S, class U> void apply(void (*f)(P, Q, R, S, U), void** a) {
  f((P)a[0], (Q)a[1], (R)a[2], (S)a[3], (U)a[4]);
}
template <class P, class Q, class R, class S, class U, class W> void apply(void (*f)(P, Q, R, S, U, W), void** a) {
  f((P)a[0], (Q)a[1], (R)a[2], (S)a[3], (U)a[4], (W)a[5]);
}
static void block();
static void enter() {
  block();
  finished[now] = true;
  swapcontext(&fiber[now], &scheduler);
}
static void run_blocks(unsigned x, unsigned y, unsigned z) {
  gridDim = {x, y, z};
  for (unsigned i = 0; i < x * y * z; i++) {
    blockIdx = {i % x, i / x % y, i / x / y};
    for (int t = 0; t < THREADS; t++) {
      getcontext(&fiber[t]);
      fiber[t].uc_stack.ss_sp = stacks[t]; fiber[t].uc_stack.ss_size = STACK; fiber[t].uc_link = 0;
      makecontext(&fiber[t], enter, 0);
      finished[t] = false;
    }
    for (int left = THREADS; left;) {
      left = 0;
      for (now = 0; now < THREADS; now++) if (!finished[now]) { left++; swapcontext(&scheduler, &fiber[now]); }
    }
  }
}
