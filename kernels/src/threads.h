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

// Memory that only grows, aligned to 64 bytes: new pages cost more than a short sequence. What
// stood in it is lost when it grows.
class Memory {
 public:
  float* of(int64_t floats) {
    if (size_ < floats) {
      const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + 63) / 64 * 64;
      size_ = 0;
      start_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      if (!start_) throw std::bad_alloc();
      size_ = floats;
    }
    return start_.get();
  }

 private:
  struct Release {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Release> start_;
  int64_t size_ = 0;
};

// The calling thread's, until it ends: a pass's scratch memory, and what divided heads exchange.
inline Memory& scratch() {
  thread_local Memory memory;
  return memory;
}

inline Memory& exchange_memory() {
  thread_local Memory memory;
  return memory;
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
      float* memory = scratch().of(scratch_floats);
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
