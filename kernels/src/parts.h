// What both passes do to a chunk: bring it in, convolve it, and turn its step sizes into decays.
#pragma once

#include "mixer.h"
#include "product.h"
#include "vector.h"

namespace {

using namespace pfsr;

class Arena {  // hands out aligned pieces of the thread's scratch memory; counts without any
 public:
  explicit Arena(float* start) : start_(start) {}
  float* take(int64_t floats) {
    float* piece = start_ ? start_ + taken_ : nullptr;
    taken_ += padded(floats);
    return piece;
  }
  int64_t taken() const { return taken_; }

 private:
  float* start_;
  int64_t taken_ = 0;
};

struct Heads {  // a range of heads
  int64_t first, last;
};

// Calls visit(padded channel, plain channel, count) for the heads' parts of x, then for B and C.
template <class Visit>
PFSR_INLINE void each_segment(const Sizes& s, Heads heads, Visit visit) {
  for (int64_t h = heads.first; h < heads.last; ++h) visit(h * s.P_pad, h * s.P, s.P);
  visit(s.B_channel(), s.I, s.N);
  visit(s.C_channel(), s.I + s.N, s.N);
}

// Copies `count` numbers and zeros behind them up to the next multiple of PAD.
PFSR_INLINE void copy_padded(float* to, const float* from, int64_t count) {
  for (int64_t i = 0; i < padded(count); i += LANES)
    store(to + i, i < count ? load_part(from + i, count - i) : Vec{});
}

PFSR_INLINE void fill(float* to, float value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// --- a group's parameters, padded ---------------------------------------------------------------

struct Weights {
  Weights(const Sizes& s, Arena& arena)
      : taps(arena.take(s.K * s.channels_pad)), bias(arena.take(s.channels_pad)) {}

  void read(const Sizes& s, const pfsr_parameters& p, int64_t group) {
    const float* weight = p.conv_weight + group * s.channels * s.K;
    const float* plain_bias = p.conv_bias + group * s.channels;
    fill(taps, 0, s.K * s.channels_pad);
    fill(bias, 0, s.channels_pad);
    each_segment(s, {0, s.H}, [&](int64_t at, int64_t from, int64_t count) {
      for (int64_t i = 0; i < count; ++i) bias[at + i] = plain_bias[from + i];
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t i = 0; i < count; ++i)
          taps[k * s.channels_pad + at + i] = weight[(from + i) * s.K + k];
    });
    norm = p.norm_weight + group * s.I;
    dt_bias = p.dt_bias + group * s.H;
    D = p.D + group * s.H;
    A_log = p.A_log + group * s.H;
    A_log_anchored = s.anchored ? p.A_log_anchored + group * s.H : nullptr;
    gate_bias = s.anchored ? p.gate_bias + group * s.H : nullptr;
  }

  float *taps, *bias;  // (K, channels_pad), (channels_pad,)
  const float *norm, *dt_bias, *D, *A_log, *A_log_anchored, *gate_bias;
};

// --- a chunk of q positions ---------------------------------------------------------------------

struct Chunk {
  int64_t start, q;
  bool first() const { return start == 0; }
};

// Rows K - 1 .. K - 1 + q of `window` are the chunk's x, B, C; the K - 1 rows before them are what
// stands before the chunk in the sequence, or zeros.
PFSR_INLINE void bring_in(const Sizes& s, Heads heads, Chunk chunk, const float* row,
                          float* window) {
  for (int64_t i = 0; i < chunk.q + s.K - 1; ++i) {
    const int64_t t = chunk.start + i - (s.K - 1);
    float* to = window + i * s.channels_pad;
    if (t < 0) {
      fill(to, 0, s.channels_pad);
      continue;
    }
    const float* from = row + t * s.width + s.x_column();
    each_segment(s, heads, [&](int64_t at, int64_t plain, int64_t count) {
      copy_padded(to + at, from + plain, count);
    });
  }
}

// activated (q, channels_pad) = silu(causal convolution of the window); the rows up to the next
// multiple of LANES become zeros. slope, unless null, gets the derivative of silu.
template <bool SLOPE>
void convolve(const Sizes& s, Heads heads, int64_t q, const Weights& weights, const float* window,
              float* activated, float* slope) {
  each_segment(s, heads, [&](int64_t at, int64_t, int64_t count) {
    for (int64_t c = at; c < at + padded(count); c += LANES)
      for (int64_t t = 0; t < q; ++t) {
        Vec v = load(weights.bias + c);
        for (int64_t k = 0; k < s.K; ++k)
          v += load(weights.taps + k * s.channels_pad + c) *
               load(window + (t + k) * s.channels_pad + c);
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
  float chunk_dt;  // r_q
  float chunk_kept;  // exp(a r_q)
};

PFSR_INLINE float exponential_of(float x) { return exponential(splat(x))[0]; }

// `c` is the sum of dt before the chunk.
inline void find_decays(const Sizes& s, int64_t head, Chunk chunk, const Weights& weights,
                        const float* row, float c, Decays& d) {
  const int64_t q = chunk.q, end = rounded_up(q, LANES);
  const float* from = row + chunk.start * s.width;
  fill(d.raw + q, 0, end - q);
  for (int64_t t = 0; t < q; ++t)
    d.raw[t] = from[t * s.width + s.dt_column() + head] + weights.dt_bias[head];
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
  fill(d.gate + q, 0, end - q);
  for (int64_t t = 0; t < q; ++t)
    d.gate[t] = from[t * s.width + s.gate_column() + head] + weights.gate_bias[head];
  for (int64_t t = 0; t < end; t += LANES) {
    store(d.gate + t, sigmoid(load(d.gate + t)));
    store(d.anchor + t, exponential(d.a_anchored * load(d.before + t)));
  }
}

// gram (q, CHUNK): C_t . B_s for s <= t; both directions and all heads read it.
inline void find_gram(const Sizes& s, int64_t q, const float* activated, float* B_transposed,
                      float* gram) {
  transpose(B_transposed, CHUNK, activated + s.B_channel(), s.channels_pad, rounded_up(q, LANES),
            s.N_pad);
  multiply<Part::lower_columns, Into::set>(gram, CHUNK,
                                           {activated + s.C_channel(), s.channels_pad, 1},
                                           B_transposed, CHUNK, q, rounded_up(q, LANES), s.N);
}

// scaled (q, N_all): rows of B or C (stride `from_stride`), once times `forward` and, anchored,
// once times `anchored`.
PFSR_INLINE void scale_rows(const Sizes& s, int64_t q, const float* from, int64_t from_stride,
                            const float* forward, const float* anchored, float* scaled) {
  for (int64_t t = 0; t < q; ++t)
    for (int64_t n = 0; n < s.N_pad; n += LANES) {
      const Vec v = load(from + t * from_stride + n);
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

}  // namespace
