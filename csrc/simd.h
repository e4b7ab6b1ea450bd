// Vectors as wide as the instruction set's registers: their arithmetic is the compiler's vector
// extension, and here are the few operations that each instruction set does in its own way.
//
// The files that include this are compiled once for each instruction set, so everything lies in
// namespace mm::MM_ISA, and nothing inline of the C++ library is used: the linker keeps one copy of
// a function, and that of AVX-512 would be run everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "kernels.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bit i is bit i % 8 of byte i / 8");

#define MM_INLINE inline __attribute__((always_inline))

namespace mm::MM_ISA {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define MM_AVX512 1
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  static constexpr int kWidth = kVectorBytes / sizeof(T);
};

template <typename T>
using Vector = typename Lanes<T>::Vector;
template <typename T>
constexpr int kWidth = Lanes<T>::kWidth;

// The unsigned integer as wide as a float.
template <typename T>
struct Integer;
template <>
struct Integer<float> {
  using Type = std::uint32_t;
  static constexpr Type kMinusZero = 0x80000000u, kMinusInfinity = 0xff800000u;
};
template <>
struct Integer<double> {
  using Type = std::uint64_t;
  static constexpr Type kMinusZero = 0x8000000000000000u, kMinusInfinity = 0xfff0000000000000u;
};
template <typename T>
using Word = typename Integer<T>::Type;

template <typename T>
MM_INLINE Vector<T> load(const T* x) {
  Vector<T> v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

template <typename T>
MM_INLINE void store(T* x, Vector<T> v) {
  std::memcpy(x, &v, sizeof v);
}

// Writes past the caches to an aligned address; no line is read first to be overwritten. Other
// threads and processes see it after end_stream().
template <typename T>
MM_INLINE void stream(T* x, Vector<T> v) {
#if defined(MM_AVX512)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(x), reinterpret_cast<__m512i>(v));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(x), reinterpret_cast<__m256i>(v));
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(x), reinterpret_cast<__m128i>(v));
#else
  store(x, v);
#endif
}

MM_INLINE void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <typename T>
MM_INLINE Vector<T> broadcast(T value) {
  return value - Vector<T>{};  // keeps -0, as adding 0 would not
}

// As load, with zeros beyond the first `bytes`.
MM_INLINE Vector<std::uint64_t> load_some(const Bits* x, std::int64_t bytes) {
  Vector<std::uint64_t> v{};
  std::memcpy(&v, x, static_cast<std::size_t>(bytes));
  return v;
}

