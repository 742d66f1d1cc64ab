// Matrix products of any sizes and strides, for what does not fit into the caches. The depth is
// taken in blocks and B in panels of two vectors of columns, copied so that a panel's block lies in
// one piece; a transposed A is copied as well, in strips of as many rows as a vector has lanes. A
// number of C is one sum in the order of the depth, however rows are divided among units, so units
// may depend on the number of threads.
#pragma once

#include "mixer.h"
#include "product.h"
#include "weights.h"

namespace {

constexpr int64_t DEPTH = 256;           // of a block
constexpr int64_t PANEL = 2 * LANES;     // columns
constexpr int BAND = LANES > 8 ? 8 : 4;  // rows

struct ProductScratch {
  explicit ProductScratch(Arena& arena)
      : panel(arena.take(DEPTH * PANEL)), edge(arena.take(BAND * PANEL)),
        A(arena.take(PRODUCT_ROWS * DEPTH)) {}

  float *panel, *edge, *A;
};

struct Block {  // rows of a unit, columns of a panel, a part of the depth
  int64_t rows, columns, depth;
};

// panel (depth, PANEL) = B, element (k, j) at B[k * step + j * column]; zeros from `columns` on.
inline void pack_panel(float* panel, const float* B, int64_t step, int64_t column, int64_t depth,
                       int64_t columns) {
  if (column == 1) {
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < PANEL; j += LANES)
        store(panel + k * PANEL + j,
              columns > j ? load_part(B + k * step + j, columns - j) : Vec{});
    return;
  }
  const int64_t whole = step == 1 ? depth / LANES * LANES : 0, squares = columns / LANES * LANES;
  transpose(panel, PANEL, B, column, squares, whole);
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = k < whole ? squares : 0; j < PANEL; ++j)
      panel[k * PANEL + j] = j < columns ? B[k * step + j * column] : 0.0f;
}

// Rows of A, `rows` x `depth`, as strips (depth, LANES) of LANES rows, one after the other.
inline void pack_rows(float* strips, Left A, int64_t rows, int64_t depth) {
  for (int64_t i = 0; i < rows; i += LANES, strips += depth * LANES) {
    const int64_t count = rows - i < LANES ? rows - i : LANES;
    const float* from = A.data + i * A.row;
    if (A.row == 1 && count == LANES)
      for (int64_t k = 0; k < depth; ++k) store(strips + k * LANES, load(from + k * A.step));
    else
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t r = 0; r < count; ++r) strips[k * LANES + r] = from[r * A.row + k * A.step];
  }
}

// What a tile of C begins with where nothing is added to it yet: the bias, or zeros.
PFSR_INLINE void begin_tile(float* C, int64_t stride, const float* bias, int64_t rows,
                            int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    if (bias)
      copy(C + i * stride, bias, columns);
    else
      fill(C + i * stride, 0, columns);
}

// A band of ROWS rows of a panel; `begun`: C holds a sum to add to, else it is set.
template <int ROWS>
PFSR_INLINE void panel_band(float* C, int64_t stride, Left A, const ProductScratch& scratch,
                            int64_t depth, int64_t columns, bool begun, const float* bias) {
  if (columns == PANEL) {
    if (!begun && bias)
      for (int i = 0; i < ROWS; ++i)
        for (int64_t j = 0; j < PANEL; j += LANES) store(C + i * stride + j, load(bias + j));
    if (begun || bias)
      tile<ROWS, 2>(C, stride, A, scratch.panel, PANEL, depth, Into::add);
    else
      tile<ROWS, 2>(C, stride, A, scratch.panel, PANEL, depth, Into::set);
    return;
  }
  if (!begun) begin_tile(C, stride, bias, ROWS, columns);
  for (int i = 0; i < ROWS; ++i) copy(scratch.edge + i * PANEL, C + i * stride, columns);
  if (columns > LANES)
    tile<ROWS, 2>(scratch.edge, PANEL, A, scratch.panel, PANEL, depth, Into::add);
  else
    tile<ROWS, 1>(scratch.edge, PANEL, A, scratch.panel, PANEL, depth, Into::add);
  for (int i = 0; i < ROWS; ++i) copy(C + i * stride, scratch.edge + i * PANEL, columns);
}

// All rows of a block with the panel in scratch. A holds plain rows or, with `strips`, packed ones.
__attribute__((noinline)) void multiply_panel(float* C, int64_t stride, Left A, bool strips,
                                              const ProductScratch& scratch, const Block& block,
                                              bool begun, const float* bias) {
  for (int64_t i = 0, height; i < block.rows; i += height) {
    const int64_t left = block.rows - i;
    height = left >= BAND ? BAND : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const Left from = strips ? Left{A.data + i / LANES * LANES * block.depth + i % LANES, 1, LANES}
                            : Left{A.data + i * A.row, A.row, A.step};
    float* to = C + i * stride;
    const int64_t depth = block.depth, columns = block.columns;
    switch (height) {
      case 8: panel_band<8>(to, stride, from, scratch, depth, columns, begun, bias); break;
      case 4: panel_band<4>(to, stride, from, scratch, depth, columns, begun, bias); break;
      case 2: panel_band<2>(to, stride, from, scratch, depth, columns, begun, bias); break;
      default: panel_band<1>(to, stride, from, scratch, depth, columns, begun, bias);
    }
  }
}

// Rows [first, last) of one group's C, at most PRODUCT_ROWS.
inline void multiply_rows(const ProductJob& job, const ProductUnit& unit,
                          const ProductScratch& scratch) {
  const pfsr_product& p = job.shape;
  const float* A = job.A + unit.group * p.A_group + unit.first_row * p.A_row;
  const float* B = job.B + unit.group * p.B_group;
  const float* bias = job.bias ? job.bias + unit.group * p.columns : nullptr;
  float* C = job.C + (unit.group * p.rows + unit.first_row) * p.columns;
  const int64_t rows = unit.last_row - unit.first_row;
  if (p.depth == 0 && !p.add) begin_tile(C, p.columns, bias, rows, p.columns);
  for (int64_t k = 0; k < p.depth; k += DEPTH) {
    const int64_t depth = p.depth - k < DEPTH ? p.depth - k : DEPTH;
    const bool strips = p.A_step != 1, begun = p.add || k > 0;
    Left from{A + k * p.A_step, p.A_row, p.A_step};
    if (strips) {
      pack_rows(scratch.A, from, rows, depth);
      from.data = scratch.A;
    }
    for (int64_t j = 0; j < p.columns; j += PANEL) {
      const int64_t columns = p.columns - j < PANEL ? p.columns - j : PANEL;
      pack_panel(scratch.panel, B + k * p.B_step + j * p.B_column, p.B_step, p.B_column, depth,
                 columns);
      multiply_panel(C + j, p.columns, from, strips, scratch, {rows, columns, depth}, begun,
                     bias ? bias + j : nullptr);
    }
  }
}

}  // namespace
