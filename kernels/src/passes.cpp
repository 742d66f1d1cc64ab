// The passes for one instruction set: built once for each, with PFSR_PASSES as the table's name.
#include "backward_unit.h"
#include "forward.h"

namespace {

int64_t scratch_floats(const pfsr_shape& shape) {
  const Sizes s(shape);
  Arena forward(nullptr), backward(nullptr);
  ForwardScratch{s, forward};
  BackwardScratch{s, backward};
  return forward.taken() > backward.taken() ? forward.taken() : backward.taken();
}

void forward(const Job& job, const Unit& unit, float* scratch) {
  const Sizes s(job.shape);
  Arena arena(scratch);
  ForwardScratch f(s, arena);
  f.weights.read(s, job.parameters, unit.group);
  for (int64_t row = unit.first_row; row < unit.last_row; ++row) forward_row(s, job, unit, row, f);
}

void backward(const Job& job, const Unit& unit, float* scratch) {
  const Sizes s(job.shape);
  Arena arena(scratch);
  BackwardScratch b(s, arena);
  Gradients gradients(s, unit.gradients);
  b.weights.read(s, job.parameters, unit.group);
  for (int64_t row = unit.first_row; row < unit.last_row; ++row)
    backward_row(s, job, unit, row, b, gradients);
}

void gate(const Job& job, const Span& span) {
  const Sizes s(job.shape);
  const int64_t at = span.row * s.L + span.first;
  gate_and_norm(s, span.last - span.first, job.shape.eps,
                job.parameters.norm_weight + span.group * s.I, job.projected + at * s.width,
                span.y + at * s.I, job.out + at * s.I);
}

void gate_backward(const Job& job, const Span& span) {
  const Sizes s(job.shape);
  const int64_t at = span.row * s.L + span.first;
  gate_and_norm_backward(s, span.last - span.first, job.shape.eps,
                         job.parameters.norm_weight + span.group * s.I,
                         job.projected + at * s.width, job.y + at * s.I, job.grad_out + at * s.I,
                         job.grad_projected + at * s.width, span.grad_y + at * s.I,
                         Gradients(s, span.gradients).norm);
}

}  // namespace

namespace pfsr {

extern const Passes PFSR_PASSES;
const Passes PFSR_PASSES = {LANES, scratch_floats, forward, backward, gate, gate_backward};

}  // namespace pfsr