MM_INLINE Vector<std::uint64_t> load_bits(const Bits* x) {
  Vector<std::uint64_t> v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

// x < 0 by its bits, minus_zero < x <= minus_infinity, is rank < count with these two.
template <typename U>
MM_INLINE Vector<U> rank(Vector<U> x, U minus_zero) {
  return x - static_cast<U>(minus_zero + 1);
}

#if !defined(MM_AVX512)
// The top bit of each lane: whether x < 0. No unsigned comparison is needed, which SSE2 has not.
template <typename U>
MM_INLINE Vector<U> below_zero(Vector<U> x, U minus_zero, U minus_infinity) {
  const Vector<U> r = rank<U>(x, minus_zero);
  return ~r & (r - static_cast<U>(minus_infinity - minus_zero));
}

// The top bits of the lanes, that of lane 0 in bit 0.
template <typename U>
MM_INLINE std::uint64_t top_bits(Vector<U> v) {
#if defined(__AVX2__)
  if constexpr (sizeof(U) == 4) {
    return static_cast<unsigned>(_mm256_movemask_ps(reinterpret_cast<__m256>(v)));
  } else if constexpr (sizeof(U) == 8) {
    return static_cast<unsigned>(_mm256_movemask_pd(reinterpret_cast<__m256d>(v)));
  } else {
    const __m256i lanes = reinterpret_cast<__m256i>(v);  // saturation keeps the sign
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    return static_cast<unsigned>(_mm_movemask_epi8(bytes));
  }
#elif defined(__SSE2__)
  if constexpr (sizeof(U) == 4) {
    return static_cast<unsigned>(_mm_movemask_ps(reinterpret_cast<__m128>(v)));
  } else if constexpr (sizeof(U) == 8) {
    return static_cast<unsigned>(_mm_movemask_pd(reinterpret_cast<__m128d>(v)));
  } else {
    const __m128i bytes = _mm_packs_epi16(reinterpret_cast<__m128i>(v), _mm_setzero_si128());
    return static_cast<unsigned>(_mm_movemask_epi8(bytes));
  }
#else
  std::uint64_t word = 0;
  for (int i = 0; i < kWidth<U>; ++i) {
    word |= static_cast<std::uint64_t>(v[i] >> (8 * sizeof(U) - 1)) << i;
  }
  return word;
#endif
}
#endif

// Bit i: whether lane i is negative. Bits beyond the lanes are 0.
template <typename U>
MM_INLINE std::uint64_t negatives(Vector<U> x, U minus_zero, U minus_infinity) {
#if defined(MM_AVX512)
  const __m512i r = reinterpret_cast<__m512i>(rank<U>(x, minus_zero));
  const U count = minus_infinity - minus_zero;
  if constexpr (sizeof(U) == 2) {
    return _mm512_cmplt_epu16_mask(r, _mm512_set1_epi16(static_cast<short>(count)));
  } else if constexpr (sizeof(U) == 4) {
    return _mm512_cmplt_epu32_mask(r, _mm512_set1_epi32(static_cast<int>(count)));
  } else {
    return _mm512_cmplt_epu64_mask(r, _mm512_set1_epi64(static_cast<long long>(count)));
  }
#else
  return top_bits<U>(below_zero<U>(x, minus_zero, minus_infinity));
#endif
}

template <typename T>
MM_INLINE Vector<Word<T>> bits_of(Vector<T> x) {
  return reinterpret_cast<Vector<Word<T>>>(x);
}

template <typename T>
MM_INLINE std::uint64_t negatives(Vector<T> x) {
  return negatives<Word<T>>(bits_of<T>(x), Integer<T>::kMinusZero, Integer<T>::kMinusInfinity);
}

// `value` in the lanes whose bit is set, else 0; lane 0 takes bit 0, bits beyond do not matter.
template <typename U>
MM_INLINE Vector<U> where(std::uint64_t bits, U value) {
#if defined(MM_AVX512)
  if constexpr (sizeof(U) == 2) {
    return reinterpret_cast<Vector<U>>(
        _mm512_maskz_set1_epi16(static_cast<__mmask32>(bits), static_cast<short>(value)));
  } else if constexpr (sizeof(U) == 4) {
    return reinterpret_cast<Vector<U>>(
        _mm512_maskz_set1_epi32(static_cast<__mmask16>(bits), static_cast<int>(value)));
  } else {
    return reinterpret_cast<Vector<U>>(
        _mm512_maskz_set1_epi64(static_cast<__mmask8>(bits), static_cast<long long>(value)));
  }
#else
  Vector<U> selected;
  for (int i = 0; i < kWidth<U>; ++i) selected[i] = static_cast<U>(U{1} << i);
  const Vector<U> mine = selected & static_cast<U>(bits);
  return reinterpret_cast<Vector<U>>(mine == selected) & value;
#endif
}

// s * value: negated where the bit is set.
template <typename T>
MM_INLINE Vector<T> times_sign(Vector<T> value, std::uint64_t bits) {
#if defined(MM_AVX512)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_xor_ps(value, static_cast<__mmask16>(bits), value, _mm512_set1_ps(-0.0f));
  } else {
    return _mm512_mask_xor_pd(value, static_cast<__mmask8>(bits), value, _mm512_set1_pd(-0.0));
  }
#else
  return reinterpret_cast<Vector<T>>(bits_of<T>(value) ^
                                     where<Word<T>>(bits, Integer<T>::kMinusZero));
#endif
}

// s(x) * value
template <typename T>
MM_INLINE Vector<T> times_sign_of(Vector<T> x, Vector<T> value) {
#if defined(MM_AVX512)
  return times_sign<T>(value, negatives<T>(x));
#else
  using I = Integer<T>;
  const auto minus = below_zero<Word<T>>(bits_of<T>(x), I::kMinusZero, I::kMinusInfinity);
  return reinterpret_cast<Vector<T>>(bits_of<T>(value) ^ (minus & I::kMinusZero));
#endif
}

template <typename T>
MM_INLINE Vector<T> magnitude(Vector<T> x) {
  return reinterpret_cast<Vector<T>>(bits_of<T>(x) & ~Integer<T>::kMinusZero);
}

// Carry-save adder: a + b + c = 2 carry + sum, bit by bit; the sum goes to a.
MM_INLINE Vector<std::uint64_t> carry_save(Vector<std::uint64_t>& a, Vector<std::uint64_t> b,
                                           Vector<std::uint64_t> c) {
#if defined(MM_AVX512)
  const __m512i x = reinterpret_cast<__m512i>(a), y = reinterpret_cast<__m512i>(b),
                z = reinterpret_cast<__m512i>(c);
  a = reinterpret_cast<Vector<std::uint64_t>>(_mm512_ternarylogic_epi64(x, y, z, 0x96));
  return reinterpret_cast<Vector<std::uint64_t>>(_mm512_ternarylogic_epi64(x, y, z, 0xe8));
#else
  const Vector<std::uint64_t> odd = a ^ b, carry = (a & b) | (odd & c);
  a = odd ^ c;
  return carry;
#endif
}

}  // namespace mm::MM_ISA
