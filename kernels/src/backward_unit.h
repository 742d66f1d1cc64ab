// The backward pass's two ends, the projections with gate and norm, and its walk through the rows
// and chunks of a unit.
#pragma once

#include "backward.h"
#include "forward.h"

namespace {

// grad_normed (q, I_pad) and y to normed, the gradient of y, the columns of z and the norm's weight.
inline void gate_and_norm_backward(const Sizes& s, int64_t q, const float* z, const float* y,
                                   float* grad_z, float* grad_y, BackwardScratch& b,
                                   Gradients& gradients) {
  const float inner = static_cast<float>(s.I);
  const float* norm = b.weights.norm;
  for (int64_t t = 0; t < q; ++t, z += s.width, grad_z += s.width, y += s.I_pad, grad_y += s.I_pad) {
    const float* arriving = b.grad_normed + t * s.I_pad;
    float* normed = b.normed + t * s.I_pad;
    Vec squares{}, dots{};
    for (int64_t i = 0; i < s.I_pad; i += LANES) {
      const Vec v = load(z + i), open = sigmoid(v), gated = load(y + i) * v * open;
      squares += gated * gated;
      dots += gated * load(arriving + i) * load(norm + i);
      store(normed + i, gated);
      store(grad_z + i, open);
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / inner + s.eps);
    const float pull = sum(dots) * scale * scale / inner;
    for (int64_t i = 0; i < s.I_pad; i += LANES) {
      const Vec v = load(z + i), open = load(grad_z + i), gated = load(normed + i);
      const Vec weighted = load(arriving + i) * load(norm + i), plain = gated * scale;
      store(gradients.norm + i, load(gradients.norm + i) + load(arriving + i) * plain);
      store(normed + i, plain * load(norm + i));
      const Vec g = scale * (weighted - gated * pull);
      store(grad_y + i, g * v * open);
      store(grad_z + i, g * load(y + i) * open * (1.0f + v * (1.0f - open)));
    }
  }
}

// From the output's gradient back to y and z, and the weight of the output projection.
inline void leave_backward(const Sizes& s, Chunk chunk, const float* grad_out, const float* z,
                           const float* y, float* grad_z, float* grad_y, BackwardScratch& b,
                           Gradients& gradients) {
  const int64_t q = chunk.q;
  widen(b.wide, grad_out + chunk.start * s.D, s.D, q, s.D);
  multiply<Part::all, Into::set>(b.grad_normed, s.I_pad, {b.wide, s.D_pad, 1}, b.weights.out,
                                 s.I_pad, q, s.I_pad, s.D);
  gate_and_norm_backward(s, q, z, y, grad_z, grad_y, b, gradients);
  multiply<Part::all, Into::add>(gradients.out, s.D_pad, {b.normed, 1, s.I_pad}, b.wide, s.D_pad,
                                 s.I_pad, s.D_pad, q);
}

// From the projected rows' gradient (q, width) back to u, and the weight of the input projection.
inline void enter_backward(const Sizes& s, Chunk chunk, const float* u, const float* grad_projected,
                           float* grad_u, BackwardScratch& b, Gradients& gradients) {
  const int64_t q = chunk.q;
  widen(b.wide, u + chunk.start * s.D, s.D, q, s.D);
  multiply<Part::all, Into::add>(gradients.in, s.D_pad, {grad_projected, 1, s.width}, b.wide,
                                 s.D_pad, s.width, s.D_pad, q);
  multiply<Part::all, Into::set>(b.wide, s.D_pad, {grad_projected, s.width, 1}, b.weights.in,
                                 s.D_pad, q, s.D_pad, s.width);
  narrow(grad_u + chunk.start * s.D, b.wide, q, s.D);
}

// Between the two ends: the gradient of y (q, I_pad) to the projected rows' columns of x, dt, gate
// and, at grad_BC, of B and C. `states` of all heads before the chunk, null before the first.
inline void backward_chunk(const Sizes& s, Heads heads, Chunk chunk, bool more,
                           const float* projected, const float* states, const float* grad_y,
                           float* grad_projected, float* grad_BC, int64_t grad_BC_stride,
                           BackwardScratch& b, Gradients& gradients) {
  const int64_t q = chunk.q;
  const float* steps = projected + (s.K - 1) * s.width + s.steps_column;
  move_to_chunk(s, q, !more, b);
  convolve<true>(s, heads, q, b.weights, projected, b.activated, b.slope);
  find_gram(s, q, b.activated, b.B_turned, b.gram);
  for (int64_t h = heads.first; h < heads.last; ++h) {
    const float* before = states ? states + h * s.state_floats : nullptr;
    find_decays(s, h, q, b.weights, steps, before ? before[s.P_pad * s.N_all] : 0, b.decays);
    b.grad_y = grad_y + h * s.P_pad;
    backward_head(s, h, chunk, more, before, b, grad_projected + s.steps_column, gradients);
  }
  gram_backward(s, q, b);
  const int64_t x = heads.first * s.P_pad, x_count = (heads.last - heads.first) * s.P_pad;
  convolve_backward(s, x, x_count, q, b, projected, grad_projected + s.x_column() + x, s.width,
                    gradients);
  convolve_backward(s, s.B_channel(), 2 * s.N_pad, q, b, projected, grad_BC, grad_BC_stride,
                    gradients);
}

inline void backward_row(const Sizes& s, const Job& job, const Unit& unit, int64_t row,
                         BackwardScratch& b, Gradients& gradients) {
  const Exchange& shared = unit.exchange;
  const bool divided = shared.projected;
  const int64_t length = length_of(job, row), at = row * s.L;
  const float *u = job.u + at * s.D, *y = job.kept + row * s.kept_floats();
  float* grad_u = job.grad_u + at * s.D;
  fill(b.grad_c, 0, s.H);
  for (int64_t i = (length + CHUNK - 1) / CHUNK - 1; i >= 0; --i) {
    const int64_t start = i * CHUNK;
    const Chunk chunk{start, length - start < CHUNK ? length - start : CHUNK};
    const float* states = i ? y + s.kept_y_floats() + (i - 1) * s.H * s.state_floats : nullptr;
    float *projected = b.projected, *grad_projected = b.grad_projected, *grad_y = b.grad_y_all;
    if (divided) {
      projected = projected_of(s, unit, row) + start * s.width;
      grad_projected = shared.grad_projected + (at + start) * s.width;
      grad_y = shared.grad_y + (at + start) * s.I_pad;
    } else {
      project(s, chunk, b.weights, u, projected);
      leave_backward(s, chunk, job.grad_out + at * s.D, projected + (s.K - 1) * s.width,
                     y + start * s.I_pad, grad_projected, grad_y, b, gradients);
    }
    const bool apart = shared.grad_BC;
    float* grad_BC = apart ? shared.grad_BC + (at + start) * 2 * s.N_pad
                           : grad_projected + s.x_column() + s.B_channel();
    backward_chunk(s, {unit.first_head, unit.last_head}, chunk, start + CHUNK < length, projected,
                   states, grad_y, grad_projected, grad_BC, apart ? 2 * s.N_pad : s.width, b,
                   gradients);
    if (!divided) enter_backward(s, chunk, u, grad_projected, grad_u, b, gradients);
  }
  if (unit.first_head == 0) fill(grad_u + length * s.D, 0, (s.L - length) * s.D);
}

// For divided heads: positions of one row before and after backward_row.
inline void leave_span_backward(const Sizes& s, const Job& job, const Unit& unit,
                                BackwardScratch& b, Gradients& gradients) {
  const int64_t row = unit.first_row, at = row * s.L;
  float* projected = projected_of(s, unit, row) + (s.K - 1) * s.width;
  project_rows(s, unit.first, unit.last, b.weights, job.u + at * s.D,
               projected + unit.first * s.width);
  each_chunk(unit.first, unit.last, [&](Chunk chunk) {
    const int64_t t = at + chunk.start;
    leave_backward(s, chunk, job.grad_out + at * s.D, projected + chunk.start * s.width,
                   job.kept + row * s.kept_floats() + chunk.start * s.I_pad,
                   unit.exchange.grad_projected + t * s.width, unit.exchange.grad_y + t * s.I_pad,
                   b, gradients);
  });
}

inline void enter_span_backward(const Sizes& s, const Job& job, const Unit& unit,
                                BackwardScratch& b, Gradients& gradients) {
  const int64_t at = unit.first_row * s.L;
  each_chunk(unit.first, unit.last, [&](Chunk chunk) {
    enter_backward(s, chunk, job.u + at * s.D,
                   unit.exchange.grad_projected + (at + chunk.start) * s.width,
                   job.grad_u + at * s.D, b, gradients);
  });
}

}  // namespace
