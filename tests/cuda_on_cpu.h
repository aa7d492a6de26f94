/* CUDA C for the CPU, for cuda_driver.c: what tinygrad's CUDARenderer and the files of kernels/ write. Each thread of
   a block is a fiber where threads wait for each other, and a turn of a loop where they don't. A warp goes on as far as
   it can before the next one has a turn, so that races between warps show; with a seed blocks and warps come in any
   order. cuda_on_cpu.py puts the kernel behind this text, with asm("PTX" : outputs : inputs) as ptx("PTX", ...). */

#include <stddef.h>
#include <stdint.h>

extern "C" { /* of the C library, whose headers need not be here */
void *memcpy(void*, const void*, size_t), *memset(void*, int, size_t);
int strncmp(const char*, const char*, size_t), snprintf(char*, size_t, const char*, ...);
char* strstr(const char*, const char*);
size_t strlen(const char*), strspn(const char*, const char*), strcspn(const char*, const char*);
long strtol(const char*, char**, int);
float expf(float), exp2f(float), logf(float), log2f(float), sqrtf(float), sinf(float), cosf(float), tanhf(float);
float truncf(float), floorf(float), fabsf(float), fmaxf(float, float), fminf(float, float), fmaf(float, float, float);
double exp2(double), log2(double), sqrt(double), sin(double), trunc(double);
}

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("cuda_shared")))
extern "C" char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
#define SHARED ((size_t)(__stop_cuda_shared - __start_cuda_shared))

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

/* ---- fibers ---- */
struct Barrier { int waiting, round; };
static struct Fiber { void* stack; bool done; int block_at, warp_at; dim3 index; } fibers[1024];
static int now, threads, alive, alive_in[32];
static Barrier all, warps[32];
static void* scheduler;
static bool progress;
static char failure[300];
static const size_t STACK = 1 << 18; /* of a thread; cuda_driver.c has 1,024 of them */

#if defined(__x86_64__)
__attribute__((naked, noinline)) static void change(void** save, void* load) {
  asm volatile("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
               "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
               "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n retq");
}
static void* begin_at(char* top, void (*function)()) {
  void** sp = (void**)(top - 64);
  *--sp = 0;
  *--sp = (void*)function;
  return memset(sp - 6, 0, 48);
}
#elif defined(__aarch64__)
__attribute__((naked, noinline)) static void change(void** save, void* load) {
  asm volatile("sub sp, sp, #160\n stp x19, x20, [sp]\n stp x21, x22, [sp, #16]\n stp x23, x24, [sp, #32]\n"
               "stp x25, x26, [sp, #48]\n stp x27, x28, [sp, #64]\n stp x29, x30, [sp, #80]\n stp d8, d9, [sp, #96]\n"
               "stp d10, d11, [sp, #112]\n stp d12, d13, [sp, #128]\n stp d14, d15, [sp, #144]\n"
               "mov x9, sp\n str x9, [x0]\n mov sp, x1\n"
               "ldp x19, x20, [sp]\n ldp x21, x22, [sp, #16]\n ldp x23, x24, [sp, #32]\n ldp x25, x26, [sp, #48]\n"
               "ldp x27, x28, [sp, #64]\n ldp x29, x30, [sp, #80]\n ldp d8, d9, [sp, #96]\n ldp d10, d11, [sp, #112]\n"
               "ldp d12, d13, [sp, #128]\n ldp d14, d15, [sp, #144]\n add sp, sp, #160\n ret");
}
static void* begin_at(char* top, void (*function)()) {
  void** sp = (void**)top - 20;
  memset(sp, 0, 160);
  sp[11] = (void*)function;
  return sp;
}
#endif
static void (*volatile to)(void**, void*) = change; /* the optimizer knows nothing about it */
static void leave() { to(&fibers[now].stack, scheduler); }

