// What both passes do to a chunk of positions: project and convolve it, turn its step sizes into
// decays, and multiply its B and C.
#pragma once

#include "mixer.h"
#include "product.h"
#include "vector.h"
#include "weights.h"

namespace {

struct Heads {  // a range of heads
  int64_t first, last;
};

struct Chunk {  // positions start .. start + q of a row
  int64_t start, q;
  bool first() const { return start == 0; }
};

// Calls visit(first channel, channels), padded, for the heads' parts of x, then for B and C.
template <class Visit>
PFSR_INLINE void each_part(const Sizes& s, Heads heads, Visit visit) {
  visit(heads.first * s.P_pad, (heads.last - heads.first) * s.P_pad);
  visit(s.B_channel(), 2 * s.N_pad);
}

// rows of `count` numbers and stride `from_stride` to rows of padded(count), zeros behind.
PFSR_INLINE void widen(float* to, const float* from, int64_t from_stride, int64_t rows,
                       int64_t count) {
  for (int64_t t = 0; t < rows; ++t) {
    copy(to + t * padded(count), from + t * from_stride, count);
    fill(to + t * padded(count) + count, 0, padded(count) - count);
  }
}

PFSR_INLINE void narrow(float* to, const float* from, int64_t rows, int64_t count) {
  for (int64_t t = 0; t < rows; ++t) copy(to + t * count, from + t * padded(count), count);
}

// Positions first .. last of a row's u (L, D) to projected rows (last - first, width).
inline void project_rows(const Sizes& s, int64_t first, int64_t last, const Weights& weights,
                         const float* row, float* projected) {
  multiply<Part::all, Into::set>(projected, s.width, {row + first * s.D, s.D, 1},
                                 weights.in_turned, s.width, last - first, s.width, s.D);
}

// projected (K - 1 + q, width): the chunk's positions and the K - 1 before them, which the
// convolution reaches; zeros before the row's beginning.
inline void project(const Sizes& s, Chunk chunk, const Weights& weights, const float* row,
                    float* projected) {
  const int64_t reach = s.K - 1, missing = chunk.start < reach ? reach - chunk.start : 0;
  fill(projected, 0, missing * s.width);
  project_rows(s, chunk.start - reach + missing, chunk.start + chunk.q, weights, row,
               projected + missing * s.width);
}

// activated (q, channels_pad) = silu(causal convolution of the projected rows); the rows up to the
// next multiple of LANES become zeros. slope, with SLOPE, gets the derivative of silu.
template <bool SLOPE>
void convolve(const Sizes& s, Heads heads, int64_t q, const Weights& weights,
              const float* projected, float* activated, float* slope) {
  each_part(s, heads, [&](int64_t first, int64_t count) {
    for (int64_t c = first; c < first + count; c += LANES)
      for (int64_t t = 0; t < q; ++t) {
        Vec v = load(weights.bias + c);
        for (int64_t k = 0; k < s.K; ++k)
          v += load(weights.taps + k * s.channels_pad + c) *
               load(projected + (t + k) * s.width + s.x_column() + c);
        const Vec open = sigmoid(v);
        store(activated + t * s.channels_pad + c, v * open);
        if (SLOPE) store(slope + t * s.channels_pad + c, open * (1.0f + v * (1.0f - open)));
      }
  });
  fill(activated + q * s.channels_pad, 0, (rounded_up(q, LANES) - q) * s.channels_pad);
}

// Of one head and one chunk, at each of its positions t; r_t = dt_1 + ... + dt_t in the chunk.
struct Decays {
  explicit Decays(Arena& arena)
      : raw(arena.take(CHUNK)), dt(arena.take(CHUNK)), log_kept(arena.take(CHUNK)),
        kept(arena.take(CHUNK)), left(arena.take(CHUNK)), before(arena.take(CHUNK)),
        anchor(arena.take(CHUNK)), gate(arena.take(CHUNK)) {}

