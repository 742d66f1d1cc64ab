// The forward pass of a unit: convolution, both directions of the dual form, gate and norm.
#pragma once

#include "parts.h"

namespace {

struct ForwardScratch {
  ForwardScratch(const Sizes& s, Arena& arena)
      : weights(s, arena), decays(arena), window(arena.take((CHUNK + s.K) * s.channels_pad)),
        activated(arena.take(CHUNK * s.channels_pad)), B_transposed(arena.take(s.N_pad * CHUNK)),
        gram(arena.take(CHUNK * CHUNK)), mixing(arena.take(CHUNK * CHUNK)),
        scaled(arena.take(CHUNK * s.N_all)), u(arena.take(CHUNK * s.P_pad)),
        y(arena.take(CHUNK * s.P_pad)), states(arena.take(s.H * s.N_all * s.P_pad)),
        c(arena.take(s.H)) {}

  Weights weights;
  Decays decays;
  float *window, *activated, *B_transposed, *gram, *mixing, *scaled, *u, *y;
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
  scale_rows(s, chunk.q, f.activated + s.B_channel(), s.channels_pad, d.left, d.anchor, f.scaled);
  const Left B{f.scaled, 1, s.N_all};
  if (chunk.first()) {
    multiply<Part::all, Into::set>(states, s.P_pad, B, f.u, s.P_pad, s.N_all, s.P_pad, chunk.q);
    return;
  }
  for (int64_t i = 0; i < s.N_pad * s.P_pad; i += LANES)
    store(states + i, load(states + i) * d.chunk_kept);
  multiply<Part::all, Into::add>(states, s.P_pad, B, f.u, s.P_pad, s.N_all, s.P_pad, chunk.q);
}

// y (q, P) of one head, with the skip term, to the columns of `to` (row stride I).
inline void forward_head(const Sizes& s, int64_t head, Chunk chunk, bool more, ForwardScratch& f,
                         float* to) {
  const int64_t q = chunk.q;
  const float* x = f.activated + head * s.P_pad;
  find_drive(s, head, q, f.activated, f.decays.dt, f.u);
  find_mixing(s, q, f.decays, f.gram, f.mixing);
  multiply<Part::until_row, Into::set>(f.y, s.P_pad, {f.mixing, CHUNK, 1}, f.u, s.P_pad, q,
                                       s.P_pad, q);
  if (!chunk.first()) {
    scale_rows(s, q, f.activated + s.C_channel(), s.channels_pad, f.decays.kept, f.decays.gate,
               f.scaled);
    multiply<Part::all, Into::add>(f.y, s.P_pad, {f.scaled, s.N_all, 1},
                                   f.states + head * s.N_all * s.P_pad, s.P_pad, q, s.P_pad,
                                   s.N_all);
  }
  for (int64_t t = 0; t < q; ++t)
    for (int64_t p = 0; p < s.P; p += LANES)
      store_part(to + t * s.I + head * s.P + p,
                 load(f.y + t * s.P_pad + p) +
                     f.weights.D[head] * load(x + t * s.channels_pad + p),
                 s.P - p);
  if (more) advance_states(s, head, chunk, f);
}

// out = rmsnorm(y silu(z)) for q positions; out may be y.
inline void gate_and_norm(const Sizes& s, int64_t q, double eps, const float* norm, const float* z,
                          const float* y, float* out) {
  for (int64_t t = 0; t < q; ++t, z += s.width, y += s.I, out += s.I) {
    Vec squares{};
    for (int64_t i = 0; i < s.I; i += LANES) {
      const Vec v = load_part(z + i, s.I - i);
      const Vec gated = load_part(y + i, s.I - i) * v * sigmoid(v);
      squares += gated * gated;
      store_part(out + i, gated, s.I - i);
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(s.I) + static_cast<float>(eps));
    for (int64_t i = 0; i < s.I; i += LANES)
      store_part(out + i, load_part(out + i, s.I - i) * load_part(norm + i, s.I - i) * scale,
                 s.I - i);
  }
}

// The states before the next chunk, transposed to (P_pad, N_all), and c.
inline void keep_states(const Sizes& s, int64_t head, int64_t next, const ForwardScratch& f,
                        float* kept) {
  float* to = kept + ((next - 1) * s.H + head) * s.state_floats;
  transpose(to, s.N_all, f.states + head * s.N_all * s.P_pad, s.P_pad, s.N_all, s.P_pad);
  to[s.P_pad * s.N_all] = f.c[head];
}

inline void forward_row(const Sizes& s, const Job& job, const Unit& unit, int64_t row,
                        ForwardScratch& f) {
  const Heads heads{unit.first_head, unit.last_head};
  const bool whole = heads.last - heads.first == s.H;
  const int64_t length = job.lengths ? job.lengths[row] : s.L;
  const float* input = job.projected + row * s.L * s.width;
  float* out = job.out + row * s.L * s.I;
  float* y = job.y ? job.y + row * s.L * s.I : out;
  float* kept = job.kept ? job.kept + row * s.kept_floats() : nullptr;
  fill(f.c, 0, s.H);
  for (int64_t start = 0; start < length; start += CHUNK) {
    const Chunk chunk{start, length - start < CHUNK ? length - start : CHUNK};
    const bool more = start + CHUNK < length;
    bring_in(s, heads, chunk, input, f.window);
    convolve<false>(s, heads, chunk.q, f.weights, f.window, f.activated, nullptr);
    find_gram(s, chunk.q, f.activated, f.B_transposed, f.gram);
    for (int64_t h = heads.first; h < heads.last; ++h) {
      find_decays(s, h, chunk, f.weights, input, f.c[h], f.decays);
      forward_head(s, h, chunk, more, f, y + start * s.I);
      f.c[h] += f.decays.chunk_dt;
      if (more && kept) keep_states(s, h, start / CHUNK + 1, f, kept);
    }
    if (whole)
      gate_and_norm(s, chunk.q, job.shape.eps, f.weights.norm, input + start * s.width,
                    y + start * s.I, out + start * s.I);
  }
  if (heads.first == 0) fill(out + length * s.I, 0, (s.L - length) * s.I);
}

}  // namespace
