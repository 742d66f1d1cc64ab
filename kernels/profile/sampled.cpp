// Runs training steps of one block and writes where the processor was, every millisecond.
// Arguments: length, threads, file for the samples. Tokens: 4,000 in rows of that length.
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "../src/pfsr_kernels.h"

namespace {

constexpr int64_t TOKENS = 4000, STEPS = 400;
unsigned long samples[1 << 20];
int taken = 0;

void sample(int, siginfo_t*, void* context) {
  const auto* at = static_cast<const ucontext_t*>(context);
  if (taken < (1 << 20)) samples[taken++] = static_cast<unsigned long>(at->uc_mcontext.gregs[REG_RIP]);
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e3 * static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_nsec);
}

std::vector<std::vector<float>> memory;

float* random(int64_t count) {
  memory.emplace_back(count);
  for (float& x : memory.back()) x = static_cast<float>(std::rand() % 2000 - 1000) * 1e-4f;
  return memory.back().data();
}

template <class Arrays>
Arrays arrays(const pfsr_shape& s) {
  const int64_t channels = s.inner + 2 * s.state;
  return {random((s.inner + channels + s.heads) * s.dim), random(s.dim * s.inner),
          random(channels * s.taps), random(s.inner), random(channels), random(s.heads),
          random(s.heads), random(s.heads), random(s.heads), random(s.heads),
          random(s.heads * s.dim)};
}

double median(std::vector<double>& times) {
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main(int, char** arguments) {
  const int64_t length = std::atol(arguments[1]), rows = TOKENS / length;
  const pfsr_shape shape{rows, length, 1, 64, 128, 4, 32, 4, 1, std::atol(arguments[2]), 1e-5};
  const auto parameters = arrays<pfsr_parameters>(shape);
  const auto gradients = arrays<pfsr_gradients>(shape);
  const int64_t numbers = rows * length * shape.dim;
  float *u = random(numbers), *out = random(numbers), *grad = random(numbers);
  float* kept = random(rows * pfsr_kept_floats(&shape));
  struct sigaction action {};
  action.sa_sigaction = sample;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGPROF, &action, nullptr);
  const itimerval every{{0, 1000}, {0, 1000}}, never{};
  setitimer(ITIMER_PROF, &every, nullptr);
  std::vector<double> forward, backward;
  for (int64_t i = 0; i < STEPS; ++i) {
    const double start = now();
    pfsr_forward(&shape, &parameters, u, nullptr, out, kept);
    const double between = now();
    pfsr_backward(&shape, &parameters, u, nullptr, kept, out, grad, &gradients);
    forward.push_back(between - start);
    backward.push_back(now() - between);
  }
  setitimer(ITIMER_PROF, &never, nullptr);
  std::printf("%f %f\n", median(forward), median(backward));
  FILE* file = std::fopen(arguments[3], "w");
  for (int i = 0; i < taken; ++i) std::fprintf(file, "%lx\n", samples[i]);
  return std::fclose(file);
}
