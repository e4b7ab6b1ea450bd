// The sign kernels and their like go through an array in groups of 64 elements: 64 signs are one
// word. What is left at the end goes through a buffer of that size, so nothing beyond the array is
// read or written.
#pragma once

#include "simd.h"

namespace mm::MM_ISA {

constexpr int kGroup = 64;

// Has the group that lies 1 KiB ahead brought to the cache: the processor's own prefetching stops
// at every page. What is fetched may lie beyond the array.
template <typename T>
MM_INLINE void fetch_ahead(const T* x) {
  const std::uintptr_t ahead = reinterpret_cast<std::uintptr_t>(x) + 1024;
  for (std::size_t line = 0; line < kGroup * sizeof(T); line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(ahead + line));
  }
}

// The last elements of an array, fewer than a group, padded with 0.
template <typename T>
struct Rest {
  Rest(const T* x, std::int64_t count) : count(count) {
    std::memcpy(values, x, static_cast<std::size_t>(count) * sizeof(T));
  }
  void copy_to(T* x) const { std::memcpy(x, values, static_cast<std::size_t>(count) * sizeof(T)); }

  std::int64_t count;
  T values[kGroup] = {};
};

MM_INLINE void store_word(Bits* bits, std::uint64_t word) { std::memcpy(bits, &word, sizeof word); }

// The first `count` < 64 bits of the word; padding bits are 0.
MM_INLINE void store_word(Bits* bits, std::uint64_t word, std::int64_t count) {
  word &= (std::uint64_t{1} << count) - 1;
  std::memcpy(bits, &word, static_cast<std::size_t>((count + 7) / 8));
}

MM_INLINE std::uint64_t load_word(const Bits* bits) {
  std::uint64_t word;
  std::memcpy(&word, bits, sizeof word);
  return word;
}

MM_INLINE std::uint64_t load_word(const Bits* bits, std::int64_t count) {
  std::uint64_t word = 0;
  std::memcpy(&word, bits, static_cast<std::size_t>((count + 7) / 8));
  return word;
}

// Gives the factors of one group after the other, wherever they come from.
template <typename T>
class Factors {
 public:
  explicit Factors(const Factor<T>& factor) : factor_(factor) {
    if (factor.values) return;
    fill(0, kGroup, factor.value);
    same_until_ = INT64_MAX;
  }

  // Returns kGroup factors, those of coordinates i to i + count - 1 and any beyond. i ascends.
  MM_INLINE const T* at(std::int64_t i, std::int64_t count = kGroup) {
    if (i + count <= same_until_) return buffer_;
    if (!factor_.ends && count == kGroup) return factor_.values + i;
    return gather(i, count);
  }

 private:
  __attribute__((noinline)) const T* gather(std::int64_t i, std::int64_t count) {
    if (!factor_.ends) {
      std::memcpy(buffer_, factor_.values + i, static_cast<std::size_t>(count) * sizeof(T));
      return buffer_;
    }
    const std::int64_t* ends = factor_.ends;
    while (ends[segment_] <= i) ++segment_;
    same_until_ = ends[segment_] >= i + kGroup ? ends[segment_] : 0;
    std::int64_t from = i;
    for (std::int64_t s = segment_; from < i + count; ++s) {
      const std::int64_t to = ends[s] < i + count ? ends[s] : i + count;
      fill(from - i, to - i, factor_.values[s]);
      from = to;
    }
    return buffer_;
  }

  void fill(std::int64_t from, std::int64_t to, T value) {
    for (std::int64_t i = from; i < to; ++i) buffer_[i] = value;
  }

  Factor<T> factor_;
  std::int64_t segment_ = 0;     // that of the last gathered coordinate
  std::int64_t same_until_ = 0;  // the buffer has the factor of every coordinate up to here
  T buffer_[kGroup] = {};
};

}  // namespace mm::MM_ISA
