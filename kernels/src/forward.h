// The forward pass: projection, convolution, both directions of the dual form, gate, norm and
// projection, chunk by chunk.
#pragma once

#include "parts.h"

namespace {

struct ForwardScratch {
  ForwardScratch(const Sizes& s, Arena& arena)
      : weights(s, arena), decays(arena), projected(arena.take((CHUNK + s.K) * s.width)),
        activated(arena.take(CHUNK * s.channels_pad)), B_turned(arena.take(s.N_pad * CHUNK)),
        gram(arena.take(CHUNK * CHUNK)), mixing(arena.take(CHUNK * CHUNK)),
        scaled(arena.take(CHUNK * s.N_all)), u(arena.take(CHUNK * s.P_pad)),
        y(arena.take(CHUNK * s.I_pad)), normed(arena.take(CHUNK * s.I_pad)),
        out(arena.take(CHUNK * s.D_pad)), states(arena.take(s.H * s.N_all * s.P_pad)),
        c(arena.take(s.H)) {}

  Weights weights;
  Decays decays;
  float *projected, *activated, *B_turned, *gram, *mixing, *scaled, *u, *y, *normed, *out;
  float *states, *c;  // per head: h and S, (N_all, P_pad), and the sum of dt
};

// mixing (q, CHUNK): weight of input s in output t of the same chunk; zero for s > t.
inline void find_mixing(const Sizes& s, int64_t q, const Decays& d, const float* gram,
                        float* mixing) {
  for (int64_t t = 0; t < q; ++t)
    for (int64_t i = 0; i <= t; i += LANES) {
      Vec weight = exponential(smaller(d.log_kept[t] - load(d.log_kept + i), Vec{}));
      if (s.anchored) weight += d.gate[t] * load(d.anchor + i);
      store(mixing + t * CHUNK + i, first_lanes(weight * load(gram + t * CHUNK + i), t + 1 - i));
    }
}

// states (N_all, P_pad) after the chunk; at the first chunk they are only set.
inline void advance_states(const Sizes& s, int64_t head, Chunk chunk, ForwardScratch& f) {
  const Decays& d = f.decays;
  float* states = f.states + head * s.N_all * s.P_pad;
  scale_rows(s, chunk.q, f.activated + s.B_channel(), d.left, d.anchor, f.scaled);
  const Left B{f.scaled, 1, s.N_all};
  if (chunk.first()) {
    multiply<Part::all, Into::set>(states, s.P_pad, B, f.u, s.P_pad, s.N_all, s.P_pad, chunk.q);
    return;
  }
  for (int64_t i = 0; i < s.N_pad * s.P_pad; i += LANES)
    store(states + i, load(states + i) * d.chunk_kept);
  multiply<Part::all, Into::add>(states, s.P_pad, B, f.u, s.P_pad, s.N_all, s.P_pad, chunk.q);
}

// One head's columns of y (q, I_pad), with the skip term; then the states, if there is `more`.
inline void forward_head(const Sizes& s, int64_t head, Chunk chunk, bool more, ForwardScratch& f,
                         float* y) {
  const int64_t q = chunk.q, column = head * s.P_pad;
  find_drive(s, head, q, f.activated, f.decays.dt, f.u);
  find_mixing(s, q, f.decays, f.gram, f.mixing);
  for (int64_t t = 0; t < q; ++t)
    for (int64_t p = column; p < column + s.P_pad; p += LANES)
      store(y + t * s.I_pad + p, f.weights.D[head] * load(f.activated + t * s.channels_pad + p));
  multiply<Part::until_row, Into::add>(y + column, s.I_pad, {f.mixing, CHUNK, 1}, f.u, s.P_pad, q,
                                       s.P_pad, q);
  if (!chunk.first()) {
    scale_rows(s, q, f.activated + s.C_channel(), f.decays.kept, f.decays.gate, f.scaled);
    multiply<Part::all, Into::add>(y + column, s.I_pad, {f.scaled, s.N_all, 1},
                                   f.states + head * s.N_all * s.P_pad, s.P_pad, q, s.P_pad,
                                   s.N_all);
  }
  if (more) advance_states(s, head, chunk, f);
}

// The states before the chunk that follows, transposed to (P_pad, N_all), and c.
inline void keep_states(const Sizes& s, int64_t head, Chunk chunk, const ForwardScratch& f,
                        float* kept) {
  float* to = kept + s.kept_y_floats() + (chunk.start / CHUNK * s.H + head) * s.state_floats;
  transpose(to, s.N_all, f.states + head * s.N_all * s.P_pad, s.P_pad, s.N_all, s.P_pad);
  to[s.P_pad * s.N_all] = f.c[head];
}

// y (q, I_pad) of a range of heads; `projected` begins K - 1 positions before the chunk.
inline void forward_chunk(const Sizes& s, Heads heads, Chunk chunk, bool more,
                          const float* projected, float* y, float* kept, ForwardScratch& f) {
  convolve<false>(s, heads, chunk.q, f.weights, projected, f.activated, nullptr);
  find_gram(s, chunk.q, f.activated, f.B_turned, f.gram);
  const float* steps = projected + (s.K - 1) * s.width + s.steps_column;
  for (int64_t h = heads.first; h < heads.last; ++h) {
    find_decays(s, h, chunk.q, f.weights, steps, f.c[h], f.decays);
    forward_head(s, h, chunk, more, f, y);
    f.c[h] += f.decays.chunk_dt;
    if (more && kept) keep_states(s, h, chunk, f, kept);
  }
}

// normed (q, I_pad) = rmsnorm(y silu(z)); `z` has rows of stride width.
inline void gate_and_norm(const Sizes& s, int64_t q, const float* norm, const float* z,
                          const float* y, float* normed) {
  for (int64_t t = 0; t < q; ++t, z += s.width, y += s.I_pad, normed += s.I_pad) {
    Vec squares{};
    for (int64_t i = 0; i < s.I_pad; i += LANES) {
      const Vec v = load(z + i), gated = load(y + i) * v * sigmoid(v);
      squares += gated * gated;
      store(normed + i, gated);
    }
    const float mean = sum(squares) / static_cast<float>(s.I);
    const float scale = 1.0f / __builtin_sqrtf(mean + s.eps);
    for (int64_t i = 0; i < s.I_pad; i += LANES)
      store(normed + i, load(normed + i) * load(norm + i) * scale);
  }
}

// y and z to the chunk's rows of the output (q, D).
inline void leave_chunk(const Sizes& s, Chunk chunk, const float* z, const float* y,
                        float* row_out, ForwardScratch& f) {
  gate_and_norm(s, chunk.q, f.weights.norm, z, y, f.normed);
  multiply<Part::all, Into::set>(f.out, s.D_pad, {f.normed, s.I_pad, 1}, f.weights.out_turned,
                                 s.D_pad, chunk.q, s.D_pad, s.I_pad);
  narrow(row_out + chunk.start * s.D, f.out, chunk.q, s.D);
}

// Where y (L, I_pad) of a row lies, or null for a chunk's scratch.
PFSR_INLINE float* y_of(const Sizes& s, const Job& job, const Unit& unit, int64_t row) {
  if (job.kept) return job.kept + row * s.kept_floats();
  return unit.exchange.y ? unit.exchange.y + row * s.L * s.I_pad : nullptr;
}

// Where projected rows lie, beginning K - 1 positions before the row's first.
PFSR_INLINE float* projected_of(const Sizes& s, const Unit& unit, int64_t row) {
  return unit.exchange.projected + row * (s.K - 1 + s.L) * s.width;
}

// All of a row, or those of its heads that the unit has.
inline void forward_row(const Sizes& s, const Job& job, const Unit& unit, int64_t row,
                        ForwardScratch& f) {
  const bool divided = unit.exchange.projected;
  const int64_t length = length_of(job, row);
  float *out = job.out + row * s.L * s.D, *y_row = y_of(s, job, unit, row);
  fill(f.c, 0, s.H);
  each_chunk(0, length, [&](Chunk chunk) {
    float* y = y_row ? y_row + chunk.start * s.I_pad : f.y;
    float* projected = f.projected;
    if (divided)
      projected = projected_of(s, unit, row) + chunk.start * s.width;
    else
      project(s, chunk, f.weights, job.u + row * s.L * s.D, projected);
    forward_chunk(s, {unit.first_head, unit.last_head}, chunk, chunk.start + CHUNK < length,
                  projected, y, job.kept ? job.kept + row * s.kept_floats() : nullptr, f);
    if (!divided) leave_chunk(s, chunk, projected + (s.K - 1) * s.width, y, out, f);
  });
  if (unit.first_head == 0) fill(out + length * s.D, 0, (s.L - length) * s.D);
}

// For divided heads: positions of one row before and after forward_row.
inline void enter_span(const Sizes& s, const Job& job, const Unit& unit, const Weights& weights) {
  const int64_t row = unit.first_row;
  project_rows(s, unit.first, unit.last, weights, job.u + row * s.L * s.D,
               projected_of(s, unit, row) + (s.K - 1 + unit.first) * s.width);
}

inline void leave_span(const Sizes& s, const Job& job, const Unit& unit, ForwardScratch& f) {
  const int64_t row = unit.first_row;
  const float* z = projected_of(s, unit, row) + (s.K - 1) * s.width;
  const float* y = y_of(s, job, unit, row);
  each_chunk(unit.first, unit.last, [&](Chunk chunk) {
    leave_chunk(s, chunk, z + chunk.start * s.width, y + chunk.start * s.I_pad,
                job.out + row * s.L * s.D, f);
  });
}

}  // namespace
