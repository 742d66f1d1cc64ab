// Vectors of LANES floats: what the compiler's target offers, and the few functions needed on them.
// GNU vector extensions only, so the same source serves AVX-512, AVX2, SSE2 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define PFSR_LANES 16
#elif defined(__AVX__)
#define PFSR_LANES 8
#else
#define PFSR_LANES 4
#endif

#define PFSR_INLINE inline __attribute__((always_inline))

namespace {  // every translation unit is built for another target: nothing here may be shared

constexpr int LANES = PFSR_LANES;

typedef float Vec __attribute__((vector_size(4 * PFSR_LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * PFSR_LANES)));
typedef uint32_t BitsVec __attribute__((vector_size(4 * PFSR_LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * PFSR_LANES), aligned(4), may_alias));

PFSR_INLINE Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
PFSR_INLINE void store(float* to, Vec v) { *reinterpret_cast<UnalignedVec*>(to) = v; }
PFSR_INLINE Vec splat(float x) { return Vec{} + x; }
PFSR_INLINE Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
PFSR_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }

PFSR_INLINE IntVec lane_numbers() {
  IntVec lanes;
  for (int i = 0; i < LANES; ++i) lanes[i] = i;
  return lanes;
}

// The first `count` numbers at `from`, zeros behind them.
PFSR_INLINE Vec load_part(const float* from, int64_t count) {
  if (count >= LANES) return load(from);
  float part[LANES] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return load(part);
}

PFSR_INLINE void store_part(float* to, Vec v, int64_t count) {
  if (count >= LANES) return store(to, v);
  float part[LANES];
  store(part, v);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

// `v` without what lies behind its first `count` lanes.
PFSR_INLINE Vec first_lanes(Vec v, int64_t count) {
  return lane_numbers() < static_cast<int32_t>(count) ? v : Vec{};
}

template <int WIDTH>
PFSR_INLINE Vec fold(Vec v) {  // lane i and lane i + WIDTH (cyclic) added
  IntVec turned;
  for (int i = 0; i < LANES; ++i) turned[i] = (i + WIDTH) % LANES;
  return v + __builtin_shuffle(v, turned);
}

PFSR_INLINE float sum(Vec v) {
#if PFSR_LANES > 8
  v = fold<8>(v);
#endif
#if PFSR_LANES > 4
  v = fold<4>(v);
#endif
  return fold<1>(fold<2>(v))[0];
}

// exp(x), relative error below 2e-7. The argument is kept within [-87, 88]: no infinity and no
// denormal comes out. Cody-Waite reduction and a polynomial of degree 7 of the remainder.
PFSR_INLINE Vec exponential(Vec x) {
  x = smaller(larger(x, splat(-87.0f)), splat(88.0f));
  const Vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  const Vec n = shifted - 12582912.0f;
  const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const BitsVec power = (reinterpret_cast<BitsVec>(shifted) << 23) + 0x3f800000u;
  return p * reinterpret_cast<Vec>(power);
}

PFSR_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

// log(1 + exp(x)) = max(x, 0) + 2 artanh(e / (2 + e)) with e = exp(-|x|), so the series' argument
// stays within 1/3: relative error below 3e-7 wherever exp(x) is a normal number.
PFSR_INLINE Vec softplus(Vec x) {
  const Vec e = exponential(x > 0.0f ? -x : x);
  const Vec s = e / (2.0f + e), q = s * s;
  Vec p = splat(1.0f / 15);
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return larger(x, Vec{}) + 2.0f * s * p;
}

// One butterfly of a transposition: swap the off-diagonal squares of width DISTANCE.
template <int DISTANCE>
PFSR_INLINE void exchange(Vec (&rows)[LANES]) {
  IntVec upper, lower;
  for (int j = 0; j < LANES; ++j) {
    upper[j] = j & DISTANCE ? LANES + j - DISTANCE : j;
    lower[j] = j & DISTANCE ? LANES + j : j + DISTANCE;
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i)
    if (!(i & DISTANCE)) {
      const Vec a = rows[i], b = rows[i + DISTANCE];
      rows[i] = __builtin_shuffle(a, b, upper);
      rows[i + DISTANCE] = __builtin_shuffle(a, b, lower);
    }
}

// to (columns, rows) = from (rows, columns) transposed; both counts are multiples of LANES.
PFSR_INLINE void transpose(float* to, int64_t to_stride, const float* from, int64_t from_stride,
                           int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r += LANES)
    for (int64_t c = 0; c < columns; c += LANES) {
      Vec square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) square[i] = load(from + (r + i) * from_stride + c);
      exchange<1>(square);
      exchange<2>(square);
#if PFSR_LANES > 4
      exchange<4>(square);
#endif
#if PFSR_LANES > 8
      exchange<8>(square);
#endif
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) store(to + (c + i) * to_stride + r, square[i]);
    }
}

}  // namespace
