// Small matrix products, C (rows, columns) = A (rows, depth) B (depth, columns), with everything in
// the core's caches. A is read one number at a time through two strides, so it may be transposed;
// B and C have contiguous rows of a multiple of LANES.
#pragma once

#include "vector.h"

namespace {

struct Left {  // A: element (i, k) is at data[i * row + k * step]
  const float* data;
  int64_t row, step;
};

enum class Part {
  all,
  until_row,     // A is lower triangular: element (i, k) is zero for k > i
  from_row,      // A is upper triangular: element (i, k) is zero for k < i
  lower_columns  // of C only columns <= row are wanted
};

enum class Into { set, add };

template <int ROWS, int VECS>
PFSR_INLINE void tile(float* C, int64_t C_stride, Left A, const float* B, int64_t B_stride,
                      int64_t depth, Into into) {
  Vec total[ROWS][VECS];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECS; ++j)
      total[i][j] = into == Into::add ? load(C + i * C_stride + j * LANES) : Vec{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec b[VECS];
#pragma GCC unroll 4
    for (int j = 0; j < VECS; ++j) b[j] = load(B + k * B_stride + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const Vec a = splat(A.data[i * A.row + k * A.step]);
#pragma GCC unroll 4
      for (int j = 0; j < VECS; ++j) total[i][j] += a * b[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECS; ++j) store(C + i * C_stride + j * LANES, total[i][j]);
}

// A band of ROWS rows of C.
template <int ROWS>
PFSR_INLINE void band(float* C, int64_t C_stride, Left A, const float* B, int64_t B_stride,
                      int64_t columns, int64_t depth, Into into) {
  int64_t j = 0;
  for (; j + 2 * LANES <= columns; j += 2 * LANES)
    tile<ROWS, 2>(C + j, C_stride, A, B + j, B_stride, depth, into);
  if (j < columns) tile<ROWS, 1>(C + j, C_stride, A, B + j, B_stride, depth, into);
}

inline int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

template <Part PART, Into INTO>
__attribute__((noinline)) void multiply(float* C, int64_t C_stride, Left A, const float* B,
                                        int64_t B_stride, int64_t rows, int64_t columns,
                                        int64_t depth) {
  constexpr int MOST = LANES > 8 ? 8 : 4;
  for (int64_t i = 0, height; i < rows; i += height) {
    height = rows - i >= MOST ? MOST : rows - i >= 4 ? 4 : rows - i >= 2 ? 2 : 1;
    const int64_t end = i + height;
    const int64_t first = PART == Part::from_row ? i : 0;
    const int64_t last = PART == Part::until_row && end < depth ? end : depth;
    const int64_t wanted = rounded_up(end, LANES);
    const int64_t width = PART == Part::lower_columns && wanted < columns ? wanted : columns;
    const Left from{A.data + i * A.row + first * A.step, A.row, A.step};
    float* to = C + i * C_stride;
    const float* with = B + first * B_stride;
    switch (height) {
      case 8: band<8>(to, C_stride, from, with, B_stride, width, last - first, INTO); break;
      case 4: band<4>(to, C_stride, from, with, B_stride, width, last - first, INTO); break;
      case 2: band<2>(to, C_stride, from, with, B_stride, width, last - first, INTO); break;
      default: band<1>(to, C_stride, from, with, B_stride, width, last - first, INTO);
    }
  }
}

}  // namespace