/* ---- what threads do together ---- */
static void fail(const char* why) { /* never comes back: the launch ends */
  if (!*failure)
    snprintf(failure, sizeof failure, "%s, thread %d of block %u %u %u", why, now, blockIdx.x, blockIdx.y, blockIdx.z);
  for (;;) leave();
}
__attribute__((noinline)) static void wait(Barrier& b, int& members) {
  int round = b.round;
  progress = true;
  if (++b.waiting == members) { b.waiting = 0; b.round++; return; }
  while (b.round == round) leave();
  progress = true;
}
#define HERE (__COUNTER__ + 1) /* threads that wait together must do so at one place of the source */
#define __syncthreads() wait_at(HERE)
__attribute__((noinline)) static void wait_at(int here) {
  for (int i = 0; i < threads && !all.waiting; i++) fibers[i].block_at = 0;
  fibers[now].block_at = here;
  for (int i = 0; i < threads; i++) if (!fibers[i].done && fibers[i].block_at && fibers[i].block_at != here)
    fail("threads wait at different barriers");
  wait(all, alive);
}

/* Threads of a warp show each other up to 48 bytes. Two tables in turn: nobody overwrites what a slower one reads. */
static struct Shown { unsigned w[32][12]; } shown[32][2];
static int turns[1024];
__attribute__((noinline)) static unsigned (*meet(const void* mine, int size, int here))[12] {
  int w = now / 32, first = w * 32;
  if (alive_in[w] != 32) fail("a warp of fewer than 32 threads works together");
  Shown& s = shown[w][turns[now]++ & 1];
  for (int i = first; i < first + 32 && !warps[w].waiting; i++) fibers[i].warp_at = 0;
  fibers[now].warp_at = here;
  for (int i = first; i < first + 32; i++) if (fibers[i].warp_at && fibers[i].warp_at != here)
    fail("threads of a warp work together at different places");
  memcpy(s.w[now % 32], mine, size);
  wait(warps[w], alive_in[w]);
  return s.w;
}
#define __shfl_xor_sync(mask, x, other) shuffle(HERE, mask, x, now % 32 ^ (other))
#define __shfl_down_sync(mask, x, by) shuffle(HERE, mask, x, now % 32 + (by) < 32 ? now % 32 + (by) : now % 32)
#define __shfl_sync(mask, x, from) shuffle(HERE, mask, x, (from) % 32)
template <class T> static T shuffle(int here, unsigned mask, T x, int from) {
  if (mask != 0xffffffffu) fail("a mask that isn't the whole warp");
  memcpy(&x, meet(&x, sizeof x, here)[from], sizeof x);
  return x;
}
#define __ballot_sync(mask, yes) ballot(HERE, mask, yes)
static unsigned ballot(int here, unsigned mask, unsigned yes) {
  if (mask != 0xffffffffu) fail("a mask that isn't the whole warp");
  unsigned result = 0, (*warp)[12] = meet(&yes, 4, here);
  for (int i = 0; i < 32; i++) result |= (unsigned)(warp[i][0] != 0) << i;
  return result;
}
#define __syncwarp(...) ballot(HERE, 0xffffffffu, 0)

