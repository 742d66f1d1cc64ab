// Threads, their scratch memory, and the treatment of denormals: everything that is not arithmetic.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pfsr {

// Denormals count as zero while this lives; the caller's mode comes back afterwards. Without it a
// decayed state makes every operation on it tens of times slower.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | (1ull << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

// Memory of the calling thread, aligned to 64 bytes; it stays until the thread ends, since new
// pages cost more than a short sequence.
inline float* scratch(int64_t floats) {
  struct Release {
    void operator()(float* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<float, Release> memory;
  thread_local int64_t size = 0;
  if (size < floats) {
    const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    size = 0;
    memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    size = floats;
  }
  return memory.get();
}

// work(i, scratch) for every i < count, by at most `threads` threads: the calling one and others
// that live as long as this call. Which thread does which i is open; a result must not depend on it.
template <class Work>
void parallel(int64_t count, int64_t threads, int64_t scratch_floats, Work work) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto run = [&] {
    try {
      const FlushDenormals flush;
      float* memory = scratch(scratch_floats);
      for (int64_t i = next++; i < count; i = next++) work(i, memory);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  std::vector<std::thread> others;
  others.reserve(threads > 1 ? threads : 0);
  try {
    for (int64_t i = 1; i < threads && i < count; ++i) others.emplace_back(run);
  } catch (const std::system_error&) {
    // No more threads to be had: those there are do the work.
  }
  run();
  for (std::thread& other : others) other.join();
  if (failed) throw std::bad_alloc();
}

}  // namespace pfsr
