/* Numbers of a tensor two at a time: float32, or 16 bits where SIXTEEN is 1, of the KIND "f16" or "bf16". */
__device__ __forceinline__ float2 wide(unsigned two) {
  float x, y; unsigned short low = two, high = two >> 16;
  if (KIND[0] == 'b') return make_float2(__int_as_float(two << 16), __int_as_float(two & 0xffff0000u));
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(low));
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(high));
  return make_float2(x, y);
}

/* Two floats as 16-bit numbers in one register, x in the lower half. */
__device__ __forceinline__ unsigned pack(float x, float y) {
  unsigned r;
  asm("cvt.rn." KIND "x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
  return r;
}

__device__ __forceinline__ float2 load(const H* at) {
  return SIXTEEN ? wide(*(const unsigned*)at) : *(const float2*)at;
}

__device__ __forceinline__ void store(H* at, float x, float y) {
  if (SIXTEEN) *(unsigned*)at = pack(x, y); else *(float2*)at = make_float2(x, y);
}

#define LOG2E 1.44269504f
