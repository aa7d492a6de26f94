/* e^x to about 1e-7 of it: 2^r by the exponent's bits, 2^f for f in [-1/2, 1/2] by its Taylor series. */
static inline float exp_(float x) {
  x *= 1.44269504f;
  x = x < -126.0f ? -126.0f : x > 127.0f ? 127.0f : x;
  float r = __builtin_rintf(x), f = x - r;
  float p = 1.5403530e-4f;
  p = p*f + 1.3333558e-3f; p = p*f + 9.6181291e-3f; p = p*f + 5.5504109e-2f; p = p*f + 2.4022651e-1f;
  p = p*f + 6.9314718e-1f; p = p*f + 1.0f;
  union { int i; float f; } two = { ((int)r + 127) << 23 };
  return p * two.f;
}
