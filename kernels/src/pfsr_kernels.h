// The C interface of the compiled associative Mamba mixer. All numbers are float32, all arrays
// contiguous; nothing is kept between calls and nothing but the outputs is written.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define PFSR_ABI_VERSION 1

enum { PFSR_OK = 0, PFSR_OUT_OF_MEMORY = 1, PFSR_BAD_SHAPE = 2 };

// R rows (sequences) of L positions in G groups of R / G rows; every group has parameters of its
// own. I inner width, H heads of P = I / H channels, N states, K taps of the convolution.
typedef struct {
  int64_t rows, length, groups, inner, heads, state, taps;
  int64_t anchored;  // 0 or 1: is there an anchored direction, and with it a gate
  int64_t threads;   // at most so many are used
  double eps;        // of the RMS norm
} pfsr_shape;

typedef struct {
  const float *conv_weight;  // (G, I + 2N, K), the last tap on the current position
  const float *conv_bias;    // (G, I + 2N)
  const float *dt_bias;      // (G, H)
  const float *A_log;        // (G, H)
  const float *D;            // (G, H)
  const float *norm_weight;  // (G, I)
  const float *A_log_anchored, *gate_bias;  // (G, H) each; null without the anchored direction
} pfsr_parameters;

typedef struct {  // the gradients of pfsr_parameters, in its shapes
  float *conv_weight, *conv_bias, *dt_bias, *A_log, *D, *norm_weight, *A_log_anchored, *gate_bias;
} pfsr_gradients;

int64_t pfsr_abi_version(void);

// Lanes of the vector instructions in use: 16 (AVX-512), 8 (AVX2), 4 (the baseline).
// pfsr_limit_lanes takes the widest that the machine has and that is not wider than `most`.
int64_t pfsr_lanes(void);
int64_t pfsr_limit_lanes(int64_t most);

// Floats that the forward pass keeps of one row for the backward pass.
int64_t pfsr_kept_floats(const pfsr_shape *shape);

// projected (R, L, 2I + 2N + H [+ H]): z, x, B, C, dt and, anchored, the gate's logits without
// their bias. lengths (R,) or null: only that many positions of a row count; behind them the
// output and the gradients are zero. out (R, L, I): what the output projection reads.
// y (R, L, I) and kept (R, pfsr_kept_floats) are for the backward pass; null when none follows.
int pfsr_forward(const pfsr_shape *shape, const pfsr_parameters *parameters,
                 const float *projected, const int64_t *lengths, float *out, float *y,
                 float *kept);

// grad_out (R, L, I) to grad_projected (shape of projected) and the parameters' gradients.
int pfsr_backward(const pfsr_shape *shape, const pfsr_parameters *parameters,
                  const float *projected, const int64_t *lengths, const float *y,
                  const float *kept, const float *grad_out, float *grad_projected,
                  const pfsr_gradients *gradients);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