/* ---- numbers ---- */
static inline int __ffs(unsigned bits) { return __builtin_ffs(bits); }
static inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline float __int_as_float(int bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
#define __expf expf
static inline float exp2(float x) { return exp2f(x); }
static inline float log2(float x) { return log2f(x); }
static inline float sqrt(float x) { return sqrtf(x); }
static inline float sin(float x) { return sinf(x); }
static inline float trunc(float x) { return truncf(x); }

static inline float from_half(uint16_t b) { _Float16 h; memcpy(&h, &b, 2); return (float)h; }
static inline uint16_t to_half(float x) { _Float16 h = (_Float16)x; uint16_t b; memcpy(&b, &h, 2); return b; }
static inline float from_bf16(uint16_t b) { uint32_t w = (uint32_t)b << 16; float x; memcpy(&x, &w, 4); return x; }
static inline uint16_t to_bf16(float x) { /* to the nearest, a tie to even */
  uint32_t w; memcpy(&w, &x, 4);
  return x != x ? 0x7fff : (w + 0x7fff + (w >> 16 & 1)) >> 16;
}
#define OPERATOR(name, result, op) \
static inline result operator op(name x, name y) { return result((float)x op (float)y); }
#define FUNCTION(name, h, f) static inline name h(name x) { return name(f((float)x)); }
#define SIXTEEN(name, to, from) \
struct name { \
  uint16_t b; name() = default; \
  name(float x) : b(to(x)) {} name(double x) : b(to(x)) {} name(int x) : b(to(x)) {} name(unsigned x) : b(to(x)) {} \
  name(long x) : b(to(x)) {} name(unsigned long x) : b(to(x)) {} name(bool x) : b(to(x)) {} \
  operator float() const { return from(b); } \
}; \
OPERATOR(name, name, +) OPERATOR(name, name, -) OPERATOR(name, name, *) OPERATOR(name, name, /) \
OPERATOR(name, bool, <) OPERATOR(name, bool, >) OPERATOR(name, bool, !=) OPERATOR(name, bool, ==) \
static inline name operator-(name x) { x.b ^= 0x8000; return x; } \
FUNCTION(name, hexp2, exp2f) FUNCTION(name, hlog2, log2f) FUNCTION(name, hsqrt, sqrtf) FUNCTION(name, hrcp, 1 /) \
FUNCTION(name, hsin, sinf) FUNCTION(name, htrunc, truncf)
SIXTEEN(half, to_half, from_half)
SIXTEEN(nv_bfloat16, to_bf16, from_bf16)

#define VECTORS(T, name) \
struct alignas(2 * sizeof(T)) name##2 { T x, y; }; static inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
struct name##3 { T x, y, z; }; static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; }; \
static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float) VECTORS(double, double) VECTORS(int, int) VECTORS(unsigned, uint) VECTORS(long, long)
VECTORS(unsigned long, ulong) VECTORS(short, short) VECTORS(unsigned short, ushort) VECTORS(signed char, char)
VECTORS(unsigned char, uchar)
struct alignas(4) half2 { half x, y; };
struct alignas(4) nv_bfloat162 { nv_bfloat16 x, y; };
static inline half2 make_half2(half x, half y) { return {x, y}; }
static inline nv_bfloat162 make_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }

/* ---- PTX ---- */
struct Operand { char bytes[8]; void* out; };
template <class T> static Operand output(T& x) { Operand o{}; memcpy(o.bytes, &x, sizeof x); o.out = &x; return o; }
template <class T> static Operand input(T x) { Operand o{}; memcpy(o.bytes, &x, sizeof x); return o; }
static size_t __cvta_generic_to_shared(const void* p) { return (const char*)p - __start_cuda_shared; }
#define API extern "C" __attribute__((visibility("default")))
API long long kernel_products = 0; /* FLOPs in mma.sync of a launch */

/* An instruction as it is written: its name, and its operands in order, the n-th of asm() or a number. */
struct Instruction { char name[100]; int count; struct { bool number; int value; } operand[24]; };
struct Instructions {
  Instruction list[4]; int count = 0;
  Instructions(const char* s) {
    for (; *(s += strspn(s, " \n\t;")); count++) {
      Instruction& i = list[count] = {};
      size_t length = strcspn(s, " {;");
      memcpy(i.name, s, length);
      for (s += length; *s && *s != ';';) {
        if (*s != '%' && (*s < '0' || *s > '9')) { s++; continue; }
        i.operand[i.count].number = *s != '%';
        i.operand[i.count++].value = strtol(s + (*s == '%'), (char**)&s, 0);
      }
    }
  }
};
static bool starts(const char* text, const char* with) { return !strncmp(text, with, strlen(with)); }
static void give(Operand& o, unsigned bits) { memcpy(o.bytes, &bits, 4); memcpy(o.out, &bits, 4); }

