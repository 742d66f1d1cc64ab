// The C interface: divides a call into units, runs them on threads, adds up what they return.
#include "pfsr_kernels.h"

#include <algorithm>
#include <vector>

#include "mixer.h"
#include "threads.h"
#include "weights.h"

namespace pfsr {
namespace {

constexpr int64_t UNIT_POSITIONS = 512;  // rows go together until they have so many
constexpr int64_t WORK_OF_A_THREAD = 1 << 24;  // multiply-adds: less is done before it has begun
constexpr int64_t MOST_UNITS = 8;        // of a group: every unit has all gradients for itself

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
  return s.rows >= 0 && s.length >= 0 && s.groups > 0 && s.rows % s.groups == 0 && s.dim > 0 &&
         s.heads > 0 && s.inner > 0 && s.inner % s.heads == 0 && s.state > 0 && s.taps > 0;
}

int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

using Units = std::vector<Unit>;

// Where there are fewer rows than threads, the heads of a row are divided too.
int64_t head_parts(const pfsr_shape& s) {
  if (s.rows == 0 || s.rows >= s.threads) return 1;
  return std::min(s.heads, divided_up(s.threads, s.rows));
}

// A group's rows in pieces that depend on the shape alone, so that sums do not depend on threads.
Units row_units(const pfsr_shape& s) {
  Units units;
  const int64_t in_group = s.rows / s.groups, parts = head_parts(s);
  const int64_t together =
      std::max(divided_up(UNIT_POSITIONS, s.length), divided_up(in_group, MOST_UNITS));
  for (int64_t row = 0; row < s.rows;) {
    const int64_t group = row / in_group, end = std::min(row + together, (group + 1) * in_group);
    for (int64_t i = 0; i < parts; ++i)
      units.push_back({group, row, end, s.heads * i / parts, s.heads * (i + 1) / parts, 0,
                       s.length, nullptr, {}});
    row = end;
  }
  return units;
}

// For divided heads: pieces of rows, with all heads.
Units span_units(const Job& job) {
  Units units;
  const pfsr_shape& s = job.shape;
  const int64_t share = divided_up(s.rows * s.length, s.threads);
  const int64_t span = CHUNK * divided_up(std::max(UNIT_POSITIONS, share), CHUNK);
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t length = length_of(job, row);
    for (int64_t t = 0; t < length; t += span)
      units.push_back({row / (s.rows / s.groups), row, row + 1, 0, s.heads, t,
                       std::min(t + span, length), nullptr, {}});
  }
  return units;
}

// Gives units and spans the memory that the parts of divided heads exchange (see Exchange); not
// set to anything. Returns B and C columns of every part but the first.
std::vector<float*> share_memory(const Job& job, bool backward, Units& parts, Units& spans) {
  const Sizes s(job.shape);
  const int64_t positions = job.shape.rows * s.L, count = head_parts(job.shape);
  const auto lay_out = [&](Arena arena, std::vector<float*>* grad_BC) {
    Exchange common{};
    common.projected = arena.take(job.shape.rows * (s.K - 1 + s.L) * s.width);
    if (!job.kept) common.y = arena.take(positions * s.I_pad);
    if (backward) {
      common.grad_projected = arena.take(positions * s.width);
      common.grad_y = arena.take(positions * s.I_pad);
      for (int64_t part = 1; part < count; ++part)
        grad_BC->push_back(arena.take(positions * 2 * s.N_pad));
    }
    for (Units* some : {&parts, &spans})
      for (Unit& unit : *some) unit.exchange = common;
    return arena.taken();
  };
  std::vector<float*> sizes_only, grad_BC;
  const int64_t floats = lay_out(Arena(nullptr), &sizes_only);
  lay_out(Arena(exchange_memory().of(floats)), &grad_BC);
  for (std::size_t i = 0; backward && i < parts.size(); ++i)
    if (i % count) parts[i].exchange.grad_BC = grad_BC[i % count - 1];
  return grad_BC;
}

using Pass = void (*)(const Job&, const Unit&, float* scratch);

void run_all(Pass pass, const Job& job, const Units& units) {
  parallel(static_cast<int64_t>(units.size()), job.shape.threads,
           passes().scratch_floats(job.shape),
           [&](int64_t i, float* scratch) { pass(job, units[i], scratch); });
}

void run_forward(const Job& job) {
  Units units = row_units(job.shape);
  if (head_parts(job.shape) == 1) return run_all(passes().forward, job, units);
  Units spans = span_units(job);
  share_memory(job, false, units, spans);
  run_all(passes().forward_enter, job, spans);
  run_all(passes().forward, job, units);
  run_all(passes().forward_leave, job, spans);
}

void add_BC(const Job& job, const std::vector<float*>& grad_BC, float* grad_projected) {
  const Sizes s(job.shape);
  const int64_t positions = job.shape.rows * s.L, columns = 2 * s.N_pad;
  for (const float* part : grad_BC)
    for (int64_t t = 0; t < positions; ++t) {
      float* to = grad_projected + t * s.width + s.x_column() + s.B_channel();
      for (int64_t i = 0; i < columns; ++i) to[i] += part[t * columns + i];
    }
}

