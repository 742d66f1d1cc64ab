// One interaction of each row by the recurrence: plain layouts, nothing is packed or padded, since
// every weight is read once.
#pragma once

#include "weights.h"

namespace {

struct StepScratch {
  StepScratch(const Sizes& s, Arena& arena)
      : projected(arena.take(2 * s.I + 2 * s.N + s.H + LANES)), logits(arena.take(s.H + LANES)),
        channels(arena.take(s.channels + LANES)), dt(arena.take(s.H + LANES)),
        kept(arena.take(s.H + LANES)), anchor(arena.take(s.H + LANES)),
        y(arena.take(s.I + LANES)) {}

  float *projected, *logits, *channels, *dt, *kept, *anchor, *y;
};

PFSR_INLINE float dot(const float* a, const float* b, int64_t count) {
  Vec total{};
  for (int64_t i = 0; i < count; i += LANES)
    total += load_part(a + i, count - i) * load_part(b + i, count - i);
  return sum(total);
}

// to (rows,) = matrix (rows, columns) times vector.
PFSR_INLINE void apply(const float* matrix, const float* vector, int64_t rows, int64_t columns,
                       float* to) {
  for (int64_t i = 0; i < rows; ++i) to[i] = dot(matrix + i * columns, vector, columns);
}

// channels = silu of the convolution's newest value; the window moves on by one.
inline void step_convolution(const Sizes& s, const pfsr_parameters& p, const float* newest,
                             const float* before, float* after, float* channels) {
  const int64_t reach = s.K - 1;
  for (int64_t c = 0; c < s.channels; ++c) {
    const float* taps = p.conv_weight + c * s.K;
    float v = p.conv_bias[c] + taps[reach] * newest[c];
    for (int64_t k = 0; k < reach; ++k) {
      v += taps[k] * before[c * reach + k];
      after[c * reach + k] = k + 1 < reach ? before[c * reach + k + 1] : newest[c];
    }
    channels[c] = v;
  }
  for (int64_t c = 0; c < s.channels; c += LANES) {
    const Vec v = load(channels + c);
    store(channels + c, v * sigmoid(v));
  }
}

// dt, exp(a dt), the gates and exp(a' c) of all heads; c moves on.
inline void step_decays(const Sizes& s, const pfsr_parameters& p, const float* c_before,
                        float* c_after, StepScratch& f) {
  const float* raw = f.projected + 2 * s.I + 2 * s.N;
  for (int64_t h = 0; h < s.H; h += LANES) {
    const int64_t n = s.H - h;
    const Vec dt = softplus(load_part(raw + h, n) + load_part(p.dt_bias + h, n));
    store(f.dt + h, dt);
    store(f.kept + h, exponential(-exponential(load_part(p.A_log + h, n)) * dt));
    if (!s.anchored) continue;
    const Vec c = load_part(c_before + h, n);
    const Vec a = -exponential(load_part(p.A_log_anchored + h, n));
    store(f.anchor + h, exponential(a * c));
    store(f.logits + h, sigmoid(load(f.logits + h) + load_part(p.gate_bias + h, n)));
    store_part(c_after + h, c + dt, n);
  }
}

// One channel: its states (N) move on, and what C reads of them is returned.
PFSR_INLINE float step_channel(const Sizes& s, int64_t h, float drive, const StepScratch& f,
                               const float* h_before, float* h_after, const float* S_before,
                               float* S_after) {
  const float *B = f.channels + s.I, *C = B + s.N;
  const float anchored_drive = s.anchored ? f.anchor[h] * drive : 0.0f;
  Vec total{};
  for (int64_t n = 0; n < s.N; n += LANES) {
    const int64_t rest = s.N - n;
    const Vec input = load_part(B + n, rest), read = load_part(C + n, rest);
    const Vec forward = f.kept[h] * load_part(h_before + n, rest) + drive * input;
    store_part(h_after + n, forward, rest);
    total += forward * read;
    if (!s.anchored) continue;
    const Vec anchored = load_part(S_before + n, rest) + anchored_drive * input;
    store_part(S_after + n, anchored, rest);
    total += f.logits[h] * anchored * read;
  }
  return sum(total);
}

// y = rmsnorm(y silu(z)) in place.
inline void step_norm(const Sizes& s, const float* norm, const float* z, float* y) {
  Vec squares{};
  for (int64_t i = 0; i < s.I; i += LANES) {
    const Vec v = load_part(z + i, s.I - i), gated = load_part(y + i, s.I - i) * v * sigmoid(v);
    squares += gated * gated;
    store_part(y + i, gated, s.I - i);
  }
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(s.I) + s.eps);
  for (int64_t i = 0; i < s.I; i += LANES)
    store_part(y + i, load_part(y + i, s.I - i) * load_part(norm + i, s.I - i) * scale, s.I - i);
}

inline void step_row(const Sizes& s, const Job& job, int64_t row, const pfsr_state& before,
                     const pfsr_state& after, StepScratch& f) {
  const pfsr_parameters& p = job.parameters;
  const float* u = job.u + row * s.D;
  const int64_t window = row * s.channels * (s.K - 1), states = row * s.I * s.N;
  apply(p.in_weight, u, 2 * s.I + 2 * s.N + s.H, s.D, f.projected);
  if (s.anchored) apply(p.gate_weight, u, s.H, s.D, f.logits);
  step_convolution(s, p, f.projected + s.I, before.conv + window, after.conv + window, f.channels);
  step_decays(s, p, before.c + (s.anchored ? row * s.H : 0),
              after.c + (s.anchored ? row * s.H : 0), f);
  for (int64_t i = 0; i < s.I; ++i) {
    const int64_t h = i / s.P, at = states + i * s.N;
    const float x = f.channels[i];
    f.y[i] = p.D[h] * x + step_channel(s, h, f.dt[h] * x, f, before.h + at, after.h + at,
                                       s.anchored ? before.S + at : nullptr,
                                       s.anchored ? after.S + at : nullptr);
  }
  step_norm(s, p.norm_weight, f.projected, f.y);
  apply(p.out_weight, f.y, s.D, s.I, job.out + row * s.D);
}

inline void step_rows(const Job& job, const pfsr_state& before, const pfsr_state& after,
                      float* memory) {
  const Sizes s(job.shape);
  Arena arena(memory);
  StepScratch f(s, arena);
  for (int64_t row = 0; row < job.shape.rows; ++row) step_row(s, job, row, before, after, f);
}

}  // namespace