/* Fragments as in the PTX ISA's tables for mma.m16n8k8 and m16n8k16; `warp` holds a, b and c of its threads. */
static float element(unsigned (*warp)[12], const char* kind, int row, int k, int reg) {
  float x;
  if (kind[0] == 't') { /* tf32, of 4 bytes, which the tensor cores cut to 19 bits */
    unsigned bits = warp[row % 8 * 4 + k % 4][reg + k / 4] & 0xffffe000u;
    memcpy(&x, &bits, 4);
    return x;
  }
  uint16_t bits = warp[row % 8 * 4 + k % 8 / 2][reg + k / 8] >> 16 * (k & 1);
  return kind[0] == 'b' ? from_bf16(bits) : from_half(bits);
}
static void mma(const char* name, int here, Operand** o) {
  int k = starts(name, "mma.sync.aligned.m16n8k16.") ? 16 : 8, outs = strstr(name, "col.f16.f16.f16.f16") ? 2 : 4;
  const char* kind = strstr(name, ".tf32.") ? "tf32" : strstr(name, ".bf16.") ? "bf16" : "f16";
  int a = k * (kind[0] == 't' ? 4 : 2) / 8, b = a / 2; /* registers of 32 bits */
  unsigned mine[12];
  for (int i = 0; i < a + b + outs; i++) memcpy(&mine[i], o[outs + i]->bytes, 4);
  unsigned (*warp)[12] = meet(mine, sizeof mine, here);
  float sums[4];
  for (int i = 0; i < 4; i++) {
    int row = now % 32 / 4 + i / 2 * 8, column = now % 4 * 2 + i % 2;
    double sum;
    if (outs == 2) sum = from_half(mine[a + b + i / 2] >> 16 * (i & 1));
    else { float c; memcpy(&c, &mine[a + b + i], 4); sum = c; }
    for (int j = 0; j < k; j++) {
      /* a's registers: the rows from 8 on in every other one, and then the later columns; b's: by column alone */
      int half = kind[0] == 't' ? j / 4 : j / 8, at = kind[0] == 't' ? j % 4 : j % 8;
      sum += (double)element(warp, kind, row, at, half * 2 + row / 8) * element(warp, kind, column, at, a + half);
    }
    sums[i] = sum;
  }
  for (int i = 0; i < outs; i++) {
    unsigned bits = outs == 2 ? to_half(sums[2 * i]) | (unsigned)to_half(sums[2 * i + 1]) << 16 : 0;
    if (outs == 4) memcpy(&bits, &sums[i], 4);
    give(*o[i], bits);
  }
  if (now % 32 == 0) kernel_products += 2 * 16 * 8 * k;
}
static void ldmatrix(const char* name, int here, Operand** o) {
  int count = strstr(name, ".x4") ? 4 : strstr(name, ".x2") ? 2 : 1;
  unsigned from;
  memcpy(&from, o[count]->bytes, 4);
  if (now % 32 < 8 * count && (from % 16 || from + 16 > SHARED)) fail("ldmatrix from what isn't shared or aligned");
  unsigned (*warp)[12] = meet(&from, 4, here);
  for (int i = 0; i < count; i++) {
    unsigned bits = 0, banks = 0; /* the eight rows of a matrix are read at once where they lie in different banks */
    for (int row = 0; row < 8; row++) banks |= 1u << warp[i * 8 + row][0] / 16 % 8;
    if (banks != 0xff) fail("rows of ldmatrix in the same banks, which takes a GPU longer");
    for (int j = 0; j < 2; j++) {
      int row = now % 32 / 4, column = now % 4 * 2 + j, turned = strstr(name, ".trans") != 0;
      uint16_t x;
      memcpy(&x, __start_cuda_shared + warp[i * 8 + (turned ? column : row)][0] + 2 * (turned ? row : column), 2);
      bits |= (unsigned)x << 16 * j;
    }
    give(*o[i], bits);
  }
  ballot(here, 0xffffffffu, 0); /* nobody overwrites the rows meanwhile */
}