void run_divided_backward(const Job& job, Units& units, Units& spans) {
  const std::vector<float*> grad_BC = share_memory(job, true, units, spans);
  run_all(passes().backward_leave, job, spans);
  run_all(passes().backward, job, units);
  add_BC(job, grad_BC, units.front().exchange.grad_projected);
  run_all(passes().backward_enter, job, spans);
}

// The gradients of every group: the sums over its units, in their order.
void add_up(const Job& job, const Units& units, const pfsr_gradients& to) {
  const Sizes s(job.shape);
  float* total = nullptr;
  for (std::size_t i = 0; i < units.size(); ++i) {
    const float* part = units[i].gradients;
    if (!total)
      total = units[i].gradients;
    else
      for (int64_t k = 0; k < s.gradient_floats(); ++k) total[k] += part[k];
    if (i + 1 < units.size() && units[i + 1].group == units[i].group) continue;
    Gradients(s, total).write(s, to, units[i].group);
    total = nullptr;
  }
}

void run_backward(const Job& job, const pfsr_gradients& gradients) {
  Units units = row_units(job.shape), spans;
  const bool divided = head_parts(job.shape) > 1;
  if (divided) spans = span_units(job);
  const int64_t size = Sizes(job.shape).gradient_floats();
  std::vector<float> memory(size * (units.size() + spans.size()));
  float* next = memory.data();
  for (Units* some : {&units, &spans})
    for (Unit& unit : *some) unit.gradients = next, next += size;
  if (divided)
    run_divided_backward(job, units, spans);
  else
    run_all(passes().backward, job, units);
  units.insert(units.end(), spans.begin(), spans.end());
  std::stable_sort(units.begin(), units.end(),
                   [](const Unit& a, const Unit& b) { return a.group < b.group; });
  add_up(job, units, gradients);
}

bool usable(const pfsr_product& p) {
  return p.groups >= 0 && p.rows >= 0 && p.columns >= 0 && p.depth >= 0;
}

// Pieces of rows, as many as there are threads to give some to.
std::vector<ProductUnit> product_units(const pfsr_product& p, int64_t threads) {
  std::vector<ProductUnit> units;
  const int64_t share = divided_up(divided_up(p.groups * p.rows, threads), PAD) * PAD;
  const int64_t together = std::min(PRODUCT_ROWS, share);
  for (int64_t group = 0; group < p.groups; ++group)
    for (int64_t row = 0; row < p.rows; row += together)
      units.push_back({group, row, std::min(row + together, p.rows)});
  return units;
}

void run_product(const ProductJob& job) {
  const pfsr_product& p = job.shape;
  const double work = static_cast<double>(p.groups) * p.rows * p.columns * p.depth;
  const int64_t threads =
      std::max<int64_t>(1, std::min<int64_t>(p.threads, work / WORK_OF_A_THREAD));
  const std::vector<ProductUnit> units = product_units(p, threads);
  parallel(static_cast<int64_t>(units.size()), threads, passes().product_floats(),
           [&](int64_t i, float* scratch) { passes().multiply(job, units[i], scratch); });
}

template <class Shape, class Run>
int guarded(const Shape& shape, Run run) {
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

int pfsr_forward(const pfsr_shape* shape, const pfsr_parameters* parameters, const float* u,
                 const int64_t* lengths, float* out, float* kept) {
  return guarded(*shape, [&] {
    if (shape->rows * shape->length == 0) return;
    run_forward({*shape, *parameters, u, lengths, out, kept, nullptr, nullptr});
  });
}

int pfsr_backward(const pfsr_shape* shape, const pfsr_parameters* parameters, const float* u,
                  const int64_t* lengths, const float* kept, const float* grad_out, float* grad_u,
                  const pfsr_gradients* gradients) {
  return guarded(*shape, [&] {
    if (shape->rows * shape->length == 0) return;
    run_backward({*shape, *parameters, u, lengths, nullptr, const_cast<float*>(kept), grad_out,
                  grad_u},
                 *gradients);
  });
}

int pfsr_step(const pfsr_shape* shape, const pfsr_parameters* parameters, const float* u,
              const pfsr_state* before, float* out, const pfsr_state* after) {
  return guarded(*shape, [&] {
    const FlushDenormals flush;
    passes().step({*shape, *parameters, u, nullptr, out, nullptr, nullptr, nullptr}, *before,
                  *after, scratch().of(passes().scratch_floats(*shape)));
  });
}

int pfsr_multiply(const pfsr_product* product, const float* A, const float* B, const float* bias,
                  float* C) {
  return guarded(*product, [&] {
    if (product->groups * product->rows * product->columns == 0) return;
    run_product({*product, A, B, bias, C});
  });
}