  float* raw;       // dt before softplus
  float* dt;
  float* log_kept;  // a r_t
  float* kept;      // exp(a r_t): what position t still sees of the state before the chunk
  float* left;      // exp(a (r_q - r_t)): what the state after the chunk still has of position t
  float* before;    // c_{t-1}, the sum of all dt before position t
  float* anchor;    // exp(a' c_{t-1})
  float* gate;
  float a, a_anchored;
  float chunk_dt;    // r_q
  float chunk_kept;  // exp(a r_q)
};

PFSR_INLINE float exponential_of(float x) { return exponential(splat(x))[0]; }

// A column of q positions plus `bias`, zeros up to `end`.
PFSR_INLINE void gather(float* to, const float* from, int64_t stride, float bias, int64_t q,
                        int64_t end) {
  for (int64_t t = 0; t < q; ++t) to[t] = from[t * stride] + bias;
  fill(to + q, 0, end - q);
}

// `steps` is the column of dt at the chunk's first position, `c` the sum of dt before the chunk.
inline void find_decays(const Sizes& s, int64_t head, int64_t q, const Weights& weights,
                        const float* steps, float c, Decays& d) {
  const int64_t end = rounded_up(q, LANES);
  gather(d.raw, steps + head, s.width, weights.dt_bias[head], q, end);
  for (int64_t t = 0; t < end; t += LANES) store(d.dt + t, softplus(load(d.raw + t)));
  d.a = -exponential_of(weights.A_log[head]);
  float r = 0;
  for (int64_t t = 0; t < q; ++t) {
    d.before[t] = c + r;
    r += d.dt[t];
    d.log_kept[t] = d.a * r;
  }
  fill(d.before + q, c + r, end - q);
  fill(d.log_kept + q, d.a * r, end - q);
  d.chunk_dt = r;
  const Vec last = splat(d.a * r);
  d.chunk_kept = exponential(last)[0];
  for (int64_t t = 0; t < end; t += LANES) {
    store(d.kept + t, exponential(load(d.log_kept + t)));
    store(d.left + t, exponential(last - load(d.log_kept + t)));
  }
  if (!s.anchored) return;
  d.a_anchored = -exponential_of(weights.A_log_anchored[head]);
  gather(d.gate, steps + s.H + head, s.width, weights.gate_bias[head], q, end);
  for (int64_t t = 0; t < end; t += LANES) {
    store(d.gate + t, sigmoid(load(d.gate + t)));
    store(d.anchor + t, exponential(d.a_anchored * load(d.before + t)));
  }
}

// gram (q, CHUNK): C_t . B_s for s <= t; both directions and all heads read it.
inline void find_gram(const Sizes& s, int64_t q, const float* activated, float* B_turned,
                      float* gram) {
  const int64_t end = rounded_up(q, LANES);
  transpose(B_turned, CHUNK, activated + s.B_channel(), s.channels_pad, end, s.N_pad);
  multiply<Part::lower_columns, Into::set>(gram, CHUNK,
                                           {activated + s.C_channel(), s.channels_pad, 1},
                                           B_turned, CHUNK, q, end, s.N);
}

// scaled (q, N_all): rows of B or C (their first channel at `from`), once times `forward` and,
// anchored, once times `anchored`.
PFSR_INLINE void scale_rows(const Sizes& s, int64_t q, const float* from, const float* forward,
                            const float* anchored, float* scaled) {
  for (int64_t t = 0; t < q; ++t)
    for (int64_t n = 0; n < s.N_pad; n += LANES) {
      const Vec v = load(from + t * s.channels_pad + n);
      store(scaled + t * s.N_all + n, v * forward[t]);
      if (s.anchored) store(scaled + t * s.N_all + s.N_pad + n, v * anchored[t]);
    }
}

// u (q, P_pad) = dt x of one head, rows up to the next multiple of LANES zero.
PFSR_INLINE void find_drive(const Sizes& s, int64_t head, int64_t q, const float* activated,
                            const float* dt, float* u) {
  for (int64_t t = 0; t < rounded_up(q, LANES); ++t)
    for (int64_t p = 0; p < s.P_pad; p += LANES)
      store(u + t * s.P_pad + p,
            load(activated + t * s.channels_pad + head * s.P_pad + p) * (t < q ? dt[t] : 0.0f));
}

// Calls visit(chunk) for the positions [first, last) of a row in chunks.
template <class Visit>
PFSR_INLINE void each_chunk(int64_t first, int64_t last, Visit visit) {
  for (int64_t start = first; start < last; start += CHUNK)
    visit(Chunk{start, last - start < CHUNK ? last - start : CHUNK});
}

}  // namespace
