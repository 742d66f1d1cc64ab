// The backward pass of a unit. It goes through a row's chunks from the last to the first, computes
// the forward pass's numbers of a chunk again from the kept states, and carries the gradients of
// the states. Letters: M_ts = dy_t . u_s, G_ts = C_t . B_s, E_ts = exp(a (r_t - r_s)),
// A_s = exp(a' c_{s-1}), g_t the gate, e_t = exp(a r_t), k_s = exp(a (r_q - r_s)), u = dt x.
#pragma once

#include "backward_scratch.h"

namespace {

// From pairs = M: the weights of the forward pass (mixing), the Gram matrix's gradient, the sums over
// rows and columns of M G E and M G g A, and the first's share of the gradient of A_log. The
// diagonal of E is 1 whatever a and dt are; leaving it out spares a difference of large sums.
inline void differentiate_mixing(const Sizes& s, int64_t q, BackwardScratch& b) {
  const Decays& d = b.decays;
  fill(b.column_forward, 0, CHUNK);
  fill(b.column_anchored, 0, CHUNK);
  Vec grad_A{};
  for (int64_t t = 0; t < q; ++t) {
    Vec forward_sum{}, anchored_sum{};
    for (int64_t i = 0; i <= t; i += LANES) {
      const int64_t at = t * CHUNK + i, live = t + 1 - i;
      const Vec gram = load(b.gram + at), pair = load(b.pairs + at);
      const Vec gap = smaller(d.log_kept[t] - load(d.log_kept + i), Vec{});
      const Vec forward = first_lanes(exponential(gap), live), both = pair * gram;
      const Vec through = first_lanes(both * forward, live - 1);
      Vec weight = forward;
      forward_sum += through;
      grad_A += through * gap;
      store(b.column_forward + i, load(b.column_forward + i) + through);
      if (s.anchored) {
        const Vec anchored = first_lanes(d.gate[t] * load(d.anchor + i), live);
        weight += anchored;
        anchored_sum += both * anchored;
        store(b.column_anchored + i, load(b.column_anchored + i) + both * anchored);
      }
      store(b.mixing + at, weight * gram);
      store(b.grad_gram + at, load(b.grad_gram + at) + pair * weight);
    }
    b.row_forward.set(t, forward_sum);
    b.row_anchored.set(t, anchored_sum);
  }
  b.row_forward.finish(q);
  b.row_anchored.finish(q);
  b.grad_A = sum(grad_A);
}

// What both state products share. `product` (q, N_all) are rows of dy (or u) times the states (or
// their gradients); adds product_h forward_t + product_S anchored_t to the gradient of C (or B)
// and gives the dot products of both parts with C (or B), in row_forward and row_anchored.
inline void split_state_product(const Sizes& s, int64_t q, const float* forward,
                                const float* anchored, const float* channel, float* grad_channel,
                                BackwardScratch& b) {
  for (int64_t t = 0; t < q; ++t) {
    Vec forward_sum{}, anchored_sum{};
    for (int64_t n = 0; n < s.N_pad; n += LANES) {
      const int64_t at = t * s.channels_pad + n;
      const Vec own = load(channel + at);
      const Vec one = load(b.product + t * s.N_all + n) * forward[t];
      Vec gradient = load(grad_channel + at) + one;
      forward_sum += one * own;
      if (s.anchored) {
        const Vec other = load(b.product + t * s.N_all + s.N_pad + n) * anchored[t];
        gradient += other;
        anchored_sum += other * own;
      }
      store(grad_channel + at, gradient);
    }
    b.row_forward.set(t, forward_sum);
    b.row_anchored.set(t, anchored_sum);
  }
  b.row_forward.finish(q);
  b.row_anchored.finish(q);
}

// y_t = ... + e_t C_t h + g_t C_t S: gradients of C, of e and of g. `states` is (P_pad, N_all).
inline void read_backward(const Sizes& s, int64_t q, const float* states, BackwardScratch& b) {
  multiply<Part::all, Into::set>(b.product, s.N_all, {b.grad_y, s.I_pad, 1}, states, s.N_all, q,
                                 s.N_all, s.P);
  split_state_product(s, q, b.decays.kept, b.decays.gate, b.activated + s.C_channel(),
                      b.grad_channels + s.C_channel(), b);
  for (int64_t t = 0; t < q; ++t) {
    b.grad_log[t] += b.row_forward.total[t];
    b.grad_A += b.row_forward.total[t] * b.decays.log_kept[t];
    b.grad_gate[t] += b.row_anchored.total[t];
  }
}

// The states after the chunk = e_q h + sum k_s u_s B_s, S + sum A_s u_s B_s: gradients of u, B, k
// and A from those of the states, and of e_q by the states before.
inline void advance_backward(const Sizes& s, int64_t head, int64_t q, const float* states,
                             BackwardScratch& b) {
  float* grad_states = b.grad_states + head * s.N_all * s.P_pad;
  const Decays& d = b.decays;
  transpose(b.grad_states_turned, s.N_all, grad_states, s.P_pad, s.N_all, s.P_pad);
  multiply<Part::all, Into::set>(b.product, s.N_all, {b.u, s.P_pad, 1}, b.grad_states_turned,
                                 s.N_all, q, s.N_all, s.P);
  split_state_product(s, q, d.left, d.anchor, b.activated + s.B_channel(),
                      b.grad_channels + s.B_channel(), b);
  const float last = d.log_kept[q - 1];
  float end = 0;
  for (int64_t t = 0; t < q; ++t) {
    b.grad_log[t] -= b.row_forward.total[t];
    end += b.row_forward.total[t];
    b.grad_A += b.row_forward.total[t] * (last - d.log_kept[t]);
    b.column_anchored[t] += b.row_anchored.total[t];
  }
  if (states) {
    Vec dots{};
    for (int64_t p = 0; p < s.P_pad; ++p)
      for (int64_t n = 0; n < s.N_pad; n += LANES)
        dots += load(states + p * s.N_all + n) * load(b.grad_states_turned + p * s.N_all + n);
    const float through = d.chunk_kept * sum(dots);
    end += through;
    b.grad_A += through * last;
  }
  b.grad_log[q - 1] += end;
  scale_rows(s, q, b.activated + s.B_channel(), d.left, d.anchor, b.scaled);
  multiply<Part::all, Into::add>(b.grad_u, s.P_pad, {b.scaled, s.N_all, 1}, grad_states, s.P_pad,
                                 q, s.P_pad, s.N_all);
}

// Gradients of the states before the chunk from those after it (`more`: there are some).
inline void states_backward(const Sizes& s, int64_t head, int64_t q, bool more,
                            BackwardScratch& b) {
  float* grad_states = b.grad_states + head * s.N_all * s.P_pad;
  const Decays& d = b.decays;
  scale_rows(s, q, b.activated + s.C_channel(), d.kept, d.gate, b.scaled);
  const Left C{b.scaled, 1, s.N_all};
  if (more) {
    for (int64_t i = 0; i < s.N_pad * s.P_pad; i += LANES)
      store(grad_states + i, load(grad_states + i) * d.chunk_kept);
    multiply<Part::all, Into::add>(grad_states, s.P_pad, C, b.grad_y, s.I_pad, s.N_all, s.P_pad, q);
  } else {
    multiply<Part::all, Into::set>(grad_states, s.P_pad, C, b.grad_y, s.I_pad, s.N_all, s.P_pad, q);
  }
}

// Gradients of dt by way of the decays: r_t, c_{t-1} and what later chunks ask of c.
inline void decays_backward(const Sizes& s, int64_t head, int64_t q, BackwardScratch& b,
                            Gradients& gradients) {
  const Decays& d = b.decays;
  double grad_a_anchored = 0, later = b.grad_c[head], within = 0;  // long sums of both signs
  for (int64_t t = q - 1; t >= 0; --t) {
    within += d.a * b.grad_log[t];
    b.grad_dt[t] = static_cast<float>(within + later);
    if (s.anchored) {
      later += d.a_anchored * b.column_anchored[t];
      grad_a_anchored += b.column_anchored[t] * d.before[t];
    }
  }
  b.grad_c[head] = static_cast<float>(later);
  gradients.A_log[head] += b.grad_A;
  if (s.anchored) gradients.A_log_anchored[head] += static_cast<float>(d.a_anchored * grad_a_anchored);
}

// du to the gradients of x (with the skip term), D and dt.
inline void drive_backward(const Sizes& s, int64_t head, int64_t q, BackwardScratch& b,
                           Gradients& gradients) {
  const float* x = b.activated + head * s.P_pad;
  float* grad_x = b.grad_channels + head * s.P_pad;
  const float skip = b.weights.D[head];
  Vec grad_D{};
  for (int64_t t = 0; t < q; ++t) {
    Vec dots{};
    for (int64_t p = 0; p < s.P_pad; p += LANES) {
      const Vec own = load(x + t * s.channels_pad + p), dy = load(b.grad_y + t * s.I_pad + p);
      const Vec du = load(b.grad_u + t * s.P_pad + p);
      dots += own * du;
      grad_D += own * dy;
      store(grad_x + t * s.channels_pad + p, b.decays.dt[t] * du + skip * dy);
    }
    b.row_dt.set(t, dots);
  }
  b.row_dt.finish(q);
  gradients.D[head] += sum(grad_D);
}

// The columns of dt and of the gate's logits (`steps`, rows of stride width), and their biases.
inline void steps_backward(const Sizes& s, int64_t head, int64_t q, BackwardScratch& b,
                           float* steps, Gradients& gradients) {
  const Decays& d = b.decays;
  float* to = steps + head;
  Vec bias{}, gate_bias{};
  for (int64_t t = 0; t < q; t += LANES) {
    const Vec through = first_lanes(
        (load(b.grad_dt + t) + load(b.row_dt.total + t)) * sigmoid(load(d.raw + t)), q - t);
    bias += through;
    store(b.grad_dt + t, through);
    if (!s.anchored) continue;
    const Vec logit = first_lanes(load(b.grad_gate + t) * (1.0f - load(d.gate + t)), q - t);
    gate_bias += logit;
    store(b.grad_gate + t, logit);
  }
  for (int64_t t = 0; t < q; ++t) to[t * s.width] = b.grad_dt[t];
  if (head == s.H - 1) {  // the padding behind the last head
    const int64_t end = s.directions * s.H, count = s.width - s.steps_column - end;
    for (int64_t t = 0; t < q; ++t) fill(steps + t * s.width + end, 0, count);
  }
  gradients.dt_bias[head] += sum(bias);
  if (!s.anchored) return;
  for (int64_t t = 0; t < q; ++t) to[t * s.width + s.H] = b.grad_gate[t];
  gradients.gate_bias[head] += sum(gate_bias);
}

inline void backward_head(const Sizes& s, int64_t head, Chunk chunk, bool more,
                          const float* states, BackwardScratch& b, float* steps,
                          Gradients& gradients) {
  const int64_t q = chunk.q, end = rounded_up(q, LANES);
  find_drive(s, head, q, b.activated, b.decays.dt, b.u);
  transpose(b.u_turned, CHUNK, b.u, s.P_pad, end, s.P_pad);
  multiply<Part::lower_columns, Into::set>(b.pairs, CHUNK, {b.grad_y, s.I_pad, 1}, b.u_turned,
                                           CHUNK, q, end, s.P);
  differentiate_mixing(s, q, b);
  for (int64_t t = 0; t < q; ++t) {
    b.grad_log[t] = b.row_forward.total[t] - b.column_forward[t];
    b.grad_gate[t] = b.row_anchored.total[t];
  }
  multiply<Part::from_row, Into::set>(b.grad_u, s.P_pad, {b.mixing, 1, CHUNK}, b.grad_y, s.I_pad,
                                      q, s.P_pad, q);
  if (states) read_backward(s, q, states, b);
  if (more) advance_backward(s, head, q, states, b);
  if (states) states_backward(s, head, q, more, b);
  decays_backward(s, head, q, b, gradients);
  drive_backward(s, head, q, b, gradients);
  steps_backward(s, head, q, b, steps, gradients);
}

// Gradients of B and C within the chunk, of all heads at once.
inline void gram_backward(const Sizes& s, int64_t q, BackwardScratch& b) {
  multiply<Part::until_row, Into::add>(b.grad_channels + s.C_channel(), s.channels_pad,
                                       {b.grad_gram, CHUNK, 1}, b.activated + s.B_channel(),
                                       s.channels_pad, q, s.N_pad, q);
  multiply<Part::from_row, Into::add>(b.grad_channels + s.B_channel(), s.channels_pad,
                                      {b.grad_gram, 1, CHUNK}, b.activated + s.C_channel(),
                                      s.channels_pad, q, s.N_pad, q);
}

// Through silu and the convolution, channels first .. first + count, to rows of `to`. Rows
// q .. q + K - 2 of grad_channels hold the first rows of the chunk behind, already through silu.
inline void convolve_backward(const Sizes& s, int64_t first, int64_t count, int64_t q,
                              BackwardScratch& b, const float* projected, float* to,
                              int64_t to_stride, Gradients& gradients) {
  const int64_t stride = s.channels_pad;
  for (int64_t c = first; c < first + count; c += LANES) {
    float* gradient = b.grad_channels + c;
    const float* input = projected + s.x_column() + c;
    Vec bias{};
    for (int64_t t = 0; t < q; ++t) {
      const Vec g = load(gradient + t * stride) * load(b.slope + c + t * stride);
      store(gradient + t * stride, g);
      bias += g;
    }
    store(gradients.bias + c, load(gradients.bias + c) + bias);
    for (int64_t k = 0; k < s.K; ++k) {
      Vec tap{};
      for (int64_t t = 0; t < q; ++t)
        tap += load(gradient + t * stride) * load(input + (t + k) * s.width);
      store(gradients.taps + k * stride + c, load(gradients.taps + k * stride + c) + tap);
    }
    for (int64_t t = 0; t < q; ++t) {
      Vec v{};
      for (int64_t k = 0; k < s.K; ++k)
        v += load(b.weights.taps + k * stride + c) * load(gradient + (t + s.K - 1 - k) * stride);
      store(to + t * to_stride + c - first, v);
    }
  }
}

// grad_channels before a chunk: its first K - 1 rows become those behind the new chunk's q rows,
// and the columns of B and C, where gradients are added up, become zero.
inline void move_to_chunk(const Sizes& s, int64_t q, bool last, BackwardScratch& b) {
  for (int64_t k = s.K - 2; k >= 0; --k) {
    float* to = b.grad_channels + (q + k) * s.channels_pad;
    if (last)
      fill(to, 0, s.channels_pad);
    else
      copy(to, b.grad_channels + k * s.channels_pad, s.channels_pad);
  }
  for (int64_t t = 0; t < q; ++t)
    fill(b.grad_channels + t * s.channels_pad + s.B_channel(), 0, 2 * s.N_pad);
  fill(b.grad_gram, 0, CHUNK * CHUNK);
}

}  // namespace
