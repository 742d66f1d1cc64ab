// A group's parameters and their gradients in the padded order of columns that Sizes describes.
#pragma once

#include "mixer.h"
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

PFSR_INLINE void fill(float* to, float value, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

PFSR_INLINE void copy(float* to, const float* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Calls visit(padded channel, plain channel, count) for x, B and C.
template <class Visit>
PFSR_INLINE void each_channels(const Sizes& s, Visit visit) {
  for (int64_t h = 0; h < s.H; ++h) visit(h * s.P_pad, h * s.P, s.P);
  visit(s.B_channel(), s.I, s.N);
  visit(s.C_channel(), s.I + s.N, s.N);
}

// Calls visit(padded column, row of in_weight, count) for z, x, B, C and dt.
template <class Visit>
PFSR_INLINE void each_columns(const Sizes& s, Visit visit) {
  for (int64_t h = 0; h < s.H; ++h) visit(h * s.P_pad, h * s.P, s.P);
  each_channels(s, [&](int64_t at, int64_t plain, int64_t count) {
    visit(s.x_column() + at, s.I + plain, count);
  });
  visit(s.steps_column, 2 * s.I + 2 * s.N, s.H);
}

PFSR_INLINE const float* of_group(const float* all, int64_t group, int64_t floats) {
  return all ? all + group * floats : nullptr;
}

struct Weights {
  Weights(const Sizes& s, Arena& arena)
      : in(arena.take(s.width * s.D_pad)), in_turned(arena.take(s.D_pad * s.width)),
        out(arena.take(s.D_pad * s.I_pad)), out_turned(arena.take(s.I_pad * s.D_pad)),
        taps(arena.take(s.K * s.channels_pad)), bias(arena.take(s.channels_pad)),
        norm(arena.take(s.I_pad)) {}

  void read(const Sizes& s, const pfsr_parameters& p, int64_t group) {
    const int64_t rows = 2 * s.I + 2 * s.N + s.H;
    read_projections(s, of_group(p.in_weight, group, rows * s.D),
                     of_group(p.gate_weight, group, s.H * s.D),
                     of_group(p.out_weight, group, s.D * s.I));
    read_convolution(s, of_group(p.conv_weight, group, s.channels * s.K),
                     of_group(p.conv_bias, group, s.channels));
    const float* plain_norm = of_group(p.norm_weight, group, s.I);
    fill(norm, 0, s.I_pad);
    for (int64_t h = 0; h < s.H; ++h) copy(norm + h * s.P_pad, plain_norm + h * s.P, s.P);
    dt_bias = of_group(p.dt_bias, group, s.H);
    A_log = of_group(p.A_log, group, s.H);
    D = of_group(p.D, group, s.H);
    A_log_anchored = of_group(p.A_log_anchored, group, s.H);
    gate_bias = of_group(p.gate_bias, group, s.H);
  }

  float *in, *in_turned;    // (width, D_pad), (D_pad, width)
  float *out, *out_turned;  // (D_pad, I_pad), (I_pad, D_pad)
  float *taps, *bias, *norm;  // (K, channels_pad), (channels_pad,), (I_pad,)
  const float *dt_bias, *A_log, *D, *A_log_anchored, *gate_bias;  // (H,)

 private:
  void read_projections(const Sizes& s, const float* in_weight, const float* gate_weight,
                        const float* out_weight) {
    fill(in, 0, s.width * s.D_pad);
    fill(out, 0, s.D_pad * s.I_pad);
    const auto read_rows = [&](int64_t at, const float* from, int64_t count) {
      for (int64_t i = 0; i < count; ++i) copy(in + (at + i) * s.D_pad, from + i * s.D, s.D);
    };
    each_columns(s, [&](int64_t at, int64_t plain, int64_t count) {
      read_rows(at, in_weight + plain * s.D, count);
    });
    if (s.anchored) read_rows(s.steps_column + s.H, gate_weight, s.H);
    for (int64_t d = 0; d < s.D; ++d)
      for (int64_t h = 0; h < s.H; ++h)
        copy(out + d * s.I_pad + h * s.P_pad, out_weight + d * s.I + h * s.P, s.P);
    transpose(in_turned, s.width, in, s.D_pad, s.width, s.D_pad);
    transpose(out_turned, s.D_pad, out, s.I_pad, s.D_pad, s.I_pad);
  }

  void read_convolution(const Sizes& s, const float* weight, const float* plain_bias) {
    fill(taps, 0, s.K * s.channels_pad);
    fill(bias, 0, s.channels_pad);
    each_channels(s, [&](int64_t at, int64_t plain, int64_t count) {
      copy(bias + at, plain_bias + plain, count);
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t i = 0; i < count; ++i)
          taps[k * s.channels_pad + at + i] = weight[(plain + i) * s.K + k];
    });
  }
};

struct Gradients {  // in the layouts of Weights; `out` is turned, (I_pad, D_pad)
  Gradients(const Sizes& s, float* start) {
    Arena arena(start);
    in = arena.take(s.width * s.D_pad);
    out = arena.take(s.I_pad * s.D_pad);
    taps = arena.take(s.K * s.channels_pad);
    bias = arena.take(s.channels_pad);
    norm = arena.take(s.I_pad);
    dt_bias = arena.take(s.H);
    A_log = arena.take(s.H);
    D = arena.take(s.H);
    A_log_anchored = arena.take(s.H);
    gate_bias = arena.take(s.H);
  }

  void write(const Sizes& s, const pfsr_gradients& to, int64_t group) const {
    write_projections(s, to, group);
    each_channels(s, [&](int64_t at, int64_t plain, int64_t count) {
      const int64_t channel = group * s.channels + plain;
      copy(to.conv_bias + channel, bias + at, count);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t k = 0; k < s.K; ++k)
          to.conv_weight[(channel + i) * s.K + k] = taps[k * s.channels_pad + at + i];
    });
    for (int64_t h = 0; h < s.H; ++h)
      copy(to.norm_weight + group * s.I + h * s.P, norm + h * s.P_pad, s.P);
    copy(to.dt_bias + group * s.H, dt_bias, s.H);
    copy(to.A_log + group * s.H, A_log, s.H);
    copy(to.D + group * s.H, D, s.H);
    if (!s.anchored) return;
    copy(to.A_log_anchored + group * s.H, A_log_anchored, s.H);
    copy(to.gate_bias + group * s.H, gate_bias, s.H);
  }

  float *in, *out, *taps, *bias, *norm, *dt_bias, *A_log, *D, *A_log_anchored, *gate_bias;

 private:
  void write_projections(const Sizes& s, const pfsr_gradients& to, int64_t group) const {
    float* in_weight = to.in_weight + group * (2 * s.I + 2 * s.N + s.H) * s.D;
    float* out_weight = to.out_weight + group * s.D * s.I;
    const auto write_rows = [&](int64_t at, float* rows, int64_t count) {
      for (int64_t i = 0; i < count; ++i) copy(rows + i * s.D, in + (at + i) * s.D_pad, s.D);
    };
    each_columns(s, [&](int64_t at, int64_t plain, int64_t count) {
      write_rows(at, in_weight + plain * s.D, count);
    });
    if (s.anchored) write_rows(s.steps_column + s.H, to.gate_weight + group * s.H * s.D, s.H);
    for (int64_t d = 0; d < s.D; ++d)
      for (int64_t h = 0; h < s.H; ++h)
        for (int64_t p = 0; p < s.P; ++p)
          out_weight[d * s.I + h * s.P + p] = out[(h * s.P_pad + p) * s.D_pad + d];
  }
};

}  // namespace
