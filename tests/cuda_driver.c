/* An NVIDIA driver for tests on a machine without a GPU: what tinygrad calls of libcuda.so.1 and libnvrtc.so.12.

   Device memory is host memory between two pages that can't be touched, and is full of NaN at first. A kernel is
   compiled for the CPU by cuda_on_cpu.py when its module is loaded, and kept for the next time. Nothing runs when it is
   asked for: each device has a queue, which runs as late as a GPU could, when somebody waits for it. What fails in a
   kernel is said on stderr, and from then on every call returns an error, as on a GPU. It is right, not fast.

   CUDA_TEST_COMPILER         a command: it is given the file of a kernel and that of the library to make
   CUDA_TEST_KERNELS          the folder in which they are kept
   CUDA_TEST_DEVICES=1        how many GPUs there are       CUDA_TEST_MEMORY=24000000000  bytes on each
   CUDA_TEST_NAME=            of each GPU; kernels are only timed for a GPU that has one
   CUDA_TEST_SEED=0           of the order of graph nodes, blocks and warps; 0: as they come
   CUDA_TEST_FAIL=CALL:700:3  this call returns that error from the third time on
   CUDA_TEST_SKIP=1           no kernel runs and nothing is copied: sizes and launches alone are checked
   CUDA_TEST_LOG=FILE         at the end what happened is written there as JSON */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define DEVICES 16
enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701, LAUNCH_FAILED = 719 };

typedef struct Device { int number; } Device;
typedef struct Module { void* library; const char* text; } Module;
typedef struct Function {
  const char* name; int device; unsigned bounds;
  const char* (*run)(const unsigned* grid, const unsigned* block, const char* arguments, size_t size, unsigned seed,
                     char* stacks);
  long long *products, *stated;
} Function;
typedef struct Event { int device; long long at; } Event;
/* The next two are NVIDIA's CUDA_KERNEL_NODE_PARAMS_v1 and CUDA_MEMCPY3D_v2. */
typedef struct KernelParams {
  Function* function; unsigned grid[3], block[3], shared; void** pointers; void** extra;
} KernelParams;
typedef struct CopyEnd {
  size_t x, y, z, lod; unsigned type; const void* host; char* device; void* array; void* reserved; size_t pitch, height;
} CopyEnd;
typedef struct CopyParams { CopyEnd from, to; size_t width, height, depth; } CopyParams;

static int current = -1, broken;
static unsigned long long state;

static long setting(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text && *text ? atol(text) : otherwise;
}
static int skipping(void) { return setting("CUDA_TEST_SKIP", 0); }
static unsigned any(void) { state = state * 6364136223846793005ull + 1442695040888963407ull; return state >> 33; }
static int refuse(int code, const char* why, const char* what) {
  fprintf(stderr, "CUDA on the CPU: %s%s%s\n", why, *what ? ": " : "", what);
  return code;
}

/* ---- what was called ---- */
static struct { const char* name; long count; } calls[64];
static long launched, held, most_held, pinned, most_pinned, largest;
static long long multiplied;
static void report(void) {
  const char* path = getenv("CUDA_TEST_LOG");
  FILE* file = path ? fopen(path, "w") : 0;
  if (!file) return;
  fprintf(file, "{\"kernels\": %ld, \"tensor_flops\": %lld, \"memory\": %ld, \"pinned\": %ld, \"arguments\": %ld",
          launched, multiplied, most_held, most_pinned, largest);
  for (int i = 0; i < 64 && calls[i].name; i++) fprintf(file, ", \"%s\": %ld", calls[i].name, calls[i].count);
  fprintf(file, "}\n");
  fclose(file);
}
static int called(const char* name) {
  int i = 0;
  while (i < 63 && calls[i].name && strcmp(calls[i].name, name)) i++;
  if (!calls[0].name) atexit(report);
  calls[i].name = name;
  calls[i].count++;
  const char* fail = getenv("CUDA_TEST_FAIL");
  size_t length = strlen(name);
  if (fail && !strncmp(fail, name, length) && fail[length] == ':') {
    char* end;
    int code = strtol(fail + length + 1, &end, 10), from = *end == ':' ? atol(end + 1) : 1;
    if (calls[i].count >= from) return code == ILLEGAL_ADDRESS ? (broken = code) : code;
  }
  return broken;
}
#define CALLED do { int wrong = called(__func__); if (wrong) return wrong; } while (0)

