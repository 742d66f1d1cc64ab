// The memory of a backward pass, and sums over the lanes of many vectors at once.
#pragma once

#include "parts.h"

namespace {

// Sums over LANES partial sums of each of q rows: add (row t) here, read the totals once.
struct RowSums {
  explicit RowSums(Arena& arena) : lanes(arena.take(CHUNK * LANES)), total(arena.take(CHUNK)) {}

  PFSR_INLINE void set(int64_t row, Vec v) { store(lanes + row * LANES, v); }

  PFSR_INLINE void finish(int64_t q) {
    float turned[LANES * LANES];
    for (int64_t t = 0; t < q; t += LANES) {
      transpose(turned, LANES, lanes + t * LANES, LANES, LANES, LANES);
      Vec sums{};
      for (int i = 0; i < LANES; ++i) sums += load(turned + i * LANES);
      store(total + t, first_lanes(sums, q - t));
    }
  }

  float *lanes, *total;
};

struct BackwardScratch {
  BackwardScratch(const Sizes& s, Arena& arena)
      : weights(s, arena), decays(arena), projected(arena.take((CHUNK + s.K) * s.width)),
        grad_projected(arena.take(CHUNK * s.width)), normed(arena.take(CHUNK * s.I_pad)),
        grad_normed(arena.take(CHUNK * s.I_pad)), grad_y_all(arena.take(CHUNK * s.I_pad)),
        wide(arena.take(CHUNK * s.D_pad)), activated(arena.take(CHUNK * s.channels_pad)),
        slope(arena.take(CHUNK * s.channels_pad)),
        grad_channels(arena.take((CHUNK + s.K) * s.channels_pad)),
        B_turned(arena.take(s.N_pad * CHUNK)), gram(arena.take(CHUNK * CHUNK)),
        grad_gram(arena.take(CHUNK * CHUNK)), mixing(arena.take(CHUNK * CHUNK)),
        pairs(arena.take(CHUNK * CHUNK)), scaled(arena.take(CHUNK * s.N_all)),
        product(arena.take(CHUNK * s.N_all)), u(arena.take(CHUNK * s.P_pad)),
        u_turned(arena.take(s.P_pad * CHUNK)), grad_u(arena.take(CHUNK * s.P_pad)),
        grad_states(arena.take(s.H * s.N_all * s.P_pad)),
        grad_states_turned(arena.take(s.N_all * s.P_pad)), grad_c(arena.take(s.H)),
        row_forward(arena), row_anchored(arena), row_dt(arena),
        column_forward(arena.take(CHUNK)), column_anchored(arena.take(CHUNK)),
        grad_log(arena.take(CHUNK)), grad_gate(arena.take(CHUNK)), grad_dt(arena.take(CHUNK)) {}

  Weights weights;
  Decays decays;
  float *projected, *grad_projected;            // (K - 1 + q, width), (q, width)
  float *normed, *grad_normed, *grad_y_all;     // (q, I_pad)
  float* wide;                                  // (q, D_pad): the chunk's u or grad_out
  float *activated, *slope, *grad_channels;     // (q, channels_pad)
  float *B_turned, *gram, *grad_gram, *mixing, *pairs, *scaled, *product;
  float *u, *u_turned, *grad_u;                 // of one head
  float *grad_states, *grad_states_turned;      // (N_all, P_pad) per head; (P_pad, N_all) of one
  float* grad_c;                                // per head: gradient of c after the chunk
  RowSums row_forward, row_anchored, row_dt;
  float *column_forward, *column_anchored;
  float grad_A;      // of A_log, which is that of a log decay times the log decay
  float* grad_log;   // of a r_t
  float* grad_gate;  // g_t times the gradient of g_t
  float* grad_dt;
  const float* grad_y;  // the head's columns of dy, rows of stride I_pad
};

}  // namespace
