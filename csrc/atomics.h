// 64-bit words in memory that several processes share. Unlike MPI's atomics, which may take a lock
// inside, one instruction each: a process that is killed never leaves a word locked.
#pragma once

#include <cstdint>

namespace mm {

// Addresses come from numpy as integers; they are aligned to 8 bytes and stay mapped meanwhile.
inline std::int64_t* word_at(std::uintptr_t address) {
  return reinterpret_cast<std::int64_t*>(address);
}

inline std::int64_t atomic_load(std::uintptr_t address) {
  return __atomic_load_n(word_at(address), __ATOMIC_SEQ_CST);
}

inline std::int64_t atomic_compare_and_swap(std::uintptr_t address, std::int64_t expected,
                                            std::int64_t desired) {
  __atomic_compare_exchange_n(word_at(address), &expected, desired, false, __ATOMIC_SEQ_CST,
                              __ATOMIC_SEQ_CST);
  return expected;  // what was there
}

inline std::int64_t atomic_fetch_add(std::uintptr_t address, std::int64_t k) {
  return __atomic_fetch_add(word_at(address), k, __ATOMIC_SEQ_CST);
}

}  // namespace mm
