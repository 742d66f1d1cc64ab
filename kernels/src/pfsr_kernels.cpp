// The C interface: divides a call into units, runs them on threads, adds up what they return.
#include "pfsr_kernels.h"

#include <algorithm>
#include <vector>

#include "mixer.h"
#include "threads.h"

namespace pfsr {
namespace {

constexpr int64_t UNIT_POSITIONS = 256;  // rows go together until they have so many
constexpr int64_t SPAN_POSITIONS = 512;

const Passes* widest(int64_t most) {
#if defined(PFSR_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && most >= passes_avx512.lanes) return &passes_avx512;
  if (avx2 && most >= passes_avx2.lanes) return &passes_avx2;
#else
  (void)most;
#endif
  return &passes_baseline;
}

std::atomic<const Passes*> chosen{nullptr};

const Passes& passes() {
  const Passes* now = chosen.load();
  if (!now) chosen = now = widest(PAD);
  return *now;
}

bool usable(const pfsr_shape& s) {
  return s.rows >= 0 && s.length >= 0 && s.groups > 0 && s.rows % s.groups == 0 && s.heads > 0 &&
         s.inner > 0 && s.inner % s.heads == 0 && s.state > 0 && s.taps > 0;
}

// Where there are fewer rows than threads, the heads of a row are divided too.
int64_t head_parts(const pfsr_shape& s) {
  if (s.rows == 0 || s.rows >= s.threads) return 1;
  return std::min(s.heads, (s.threads + s.rows - 1) / s.rows);
}

// A group's rows in pieces that depend on the shape alone, so that sums do not depend on threads.
std::vector<Unit> divided(const pfsr_shape& s) {
  std::vector<Unit> units;
  const int64_t in_group = s.rows / s.groups, parts = head_parts(s);
  const int64_t together = parts > 1 ? 1 : std::max<int64_t>(1, UNIT_POSITIONS / s.length);
  for (int64_t row = 0; row < s.rows;) {
    const int64_t group = row / in_group;
    const int64_t end = std::min(row + together, (group + 1) * in_group);
    for (int64_t i = 0; i < parts; ++i)
      units.push_back({row, end, group, s.heads * i / parts, s.heads * (i + 1) / parts,
                       nullptr, nullptr, nullptr});
    row = end;
  }
  return units;
}

std::vector<Span> spans(const Job& job) {
  std::vector<Span> all;
  const pfsr_shape& s = job.shape;
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t length = job.lengths ? job.lengths[row] : s.length;
    for (int64_t t = 0; t < length; t += SPAN_POSITIONS)
      all.push_back({row, row / (s.rows / s.groups), t, std::min(t + SPAN_POSITIONS, length),
                     nullptr, job.y ? job.y : job.out, nullptr});
  }
  return all;
}

void run_forward(const Job& job) {
  const Passes& run = passes();
  const std::vector<Unit> units = divided(job.shape);
  const int64_t threads = job.shape.threads;
  parallel(static_cast<int64_t>(units.size()), threads, run.scratch_floats(job.shape),
           [&](int64_t i, float* memory) { run.forward(job, units[i], memory); });
  if (head_parts(job.shape) == 1) return;
  const std::vector<Span> all = spans(job);
  parallel(static_cast<int64_t>(all.size()), threads, 0,
           [&](int64_t i, float*) { run.gate(job, all[i]); });
}

// The gradients of one group from those of its units, which are in a fixed order.
void add_up(const Sizes& s, const std::vector<const float*>& parts, int64_t group,
            const pfsr_gradients& to) {
  std::vector<double> total(gradient_floats(s));
  for (const float* part : parts)
    for (std::size_t i = 0; i < total.size(); ++i) total[i] += part[i];
  const double *taps = total.data(), *bias = taps + s.K * s.channels_pad;
  const double* rest = bias + s.channels_pad;
  const auto channel = [&](int64_t at, int64_t plain, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t out = group * s.channels + plain + i;
      to.conv_bias[out] = static_cast<float>(bias[at + i]);
      for (int64_t k = 0; k < s.K; ++k)
        to.conv_weight[out * s.K + k] = static_cast<float>(taps[k * s.channels_pad + at + i]);
    }
  };
  for (int64_t h = 0; h < s.H; ++h) channel(h * s.P_pad, h * s.P, s.P);
  channel(s.B_channel(), s.I, s.N);
  channel(s.C_channel(), s.I + s.N, s.N);
  std::copy(rest, rest + s.I, to.norm_weight + group * s.I);
  rest += padded(s.I);
  for (float* each : {to.dt_bias, to.A_log, to.D, to.A_log_anchored, to.gate_bias}) {
    if (each) std::copy(rest, rest + s.H, each + group * s.H);
    rest += padded(s.H);
  }
}

