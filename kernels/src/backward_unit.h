// The backward pass's walk through the rows and chunks of a unit.
#pragma once

#include "backward.h"

namespace {

// Brings one head's dy (q, P) from rows of stride I to (q, P_pad), zeros behind.
inline void bring_grad_y(const Sizes& s, int64_t head, int64_t q, const float* from,
                         BackwardScratch& b) {
  for (int64_t t = 0; t < q; ++t)
    copy_padded(b.grad_y + t * s.P_pad, from + t * s.I + head * s.P, s.P);
}

inline void zero_rows(float* to, int64_t rows, int64_t width, int64_t stride) {
  for (int64_t t = 0; t < rows; ++t) fill(to + t * stride, 0, width);
}

struct RowPointers {
  RowPointers(const Sizes& s, const Job& job, const Unit& unit, int64_t row)
      : length(job.lengths ? job.lengths[row] : s.L),
        input(job.projected + row * s.L * s.width), y(job.y + row * s.L * s.I),
        kept(job.kept ? job.kept + row * s.kept_floats() : nullptr),
        grad_out(job.grad_out + row * s.L * s.I),
        grad_input(job.grad_projected + row * s.L * s.width),
        grad_y(unit.grad_y ? unit.grad_y + row * s.L * s.I : nullptr),
        grad_BC(unit.grad_BC ? unit.grad_BC + row * s.L * 2 * s.N : nullptr) {}

  int64_t length;
  const float *input, *y, *kept, *grad_out;
  float *grad_input, *grad_y, *grad_BC;
};

inline void backward_chunk(const Sizes& s, const Job& job, Heads heads, Chunk chunk,
                           const RowPointers& row, BackwardScratch& b, Gradients& gradients) {
  const int64_t start = chunk.start, index = start / CHUNK;
  const bool more = start + CHUNK < row.length;
  float* grad_input = row.grad_input + start * s.width;
  const float* grad_y = row.grad_y ? row.grad_y + start * s.I : b.grad_y_all;
  move_to_chunk(s, chunk.q, !more, b);
  if (!row.grad_y)
    gate_and_norm_backward(s, chunk.q, job.shape.eps, b.weights.norm, row.input + start * s.width,
                           row.y + start * s.I, row.grad_out + start * s.I, grad_input,
                           b.grad_y_all, gradients.norm);
  bring_in(s, heads, chunk, row.input, b.window);
  convolve<true>(s, heads, chunk.q, b.weights, b.window, b.activated, b.slope);
  find_gram(s, chunk.q, b.activated, b.B_transposed, b.gram);
  for (int64_t h = heads.first; h < heads.last; ++h) {
    const float* states =
        chunk.first() ? nullptr : row.kept + ((index - 1) * s.H + h) * s.state_floats;
    find_decays(s, h, chunk, b.weights, row.input, states ? states[s.P_pad * s.N_all] : 0,
                b.decays);
    bring_grad_y(s, h, chunk.q, grad_y, b);
    backward_head(s, h, chunk, more, states, b, grad_input, gradients);
  }
  gram_backward(s, chunk.q, b);
  convolve_backward(s, heads, chunk, b, grad_input,
                    row.grad_BC ? row.grad_BC + start * 2 * s.N : nullptr, gradients);
}

inline void backward_row(const Sizes& s, const Job& job, const Unit& unit, int64_t row,
                         BackwardScratch& b, Gradients& gradients) {
  const RowPointers at(s, job, unit, row);
  fill(b.grad_c, 0, s.H);
  for (int64_t i = (at.length - 1) / CHUNK; i >= 0 && at.length > 0; --i) {
    const int64_t start = i * CHUNK, rest = at.length - start;
    backward_chunk(s, job, {unit.first_head, unit.last_head},
                   {start, rest < CHUNK ? rest : CHUNK}, at, b, gradients);
  }
  zero_rows(at.grad_input + at.length * s.width, s.L - at.length, s.width, s.width);
}

}  // namespace