/* ---- memory ---- */
typedef struct Block { char* at; size_t size; char* map; size_t mapped; int device; } Block;
static Block* blocks;
static int block_count, block_room;
static long held_on[DEVICES];
static Block* block_of(const char* p) {
  for (Block* b = blocks; b < blocks + block_count; b++) if (p >= b->at && p < b->at + b->size) return b;
  return 0;
}
static int fits(const char* p, size_t size) {
  Block* block = block_of(p);
  return block && p + size <= block->at + block->size;
}
static void flush(int device, long long upto);
static void flush_all(void) { for (int d = 0; d < DEVICES; d++) flush(d, INT64_MAX); }

API int cuMemAlloc_v2(char** p, size_t size) {
  CALLED;
  if (current < 0) return INVALID_CONTEXT;
  if (!size) return INVALID_VALUE;
  if (held_on[current] + (long)size > setting("CUDA_TEST_MEMORY", 24000000000)) return OUT_OF_MEMORY;
  size_t page = sysconf(_SC_PAGESIZE), inner = (size + 15) / 16 * 16, whole = (inner + page - 1) / page * page;
  char* map = mmap(0, whole + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED || mprotect(map + page, whole, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
  if (!skipping()) memset(map + page, 0xff, whole); /* NaN, or a token of -1 */
  if (block_count == block_room) blocks = realloc(blocks, (block_room = 2 * block_room + 64) * sizeof *blocks);
  *p = map + page + whole - inner; /* so that it ends at the page */
  blocks[block_count++] = (Block){*p, size, map, whole + 2 * page, current};
  held_on[current] += size;
  if ((held += size) > most_held) most_held = held;
  return 0;
}
API int cuMemFree_v2(char* p) {
  CALLED;
  Block* block = block_of(p);
  if (!block || block->at != p) return refuse(INVALID_VALUE, "what is freed was not allocated", "");
  flush_all();
  held -= block->size;
  held_on[block->device] -= block->size;
  munmap(block->map, block->mapped);
  *block = blocks[--block_count];
  return 0;
}
API int cuMemHostAlloc(void** p, size_t size, unsigned flags) {
  CALLED;
  size_t* memory = malloc(size + 64);
  *memory = size;
  *p = memory + 8;
  if ((pinned += size) > most_pinned) most_pinned = pinned;
  return 0;
}
API int cuMemFreeHost(void* p) { CALLED; size_t* memory = (size_t*)p - 8; pinned -= *memory; free(memory); return 0; }

/* ---- queues ---- */
enum Kind { LAUNCH, COPY, WAIT };
typedef struct Command {
  enum Kind kind; long long number;
  Function* function; unsigned grid[3], block[3]; char* arguments; size_t size; /* of a launch */
  char* to; const char* from; /* of a copy, and its size */
  Event* event; long long upto; /* of a wait */
} Command;
static struct { Command* commands; int count, room; } queues[DEVICES];
static long long numbered;
static sigjmp_buf escape;
static const char* running;
static char* stacks; /* of 1,024 threads */

static Command* later(enum Kind kind) {
  int d = current;
  if (queues[d].count == queues[d].room)
    queues[d].commands = realloc(queues[d].commands, (queues[d].room = 2 * queues[d].room + 64) * sizeof(Command));
  Command* c = &queues[d].commands[queues[d].count++];
  *c = (Command){.kind = kind, .number = ++numbered};
  return c;
}
static void crashed(int signal, siginfo_t* info, void* context) {
  char *p = info->si_addr, where[200] = "which is in no buffer";
  for (int i = 0; i < block_count; i++) if (p >= blocks[i].map && p < blocks[i].map + blocks[i].mapped)
    sprintf(where, "%ld bytes from the start of a buffer of %zu", (long)(p - blocks[i].at), blocks[i].size);
  fprintf(stderr, "CUDA on the CPU: %s touched %p, %s\n", running, p, where);
  siglongjmp(escape, 1);
}
static void run(Command* c, int device) {
  if (c->kind == WAIT && c->event->device != device) flush(c->event->device, c->upto);
  if (c->kind == WAIT || broken || skipping()) return;
  struct sigaction action = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO}, segv, bus;
  sigaction(SIGSEGV, &action, &segv);
  sigaction(SIGBUS, &action, &bus);
  running = c->kind == COPY ? "a copy" : c->function->name;
  if (sigsetjmp(escape, 1)) broken = ILLEGAL_ADDRESS;
  else if (c->kind == COPY) memcpy(c->to, c->from, c->size);
  else {
    Function* f = c->function;
    *f->products = 0;
    unsigned seed = setting("CUDA_TEST_SEED", 0) ? any() | 1 : 0;
    if (!stacks) stacks = mmap(0, 1 << 28, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const char* wrong = f->run(c->grid, c->block, c->arguments, c->size, seed, stacks);
    if (!wrong && *f->stated >= 0 && *f->stated != *f->products) wrong = "its head states other FLOPs in mma.sync";
    if (wrong) broken = refuse(LAUNCH_FAILED, f->name, wrong);
    launched++;
    multiplied += *f->products;
  }
  sigaction(SIGSEGV, &segv, 0);
  sigaction(SIGBUS, &bus, 0);
}
static void flush(int device, long long upto) { /* run what was asked of a device, up to a number */
  int count = 0;
  while (count < queues[device].count && queues[device].commands[count].number <= upto) count++;
  if (!count) return;
  Command* commands = malloc(count * sizeof *commands); /* a wait inside may come back to this queue */
  memcpy(commands, queues[device].commands, count * sizeof *commands);
  queues[device].count -= count;
  memmove(queues[device].commands, queues[device].commands + count, queues[device].count * sizeof *commands);
  for (int i = 0; i < count; i++) { run(&commands[i], device); free(commands[i].arguments); }
  free(commands);
}
static int copy(char* to, const char* from, size_t size) {
  Command* c = later(COPY);
  c->to = to; c->from = from; c->size = size;
  return 0;
}
API int cuMemcpyHtoDAsync_v2(char* to, const char* from, size_t size, void* stream) {
  CALLED;
  return fits(to, size) ? copy(to, from, size) : refuse(INVALID_VALUE, "a copy to the device doesn't fit", "");
}
API int cuMemcpyDtoDAsync_v2(char* to, const char* from, size_t size, void* stream) {
  CALLED;
  if (!fits(to, size) || !fits(from, size)) return refuse(INVALID_VALUE, "a copy on the device doesn't fit", "");
  return copy(to, from, size);
}
API int cuMemcpyDtoH_v2(void* to, const char* from, size_t size) {
  CALLED;
  if (!fits(from, size)) return refuse(INVALID_VALUE, "a copy from the device doesn't fit", "");
  flush(current, INT64_MAX);
  if (skipping()) memset(to, 0, size);
  else memcpy(to, from, size);
  return broken;
}
API int cuEventCreate(Event** e, unsigned flags) {
  CALLED;
  *e = calloc(1, sizeof **e);
  (*e)->device = current;
  return 0;
}
API int cuEventRecord(Event* e, void* stream) {
  CALLED;
  if (e->device != current) return refuse(INVALID_HANDLE, "an event of another device is recorded", "");
  e->at = ++numbered;
  return 0;
}
API int cuStreamWaitEvent(void* stream, Event* e, unsigned flags) {
  CALLED;
  Command* c = later(WAIT);
  c->event = e; c->upto = e->at;
  return 0;
}
API int cuEventSynchronize(Event* e) { CALLED; flush(e->device, e->at); return broken; }
API int cuEventElapsedTime(float* ms, Event* from, Event* to) { CALLED; *ms = 1; return 0; }
API int cuEventDestroy_v2(Event* e) { CALLED; flush_all(); free(e); return 0; }

/* ---- devices ---- */
static Device devices[DEVICES];
API int cuInit(unsigned flags) { CALLED; state = setting("CUDA_TEST_SEED", 0); return 0; }
API int cuDriverGetVersion(int* version) { CALLED; *version = 12040; return 0; }
API int cuDeviceGetCount(int* n) { CALLED; *n = setting("CUDA_TEST_DEVICES", 1); return 0; }
API int cuDeviceGet(int* device, int i) {
  CALLED;
  *device = i;
  return i < setting("CUDA_TEST_DEVICES", 1) ? 0 : INVALID_DEVICE;
}
API int cuDeviceGetName(char* name, int size, int device) {
  CALLED;
  const char* text = getenv("CUDA_TEST_NAME");
  snprintf(name, size, "%s", text ? text : "");
  return 0;
}
API int cuDeviceComputeCapability(int* major, int* minor, int device) { CALLED; *major = 8; *minor = 9; return 0; }
API int cuCtxCreate_v2(Device** d, unsigned flags, int i) {
  CALLED;
  devices[i].number = current = i;
  *d = &devices[i];
  return 0;
}
API int cuCtxSetCurrent(Device* d) { CALLED; current = d ? d->number : -1; return 0; }
API int cuCtxSynchronize(void) {
  CALLED;
  if (current < 0) return INVALID_CONTEXT;
  flush(current, INT64_MAX);
  return broken;
}
API int cuDeviceCanAccessPeer(int* can, int a, int b) { CALLED; *can = 0; return 0; } /* as between two RTX 4090 */
API int cuGetErrorString(int code, const char** text) {
  static char other[30];
  snprintf(other, sizeof other, "error %d", code);
  *text = code == OUT_OF_MEMORY ? "out of memory" : code == ILLEGAL_ADDRESS ? "an illegal memory access" : other;
  return 0;
}

/* ---- modules and launches ---- */
API int cuModuleLoadData(Module** m, const char* text) {
  CALLED;
  *m = calloc(1, sizeof **m);
  (*m)->text = strdup(text);
  if (skipping()) return 0;
  char path[2000], command[6000];
  unsigned long long hash = 14695981039346656037ull; /* FNV-1a */
  for (const char* c = text; *c; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211ull;
  int end = snprintf(path, sizeof path - 100, "%s/%016llx", getenv("CUDA_TEST_KERNELS"), hash);
  strcpy(path + end, ".so");
  if (access(path, R_OK)) {
    sprintf(path + end, ".%d.cu", getpid());
    FILE* file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file)) return refuse(INVALID_IMAGE, "it can't be written", path);
    path[end] = 0;
    snprintf(command, sizeof command, "%s '%s.%d.cu' '%s.so' >&2", getenv("CUDA_TEST_COMPILER"), path, getpid(), path);
    if (system(command)) return refuse(INVALID_IMAGE, "it doesn't compile", path);
    strcpy(path + end, ".so");
  }
  (*m)->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  return (*m)->library ? 0 : refuse(INVALID_IMAGE, dlerror(), "");
}
static unsigned written(const char* text, const char* before) { /* the number, or the macro, that follows */
  const char* at = strstr(text, before);
  char define[80];
  if (!at) return 0;
  at += strlen(before);
  if (*at >= '0' && *at <= '9') return atol(at);
  snprintf(define, sizeof define, "#define %.*s ", (int)strcspn(at, ")"), at);
  return written(text, define);
}
API int cuModuleGetFunction(Function** f, Module* m, const char* name) {
  CALLED;
  Function* new = *f = calloc(1, sizeof *new);
  new->name = strdup(name);
  new->device = current;
  if (!m->library) {
    new->bounds = written(m->text, "__launch_bounds__(");
    return strstr(m->text, name) ? 0 : NOT_FOUND;
  }
  const char** known = dlsym(m->library, "kernel_name");
  if (strcmp(*known, name)) return refuse(NOT_FOUND, "there is no kernel of that name", name);
  *(void**)&new->run = dlsym(m->library, "kernel_run");
  new->bounds = *(unsigned*)dlsym(m->library, "kernel_bounds");
  new->products = dlsym(m->library, "kernel_products");
  new->stated = dlsym(m->library, "kernel_stated");
  unsigned (*shared)(void);
  *(void**)&shared = dlsym(m->library, "kernel_shared");
  return shared() <= 49152 ? 0 : refuse(INVALID_IMAGE, "more than 48 KB of static shared memory", name);
}
API int cuModuleUnload(Module* m) { CALLED; flush_all(); return 0; }
API int cuFuncSetAttribute(Function* f, int attribute, int value) { CALLED; return refuse(INVALID_VALUE, "", f->name); }

/* Whether a launch is legal. Arguments lie in one piece, as CU_LAUNCH_PARAM_BUFFER_POINTER (1) and _SIZE (2) say. */
static int legal(const KernelParams* p, char** arguments, size_t* size) {
  const unsigned *g = p->grid, *b = p->block;
  char what[9000];
  const char* name = p->function->name;
  snprintf(what, sizeof what, "%s (grid %u %u %u, block %u %u %u)", name, g[0], g[1], g[2], b[0], b[1], b[2]);
  unsigned long long threads = (unsigned long long)b[0] * b[1] * b[2];
  if (!g[0] || !g[1] || !g[2] || !threads) return refuse(INVALID_VALUE, "a launch of nothing", what);
  if (g[0] > 2147483647u || g[1] > 65535 || g[2] > 65535) return refuse(INVALID_VALUE, "too large a grid", what);
  if (b[2] > 64 || threads > 1024) return refuse(INVALID_VALUE, "too large a block", what);
  if (threads > p->function->bounds) return refuse(OUT_OF_RESOURCES, "more threads than it is compiled for", what);
  if (p->shared || p->pointers) return refuse(INVALID_VALUE, "dynamic shared memory, or arguments one by one", what);
  *arguments = 0;
  for (int i = 0; p->extra[i]; i += 2) {
    if (p->extra[i] == (void*)1) *arguments = p->extra[i + 1];
    if (p->extra[i] == (void*)2) *size = *(size_t*)p->extra[i + 1];
  }
  if (*arguments && (long)*size > largest) largest = *size;
  return *arguments && *size <= 4096 ? 0 : refuse(INVALID_VALUE, "no arguments, or more than 4 KB of them", what);
}
static void launch(const KernelParams* p, const char* arguments, size_t size) {
  Command* c = later(LAUNCH);
  c->function = p->function;
  memcpy(c->grid, p->grid, 12);
  memcpy(c->block, p->block, 12);
  c->arguments = memcpy(malloc(size), arguments, size);
  c->size = size;
}
API int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void* stream, void** pointers, void** extra) {
  CALLED;
  KernelParams p = {f, {gx, gy, gz}, {bx, by, bz}, shared, pointers, extra};
  char* arguments; size_t size;
  if (f->device != current) return refuse(INVALID_HANDLE, "a kernel of another device", f->name);
  int wrong = legal(&p, &arguments, &size);
  if (!wrong) launch(&p, arguments, size);
  return wrong;
}

