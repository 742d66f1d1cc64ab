// The C interface of the compiled associative Mamba block, and of the matrix products around it.
// All numbers are float32; arrays are contiguous but for the factors of a product. Nothing is kept
// between calls and nothing but the outputs is written.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define PFSR_ABI_VERSION 2

enum { PFSR_OK = 0, PFSR_OUT_OF_MEMORY = 1, PFSR_BAD_SHAPE = 2 };

// R rows (sequences) of L positions in G groups of R / G rows; every group has parameters of its
// own. Model width D, inner width I, H heads of P = I / H channels, N states, K convolution taps.
typedef struct {
  int64_t rows, length, groups, dim, inner, heads, state, taps;
  int64_t anchored;  // 0 or 1: is there an anchored direction, and with it a gate
  int64_t threads;   // at most so many are used
  double eps;        // of the RMS norm
} pfsr_shape;

typedef struct {
  const float *in_weight;    // (G, 2I + 2N + H, D): rows z, x, B, C, dt
  const float *out_weight;   // (G, D, I)
  const float *conv_weight;  // (G, I + 2N, K), the last tap on the current position
  const float *norm_weight;  // (G, I)
  const float *conv_bias;    // (G, I + 2N)
  const float *dt_bias;      // (G, H)
  const float *A_log;        // (G, H)
  const float *D;            // (G, H)
  const float *A_log_anchored, *gate_bias;  // (G, H) each; null without the anchored direction
  const float *gate_weight;                 // (G, H, D), or null
} pfsr_parameters;

typedef struct {  // the gradients of pfsr_parameters, in its order and shapes
  float *in_weight, *out_weight, *conv_weight, *norm_weight, *conv_bias, *dt_bias, *A_log, *D;
  float *A_log_anchored, *gate_bias, *gate_weight;
} pfsr_gradients;

typedef struct {  // of R rows, before or after one interaction
  float *conv;    // (R, I + 2N, K - 1), the last inputs of the convolution, oldest first
  float *h;       // (R, H, P, N), the state that favours recent items
  float *S, *c;   // (R, H, P, N), the anchored state, and (R, H), the sum of dt; or null
} pfsr_state;

int64_t pfsr_abi_version(void);

// Lanes of the vector instructions in use: 16 (AVX-512), 8 (AVX2), 4 (the baseline).
// pfsr_limit_lanes takes the widest that the machine has and that is not wider than `most`.
int64_t pfsr_lanes(void);
int64_t pfsr_limit_lanes(int64_t most);

// Floats that the forward pass keeps of one row for the backward pass; -1 for a bad shape.
int64_t pfsr_kept_floats(const pfsr_shape *shape);

// u (R, L, D) to out (R, L, D). lengths (R,), taken as if in [0, L], or null: only that many positions of a row
// count; behind them the output and the gradients are zero. kept (R, pfsr_kept_floats) is for the
// backward pass; null when none follows.
int pfsr_forward(const pfsr_shape *shape, const pfsr_parameters *parameters, const float *u,
                 const int64_t *lengths, float *out, float *kept);

// grad_out (R, L, D) to grad_u (R, L, D) and the parameters' gradients.
int pfsr_backward(const pfsr_shape *shape, const pfsr_parameters *parameters, const float *u,
                  const int64_t *lengths, const float *kept, const float *grad_out, float *grad_u,
                  const pfsr_gradients *gradients);

// One interaction: u (R, D) and the state before it to out (R, D) and the state after it. One
// group; shape->length is not read.
int pfsr_step(const pfsr_shape *shape, const pfsr_parameters *parameters, const float *u,
              const pfsr_state *before, float *out, const pfsr_state *after);

// For each of G groups C = A B, with C (G, rows, columns), A (G, rows, depth), B (G, depth, columns).
// The factors lie anywhere: element (i, k) of a group's A is at A[group * A_group + i * A_row +
// k * A_step], element (k, j) of its B at B[group * B_group + k * B_step + j * B_column].
typedef struct {
  int64_t groups, rows, columns, depth;
  int64_t A_group, A_row, A_step, B_group, B_step, B_column;
  int64_t add;      // 0 or 1: is the product added to what stands in C
  int64_t threads;  // at most so many are used; they do not change a bit of C
} pfsr_product;

// bias (G, columns) is added to every row, or null; there is none with `add`.
int pfsr_multiply(const pfsr_product *product, const float *A, const float *B, const float *bias,
                  float *C);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
