// What the passes of one instruction set share with the code that calls them: the job, the padded
// sizes, the work of one thread, and the table of entry points.
#pragma once

#include "pfsr_kernels.h"

namespace pfsr {

constexpr int64_t CHUNK = 64;  // positions handled together; all their numbers stay in the caches
constexpr int64_t PAD = 16;    // widths are padded to this, on every instruction set alike

namespace {  // no code of one instruction set may stand in for that of another

constexpr int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

// Sizes of one row. The input's columns are z, x, B, C, dt and the gate's logits; inside, the
// convolved channels lie as H heads of P_pad, then B and C of N_pad each.
struct Sizes {
  explicit Sizes(const pfsr_shape& s)
      : L(s.length), I(s.inner), H(s.heads), P(s.inner / s.heads), N(s.state), K(s.taps),
        anchored(s.anchored != 0), P_pad(padded(P)), N_pad(padded(N)),
        directions(anchored ? 2 : 1), N_all(directions * N_pad),
        channels(I + 2 * N), channels_pad(H * P_pad + 2 * N_pad),
        width(2 * I + 2 * N + directions * H), chunks((L + CHUNK - 1) / CHUNK),
        state_floats(P_pad * N_all + PAD) {}

  int64_t L, I, H, P, N, K;
  bool anchored;
  int64_t P_pad, N_pad, directions, N_all, channels, channels_pad, width, chunks;
  int64_t state_floats;  // a head's state before a chunk, (P_pad, N_all), and c before it

  int64_t x_column() const { return I; }
  int64_t dt_column() const { return 2 * I + 2 * N; }
  int64_t gate_column() const { return dt_column() + H; }
  int64_t B_channel() const { return H * P_pad; }
  int64_t C_channel() const { return H * P_pad + N_pad; }
  int64_t kept_floats() const { return (chunks > 1 ? chunks - 1 : 0) * H * state_floats; }
};

// Floats of one unit's parameter gradients: taps (K, channels_pad), bias, norm (I), 5 of H.
inline int64_t gradient_floats(const Sizes& s) {
  return (s.K + 1) * s.channels_pad + padded(s.I) + 5 * padded(s.H);
}

}  // namespace

struct Job {
  pfsr_shape shape;
  pfsr_parameters parameters;
  const float* projected;
  const int64_t* lengths;
  float *out, *y, *kept;  // forward; backward reads y and kept
  const float* grad_out;
  float* grad_projected;
};

// Consecutive rows of one group, and a range of heads. A unit with all heads also does the gate
// and the norm, chunk by chunk; where heads are divided, they are passes of their own.
struct Unit {
  int64_t first_row, last_row, group, first_head, last_head;
  float* gradients;  // gradient_floats, zero at the start
  float* grad_y;     // divided heads only: (R, L, I), gradient before the gate
  float* grad_BC;    // divided heads, not the first: (R, L, 2N) to be added to grad_projected
};

// Positions of one row for which gate and norm are a pass of their own.
struct Span {
  int64_t row, group, first, last;
  float* gradients;  // as in Unit
  const float* y;    // forward (R, L, I), before the gate
  float* grad_y;     // backward, as in Unit
};

// One instruction set. `scratch` is aligned to 64 bytes, of scratch_floats.
struct Passes {
  int64_t lanes;
  int64_t (*scratch_floats)(const pfsr_shape&);
  void (*forward)(const Job&, const Unit&, float* scratch);
  void (*backward)(const Job&, const Unit&, float* scratch);
  void (*gate)(const Job&, const Span&);
  void (*gate_backward)(const Job&, const Span&);
};

extern const Passes passes_baseline, passes_avx2, passes_avx512;

}  // namespace pfsr
