#include "number.cuh"

/* C[16, 8] += A[16, 16] B[16, 8], float32 sums of 16-bit numbers, each matrix spread over the 32 threads of a warp. Of
   thread 4 g + t: a holds rows g and g + 8, columns 2 t, 2 t + 1 and those + 8; b the same of B's transpose; c rows g
   and g + 8, columns 2 t and 2 t + 1 (PTX ISA, "Matrix fragments for mma.m16n8k16"). */
__device__ __forceinline__ void mma(float* c, const unsigned* a, const unsigned* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32." KIND "." KIND ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
               "{%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices of 16-bit numbers; thread i names row i % 8 of the one that is i / 8. Thread 4 g + t gets of each
   the columns 2 t and 2 t + 1 in row g. */
__device__ __forceinline__ void straight(unsigned* r, const H* row) {
  unsigned from = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

/* The same, transposed: thread 4 g + t gets of each the rows 2 t and 2 t + 1 in column g. */
__device__ __forceinline__ void turned(unsigned* r, const H* row) {
  unsigned from = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

/* 16 bytes from memory to shared memory, which arrive later; zeros where they aren't in the matrix. */
__device__ __forceinline__ void send(H* to, const H* from, bool in) {
  unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(at), "l"(from), "r"(in ? 16 : 0) : "memory");
}