/* ---- graphs ---- */
typedef struct Node {
  int index, befores, *after; /* the numbers of those that come before */
  KernelParams kernel; char *arguments, *to; const char* from; size_t size; /* of a kernel, or of a copy */
} Node;
typedef struct Graph { Node** nodes; int count, room; } Graph;
API int cuGraphCreate(Graph** g, unsigned flags) { CALLED; *g = calloc(1, sizeof **g); return 0; }
static int set_kernel(Node* node, const KernelParams* p) {
  char* arguments; size_t size;
  int wrong = legal(p, &arguments, &size);
  if (wrong) return wrong;
  free(node->arguments);
  node->kernel = *p; node->size = size; node->arguments = memcpy(malloc(size), arguments, size);
  return 0;
}
static int set_copy(Node* node, const CopyParams* p) {
  if (p->from.type != 2 || p->to.type != 2 || p->height != 1 || p->depth != 1 || p->from.x || p->to.x)
    return refuse(INVALID_VALUE, "a copy in a graph is of another kind", ""); /* 2: on a device */
  if (!fits(p->to.device, p->width) || !fits(p->from.device, p->width))
    return refuse(INVALID_VALUE, "a copy in a graph doesn't fit", "");
  node->to = p->to.device; node->from = p->from.device; node->size = p->width;
  return 0;
}
static Node* add(Graph* g, Node** after, size_t n) {
  Node* node = calloc(1, sizeof *node);
  *node = (Node){.index = g->count, .befores = n, .after = malloc(n * sizeof(int) + 1)};
  for (size_t i = 0; i < n; i++) node->after[i] = after[i]->index;
  if (g->count == g->room) g->nodes = realloc(g->nodes, (g->room = 2 * g->room + 64) * sizeof *g->nodes);
  return g->nodes[g->count++] = node;
}
API int cuGraphAddKernelNode(Node** out, Graph* g, Node** after, size_t n, const KernelParams* p) {
  CALLED;
  return set_kernel(*out = add(g, after, n), p);
}
API int cuGraphAddMemcpyNode(Node** out, Graph* g, Node** after, size_t n, const CopyParams* p, Device* d) {
  CALLED;
  return set_copy(*out = add(g, after, n), p);
}
API int cuGraphInstantiate_v2(Graph** e, Graph* g, void* node, char* log, size_t size) { CALLED; *e = g; return 0; }
API int cuGraphExecKernelNodeSetParams(Graph* g, Node* node, const KernelParams* p) {
  CALLED;
  return set_kernel(node, p);
}
API int cuGraphExecMemcpyNodeSetParams(Graph* g, Node* node, const CopyParams* p, Device* d) {
  CALLED;
  return set_copy(node, p);
}
/* In any order that the edges allow, and all in the queue of the device that is current, as on a GPU. */
API int cuGraphLaunch(Graph* g, void* stream) {
  CALLED;
  char* gone = calloc(g->count, 1);
  int *ready = malloc(g->count * sizeof(int)), shuffled = setting("CUDA_TEST_SEED", 0), from = 0;
  for (int left = g->count; left; left--) {
    int n = 0;
    while (gone[from]) from++;
    for (int i = from; i < g->count && (shuffled ? n < 64 : !n); i++) if (!gone[i]) {
      int waits = 0;
      for (int k = 0; k < g->nodes[i]->befores && !waits; k++) waits = !gone[g->nodes[i]->after[k]];
      if (!waits) ready[n++] = i;
    }
    Node* node = g->nodes[ready[shuffled ? any() % n : 0]];
    gone[node->index] = 1;
    if (node->arguments) launch(&node->kernel, node->arguments, node->size);
    else copy(node->to, node->from, node->size);
  }
  free(gone);
  free(ready);
  return 0;
}
API int cuGraphDestroy(Graph* g) { CALLED; return 0; }
API int cuGraphExecDestroy(Graph* g) { CALLED; flush_all(); return 0; }

/* ---- libnvrtc, whose code for a GPU is the source itself ---- */
API int nvrtcVersion(int* major, int* minor) { *major = 12; *minor = 8; return 0; }
API const char* nvrtcGetErrorString(int code) { return "an error of libnvrtc"; }
API int nvrtcCreateProgram(char** p, const char* source, const char* name, int n, void* headers, void* names) {
  *p = strdup(source);
  return 0;
}
API int nvrtcCompileProgram(char* p, int n, const char** options) { return 0; }
API int nvrtcGetPTXSize(char* p, size_t* n) { *n = strlen(p) + 1; return 0; }
API int nvrtcGetPTX(char* p, char* to) { strcpy(to, p); return 0; }
API int nvrtcGetProgramLogSize(char* p, size_t* n) { *n = 1; return 0; }
API int nvrtcGetProgramLog(char* p, char* to) { *to = 0; return 0; }
API int nvrtcDestroyProgram(char** p) { free(*p); return 0; }