/* cp.async happens as late as it may: when its thread waits for it, with what is in memory then. */
struct Pending { unsigned to; const char* from; int size, read, group; };
static struct { Pending list[128]; int count, group; } pending[1024];
static void cp_async(const char* name, Operand** o, int count, const int* numbers) {
  auto& p = pending[now];
  if (starts(name, "cp.async.commit_group")) { p.group++; return; }
  if (starts(name, "cp.async.wait_")) {
    int last = starts(name, "cp.async.wait_all") ? p.group : p.group - 1 - numbers[0], left = 0;
    for (int i = 0; i < p.count; i++) {
      Pending& c = p.list[i];
      if (c.group > last) { p.list[left++] = c; continue; }
      memset(__start_cuda_shared + c.to, 0, c.size);
      memcpy(__start_cuda_shared + c.to, c.from, c.read);
    }
    p.count = left;
    return;
  }
  Pending c = {0, 0, numbers[2], numbers[2], p.group};
  memcpy(&c.to, o[0]->bytes, 4);
  memcpy(&c.from, o[1]->bytes, 8);
  if (count > 3) { if (o[3]) memcpy(&c.read, o[3]->bytes, 4); else c.read = numbers[3]; }
  if (c.to % c.size || (size_t)c.from % c.size || c.to + c.size > SHARED || c.read > c.size)
    fail("cp.async to what isn't shared or aligned");
  if (p.count == 128) fail("more than 128 cp.async that nobody waits for");
  p.list[p.count++] = c;
}
static void execute(const Instruction& i, int here, Operand* all) {
  Operand* o[24]; int numbers[24];
  for (int k = 0; k < i.count; k++) {
    o[k] = i.operand[k].number ? 0 : &all[i.operand[k].value];
    numbers[k] = i.operand[k].value;
  }
  if (starts(i.name, "mma.sync.aligned.m16n8k")) mma(i.name, here, o);
  else if (starts(i.name, "ldmatrix.sync.aligned.m8n8.")) ldmatrix(i.name, here, o);
  else if (starts(i.name, "cp.async.")) cp_async(i.name, o, i.count, numbers);
  else if (starts(i.name, "cvt.rn.bf16x2.f32") || starts(i.name, "cvt.rn.f16x2.f32")) {
    float upper, lower;
    memcpy(&upper, o[1]->bytes, 4);
    memcpy(&lower, o[2]->bytes, 4);
    uint16_t (*narrow)(float) = i.name[7] == 'b' ? to_bf16 : to_half;
    give(*o[0], narrow(lower) | (unsigned)narrow(upper) << 16);
  } else if (starts(i.name, "ex2.approx.ftz.f32")) {
    float x;
    memcpy(&x, o[1]->bytes, 4);
    x = exp2f(x);
    if (x < 1.17549435e-38f) x = 0;
    unsigned bits;
    memcpy(&bits, &x, 4);
    give(*o[0], bits);
  } else if (starts(i.name, "cvt.f32.f16")) {
    uint16_t narrow;
    memcpy(&narrow, o[1]->bytes, 2);
    float x = from_half(narrow);
    unsigned bits;
    memcpy(&bits, &x, 4);
    give(*o[0], bits);
  } else fail(i.name);
}
#define ptx(text, ...) do { \
  static const Instructions parsed(text); Operand operands[] = {__VA_ARGS__ input(0)}; \
  for (int i_ = 0; i_ < parsed.count; i_++) execute(parsed.list[i_], HERE, operands); } while (0)

