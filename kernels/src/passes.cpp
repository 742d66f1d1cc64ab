// The passes for one instruction set: built once for each, with PFSR_PASSES as the table's name.
#include "backward_unit.h"
#include "blocked_product.h"
#include "forward.h"
#include "step.h"

namespace {

template <class Scratch>
int64_t floats_of(const Sizes& s) {
  Arena arena(nullptr);
  Scratch{s, arena};
  return arena.taken();
}

int64_t scratch_floats(const pfsr_shape& shape) {
  const Sizes s(shape);
  const int64_t forward = floats_of<ForwardScratch>(s), backward = floats_of<BackwardScratch>(s);
  const int64_t step = floats_of<StepScratch>(s), most = forward > backward ? forward : backward;
  return most > step ? most : step;
}

// run(sizes, scratch) with scratch memory laid out and the unit's parameters read.
template <class Scratch, class Run>
PFSR_INLINE void prepared(const Job& job, const Unit& unit, float* memory, Run run) {
  const Sizes s(job.shape);
  Arena arena(memory);
  Scratch scratch(s, arena);
  scratch.weights.read(s, job.parameters, unit.group);
  run(s, scratch);
}

void forward_enter(const Job& job, const Unit& unit, float* memory) {
  prepared<ForwardScratch>(job, unit, memory, [&](const Sizes& s, ForwardScratch& f) {
    enter_span(s, job, unit, f.weights);
  });
}

void forward(const Job& job, const Unit& unit, float* memory) {
  prepared<ForwardScratch>(job, unit, memory, [&](const Sizes& s, ForwardScratch& f) {
    for (int64_t row = unit.first_row; row < unit.last_row; ++row)
      forward_row(s, job, unit, row, f);
  });
}

void forward_leave(const Job& job, const Unit& unit, float* memory) {
  prepared<ForwardScratch>(
      job, unit, memory, [&](const Sizes& s, ForwardScratch& f) { leave_span(s, job, unit, f); });
}

void backward_enter(const Job& job, const Unit& unit, float* memory) {
  prepared<BackwardScratch>(job, unit, memory, [&](const Sizes& s, BackwardScratch& b) {
    Gradients gradients(s, unit.gradients);
    enter_span_backward(s, job, unit, b, gradients);
  });
}

void backward(const Job& job, const Unit& unit, float* memory) {
  prepared<BackwardScratch>(job, unit, memory, [&](const Sizes& s, BackwardScratch& b) {
    Gradients gradients(s, unit.gradients);
    for (int64_t row = unit.first_row; row < unit.last_row; ++row)
      backward_row(s, job, unit, row, b, gradients);
  });
}

void backward_leave(const Job& job, const Unit& unit, float* memory) {
  prepared<BackwardScratch>(job, unit, memory, [&](const Sizes& s, BackwardScratch& b) {
    Gradients gradients(s, unit.gradients);
    leave_span_backward(s, job, unit, b, gradients);
  });
}

void step(const Job& job, const pfsr_state& before, const pfsr_state& after, float* memory) {
  step_rows(job, before, after, memory);
}

int64_t product_floats() {
  Arena arena(nullptr);
  ProductScratch{arena};
  return arena.taken();
}

void multiply_unit(const ProductJob& job, const ProductUnit& unit, float* memory) {
  Arena arena(memory);
  multiply_rows(job, unit, ProductScratch(arena));
}

}  // namespace

namespace pfsr {

extern const Passes PFSR_PASSES;
const Passes PFSR_PASSES = {LANES,          scratch_floats, forward_enter,  forward, forward_leave,
                            backward_enter, backward,       backward_leave, step,
                            product_floats, multiply_unit};

}  // namespace pfsr
