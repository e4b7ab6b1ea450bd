// Signs on the CPU: packing, and the steps that read or write signs. Compiled once for each
// instruction set, see simd.h.
#include "group.h"
#include "simd.h"

namespace mm::MM_ISA {
namespace {

template <typename T>
MM_INLINE std::uint64_t pack_group(const T* x) {
  std::uint64_t word = 0;
  for (int i = 0; i < kGroup; i += kWidth<T>) word |= negatives<T>(load(x + i)) << i;
  return word;
}

template <typename T>
void pack(const T* x, std::int64_t n, Bits* bits, Stream) {
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    fetch_ahead(x + i);
    store_word(bits + i / 8, pack_group(x + i));
  }
  if (i < n) store_word(bits + i / 8, pack_group(Rest<T>(x + i, n - i).values), n - i);
}

MM_INLINE std::uint64_t pack16_group(const std::uint16_t* x, std::uint16_t minus_infinity) {
  std::uint64_t word = 0;
  for (int i = 0; i < kGroup; i += kWidth<std::uint16_t>) {
    word |= negatives<std::uint16_t>(load(x + i), 0x8000, minus_infinity) << i;
  }
  return word;
}

void pack16(const std::uint16_t* x, std::int64_t n, std::uint16_t minus_infinity, Bits* bits,
            Stream) {
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    fetch_ahead(x + i);
    store_word(bits + i / 8, pack16_group(x + i, minus_infinity));
  }
  if (i < n) {
    const Rest<std::uint16_t> rest(x + i, n - i);
    store_word(bits + i / 8, pack16_group(rest.values, minus_infinity), n - i);
  }
}

template <typename T>
MM_INLINE void unpack_group(std::uint64_t word, T* out) {
  for (int i = 0; i < kGroup; i += kWidth<T>)
    store(out + i, times_sign<T>(broadcast(T{1}), word >> i));
}

template <typename T>
void unpack(const Bits* bits, std::int64_t n, T* out, Stream) {
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) unpack_group(load_word(bits + i / 8), out + i);
  if (i < n) {
    Rest<T> rest(out + i, n - i);
    unpack_group(load_word(bits + i / 8, n - i), rest.values);
    rest.copy_to(out + i);
  }
}

template <typename T>
MM_INLINE std::uint64_t signum_group(T* m, const T* g, T beta, T one_minus_beta) {
  std::uint64_t word = 0;
  for (int i = 0; i < kGroup; i += kWidth<T>) {
    const Vector<T> mean = load(m + i) * beta + load(g + i) * one_minus_beta;
    store(m + i, mean);
    word |= negatives<T>(mean) << i;
  }
  return word;
}

template <typename T>
void signum(T* m, const T* g, std::int64_t n, T beta, T one_minus_beta, Bits* bits, Stream) {
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    fetch_ahead(m + i);
    fetch_ahead(g + i);
    store_word(bits + i / 8, signum_group(m + i, g + i, beta, one_minus_beta));
  }
  if (i < n) {
    Rest<T> last_m(m + i, n - i);
    const Rest<T> last_g(g + i, n - i);
    const std::uint64_t word = signum_group(last_m.values, last_g.values, beta, one_minus_beta);
    store_word(bits + i / 8, word, n - i);
    last_m.copy_to(m + i);
  }
}

template <typename T>
MM_INLINE void apply_group(T* x, std::uint64_t word, const T* step) {
  for (int i = 0; i < kGroup; i += kWidth<T>) {
    store<T>(x + i, load(x + i) - times_sign<T>(load(step + i), word >> i));
  }
}

template <typename T>
MM_INLINE void apply_group(T* x, std::uint64_t word, const T* step, const T* shrink) {
  for (int i = 0; i < kGroup; i += kWidth<T>) {
    const Vector<T> before = load(x + i);
    const Vector<T> update = times_sign<T>(load(step + i), word >> i) + load(shrink + i) * before;
    store<T>(x + i, before - update);
  }
}

template <typename T>
void apply_plain(T* x, const Bits* bits, std::int64_t n, const Factor<T>& step) {
  Factors<T> steps(step);
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    fetch_ahead(x + i);
    apply_group(x + i, load_word(bits + i / 8), steps.at(i));
  }
  if (i < n) {
    Rest<T> rest(x + i, n - i);
    apply_group(rest.values, load_word(bits + i / 8, n - i), steps.at(i, n - i));
    rest.copy_to(x + i);
  }
}

template <typename T>
void apply_shrinking(T* x, const Bits* bits, std::int64_t n, const Factor<T>& step,
                     const Factor<T>& shrink) {
  Factors<T> steps(step), shrinks(shrink);
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    fetch_ahead(x + i);
    apply_group(x + i, load_word(bits + i / 8), steps.at(i), shrinks.at(i));
  }
  if (i < n) {
    Rest<T> rest(x + i, n - i);
    const std::uint64_t word = load_word(bits + i / 8, n - i);
    apply_group(rest.values, word, steps.at(i, n - i), shrinks.at(i, n - i));
    rest.copy_to(x + i);
  }
}

template <typename T>
void apply(T* x, const Bits* bits, std::int64_t n, Factor<T> step, const Factor<T>* shrink,
           Stream) {
  if (shrink) {
    apply_shrinking(x, bits, n, step, *shrink);
  } else {
    apply_plain(x, bits, n, step);
  }
}

template <typename T>
Kernels<T> with_signs(Kernels<T> kernels) {
  kernels.pack = pack<T>;
  kernels.unpack = unpack<T>;
  kernels.signum = signum<T>;
  kernels.apply = apply<T>;
  return kernels;
}

}  // namespace

void fill_sign(Implementation& implementation) {
  implementation.f32 = with_signs(implementation.f32);
  implementation.f64 = with_signs(implementation.f64);
  implementation.sign.pack16 = pack16;
}

}  // namespace mm::MM_ISA
