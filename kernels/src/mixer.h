// What the passes of one instruction set share with the code that calls them: the job, the padded
// sizes, the work of one thread, and the table of entry points.
#pragma once

#include "pfsr_kernels.h"

namespace pfsr {

namespace {  // no code built for one instruction set may stand in for that of another

constexpr int64_t CHUNK = 64;  // positions handled together; all their numbers stay in the caches
constexpr int64_t PRODUCT_ROWS = 256;  // at most, of a matrix product handled together
constexpr int64_t PAD = 16;    // widths are padded to this, on every instruction set alike

constexpr int64_t padded(int64_t n) { return (n + PAD - 1) / PAD * PAD; }

// Sizes, plain as in the interface and padded as inside. The padded columns of a projected row are
//   z (H, P_pad)   x (H, P_pad)   B (N_pad)   C (N_pad)   dt and gate (directions, H), padded
// of which x, B and C go through the convolution: its channels.
struct Sizes {
  explicit Sizes(const pfsr_shape& s)
      : L(s.length), D(s.dim), I(s.inner), H(s.heads), P(s.inner / s.heads), N(s.state), K(s.taps),
        anchored(s.anchored != 0), directions(anchored ? 2 : 1), D_pad(padded(D)),
        P_pad(padded(P)), I_pad(H * P_pad), N_pad(padded(N)), N_all(directions * N_pad),
        channels(I + 2 * N), channels_pad(I_pad + 2 * N_pad), steps_column(2 * I_pad + 2 * N_pad),
        width(steps_column + padded(directions * H)), chunks((L + CHUNK - 1) / CHUNK),
        state_floats(P_pad * N_all + PAD), eps(static_cast<float>(s.eps)) {}

  int64_t L, D, I, H, P, N, K;
  bool anchored;
  int64_t directions, D_pad, P_pad, I_pad, N_pad, N_all, channels, channels_pad;
  int64_t steps_column, width, chunks;
  int64_t state_floats;  // a head's state before a chunk, (P_pad, N_all), and c before it
  float eps;

  int64_t x_column() const { return I_pad; }
  int64_t B_channel() const { return I_pad; }
  int64_t C_channel() const { return I_pad + N_pad; }
  // What is kept of a row: y before the gate, (L, I_pad), then the states before all chunks but
  // the first.
  int64_t kept_y_floats() const { return L * I_pad; }
  int64_t kept_floats() const {
    return kept_y_floats() + (chunks > 1 ? chunks - 1 : 0) * H * state_floats;
  }
  int64_t gradient_floats() const {  // of all parameters, as in Gradients
    return width * D_pad + I_pad * D_pad + (K + 1) * channels_pad + I_pad + 5 * padded(H);
  }
};

}  // namespace

struct Job {
  pfsr_shape shape;
  pfsr_parameters parameters;
  const float* u;
  const int64_t* lengths;
  float *out, *kept;  // the backward pass reads kept
  const float* grad_out;
  float* grad_u;
};

namespace {

// Positions of a row that count; a length outside [0, L] must not reach foreign memory.
inline int64_t length_of(const Job& job, int64_t row) {
  const int64_t all = job.shape.length, length = job.lengths ? job.lengths[row] : all;
  return length < 0 ? 0 : length < all ? length : all;
}

}  // namespace

// Where a row's heads are divided among threads, what the parts exchange lies in memory for all
// rows; else in each thread's scratch memory, a chunk at a time, and all of this is null.
struct Exchange {
  float* projected;       // (R, K - 1 + L, width), the first K - 1 positions zero
  float* y;               // (R, L, I_pad), before the gate
  float* grad_projected;  // (R, L, width)
  float* grad_y;          // (R, L, I_pad)
  float* grad_BC;         // (R, L, 2 N_pad): B and C columns of this part, null for the first
};

// Positions [first, last) of consecutive rows of one group, and a range of heads.
struct Unit {
  int64_t group, first_row, last_row, first_head, last_head, first, last;
  float* gradients;  // gradient_floats, zero at the start
  Exchange exchange;
};

struct ProductJob {
  pfsr_product shape;
  const float *A, *B, *bias;
  float* C;
};

struct ProductUnit {  // rows [first_row, last_row) of one group's product, at most PRODUCT_ROWS
  int64_t group, first_row, last_row;
};

// One instruction set. `scratch` is aligned to 64 bytes, of scratch_floats. A unit with all heads
// needs forward and backward only. For divided heads the projections, gate and norm (`enter`,
// `leave`) are passes of their own over spans of positions, around forward and backward.
struct Passes {
  int64_t lanes;
  int64_t (*scratch_floats)(const pfsr_shape&);
  void (*forward_enter)(const Job&, const Unit&, float* scratch);
  void (*forward)(const Job&, const Unit&, float* scratch);
  void (*forward_leave)(const Job&, const Unit&, float* scratch);
  void (*backward_enter)(const Job&, const Unit&, float* scratch);
  void (*backward)(const Job&, const Unit&, float* scratch);
  void (*backward_leave)(const Job&, const Unit&, float* scratch);
  void (*step)(const Job&, const pfsr_state& before, const pfsr_state& after, float* scratch);
  int64_t (*product_floats)();  // the scratch memory of multiply
  void (*multiply)(const ProductJob&, const ProductUnit&, float* scratch);
};

extern const Passes passes_baseline, passes_avx2, passes_avx512;

}  // namespace pfsr