/* ---- a launch ---- */
template <int... I> struct List {};
template <int N, int... I> struct Count : Count<N - 1, N - 1, I...> {};
template <int... I> struct Count<0, I...> { typedef List<I...> type; };
template <class A> static A argument(const char* p, size_t at) { A a; memcpy(&a, p + at, sizeof a); return a; }
static size_t offsets[1024];
template <class... A, int... I> static void call(void (*f)(A...), const char* p, List<I...>) {
  f(argument<A>(p, offsets[I])...);
}

static const char* given;
static void (*once)();
static void enter() {
  once();
  fibers[now].done = progress = true;
  alive--; alive_in[now / 32]--;
  if (alive && all.waiting == alive) { all.waiting = 0; all.round++; } /* those that have ended don't wait */
  for (;;) leave();
}
static unsigned long long random_state;
static unsigned any(unsigned n) {
  random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
  return (random_state >> 33) % n;
}
/* Runs the threads of a block as fibers, until all have ended or one fails. */
static void run_together(char* stacks, bool shuffled) {
  int count = (threads + 31) / 32, order[32];
  all = {0, 0}; alive = threads;
  memset(alive_in, 0, sizeof alive_in); memset(warps, 0, sizeof warps); memset(turns, 0, sizeof turns);
  for (now = 0; now < threads; now++) {
    dim3 index = {now % blockDim.x, now / blockDim.x % blockDim.y, now / blockDim.x / blockDim.y};
    pending[now].count = pending[now].group = 0;
    fibers[now] = {begin_at(stacks + STACK * (now + 1), enter), false, 0, 0, index};
    alive_in[now / 32]++;
  }
  for (int w = 0; w < count; w++) order[w] = w;
  while (alive) {
    bool moved = false;
    for (int w = count - 1; w > 0 && shuffled; w--) {
      int o = any(w + 1), x = order[w];
      order[w] = order[o]; order[o] = x;
    }
    for (int w = 0; w < count; w++) do {
      progress = false;
      for (now = order[w] * 32; now < order[w] * 32 + 32 && now < threads; now++) if (!fibers[now].done) {
        threadIdx = fibers[now].index;
        to(&scheduler, fibers[now].stack);
        if (*failure) return;
      }
      moved |= progress;
    } while (progress);
    if (!moved) { snprintf(failure, sizeof failure, "threads wait for others that never come"); return; }
  }
}
template <class... A>
static const char* launch(void (*f)(A...), const unsigned* grid, const unsigned* block, const char* p, size_t size,
                          unsigned seed, char* stacks, bool together) {
  size_t end = 0, sizes[] = {sizeof(A)...};
  for (size_t i = 0; i < sizeof...(A); i++) {
    offsets[i] = (end + sizes[i] - 1) / sizes[i] * sizes[i];
    end = offsets[i] + sizes[i];
  }
  if (end != size) return "it is given more or fewer arguments than it takes";
  static void (*kernel)(A...);
  typedef typename Count<sizeof...(A)>::type Numbers;
  kernel = f; given = p; once = [] { call(kernel, given, Numbers()); };
  gridDim = {grid[0], grid[1], grid[2]}; blockDim = {block[0], block[1], block[2]};
  threads = block[0] * block[1] * block[2]; random_state = seed; *failure = 0;
  unsigned long long blocks = (unsigned long long)grid[0] * grid[1] * grid[2], first = seed ? any(blocks) : 0;
  for (unsigned long long j = 0; j < blocks && !*failure; j++) {
    unsigned i = seed ? (first + blocks - j) % blocks : j; /* with a seed backwards, from anywhere */
    blockIdx = {i % grid[0], i / grid[0] % grid[1], i / grid[0] / grid[1]};
    if (SHARED) memset(__start_cuda_shared, 0xff, SHARED);
    if (together) { run_together(stacks, seed); continue; }
    for (threadIdx.z = 0; threadIdx.z < block[2]; threadIdx.z++)
      for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)
        for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++) once();
  }
  return *failure ? failure : 0;
}