// Memory of a backward pass: the gradients of every unit and span and, where heads are divided,
// the gradient before the gate and the parts of B's and C's columns.
struct BackwardMemory {
  BackwardMemory(const Job& job, std::vector<Unit>& units, std::vector<Span>& all)
      : size(gradient_floats(Sizes(job.shape))), gradients(size * (units.size() + all.size())) {
    const pfsr_shape& s = job.shape;
    const int64_t parts = head_parts(s);
    float* next = gradients.data();
    for (Unit& unit : units) unit.gradients = next, next += size;
    for (Span& span : all) span.gradients = next, next += size;
    if (parts == 1) return;
    const int64_t positions = s.rows * s.length;
    grad_y.resize(positions * s.inner);
    grad_BC.resize((parts - 1) * positions * 2 * s.state);
    for (std::size_t i = 0; i < units.size(); ++i) {
      const int64_t part = static_cast<int64_t>(i) % parts;
      units[i].grad_y = grad_y.data();
      if (part) units[i].grad_BC = grad_BC.data() + (part - 1) * positions * 2 * s.state;
    }
    for (Span& span : all) span.grad_y = grad_y.data();
  }

  int64_t size;
  std::vector<float> gradients, grad_y, grad_BC;
};

void add_columns(const Job& job, const std::vector<float>& grad_BC) {
  const Sizes s(job.shape);
  const int64_t positions = job.shape.rows * s.L, columns = 2 * s.N;
  for (std::size_t from = 0; from < grad_BC.size(); from += positions * columns)
    for (int64_t row = 0; row < job.shape.rows; ++row)
      for (int64_t t = 0; t < (job.lengths ? job.lengths[row] : s.L); ++t) {
        const int64_t at = row * s.L + t;
        float* to = job.grad_projected + at * s.width + 2 * s.I;
        for (int64_t i = 0; i < columns; ++i) to[i] += grad_BC[from + at * columns + i];
      }
}

void run_backward(const Job& job, const pfsr_gradients& gradients) {
  const Passes& run = passes();
  const int64_t threads = job.shape.threads;
  const Sizes sizes(job.shape);
  std::vector<Unit> units = divided(job.shape);
  std::vector<Span> all = head_parts(job.shape) > 1 ? spans(job) : std::vector<Span>();
  BackwardMemory memory(job, units, all);
  parallel(static_cast<int64_t>(all.size()), threads, 0,
           [&](int64_t i, float*) { run.gate_backward(job, all[i]); });
  parallel(static_cast<int64_t>(units.size()), threads, run.scratch_floats(job.shape),
           [&](int64_t i, float* scratch) { run.backward(job, units[i], scratch); });
  add_columns(job, memory.grad_BC);
  std::vector<std::vector<const float*>> parts(job.shape.groups);
  for (const Unit& unit : units) parts[unit.group].push_back(unit.gradients);
  for (const Span& span : all) parts[span.group].push_back(span.gradients);
  for (int64_t group = 0; group < job.shape.groups; ++group)
    add_up(sizes, parts[group], group, gradients);
}

template <class Run>
int guarded(const pfsr_shape& shape, Run run) {
  if (!usable(shape)) return PFSR_BAD_SHAPE;
  try {
    run();
    return PFSR_OK;
  } catch (const std::bad_alloc&) {
    return PFSR_OUT_OF_MEMORY;
  }
}

}  // namespace
}  // namespace pfsr

using namespace pfsr;

int64_t pfsr_abi_version(void) { return PFSR_ABI_VERSION; }

int64_t pfsr_lanes(void) { return passes().lanes; }

int64_t pfsr_limit_lanes(int64_t most) {
  chosen = widest(most);
  return passes().lanes;
}

int64_t pfsr_kept_floats(const pfsr_shape* shape) {
  return usable(*shape) ? Sizes(*shape).kept_floats() : -1;
}

int pfsr_forward(const pfsr_shape* shape, const pfsr_parameters* parameters,
                 const float* projected, const int64_t* lengths, float* out, float* y,
                 float* kept) {
  return guarded(*shape, [&] {
    if (shape->rows * shape->length == 0) return;
    run_forward({*shape, *parameters, projected, lengths, out, y, kept, nullptr, nullptr});
  });
}

int pfsr_backward(const pfsr_shape* shape, const pfsr_parameters* parameters,
                  const float* projected, const int64_t* lengths, const float* y,
                  const float* kept, const float* grad_out, float* grad_projected,
                  const pfsr_gradients* gradients) {
  return guarded(*shape, [&] {
    if (shape->rows * shape->length == 0) return;
    run_backward({*shape, *parameters, projected, lengths, nullptr, const_cast<float*>(y),
                  const_cast<float*>(kept), grad_out, grad_projected},
                 *gradients);
  });
}
