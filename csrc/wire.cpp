// Vectors in the formats of slow links, on the CPU: chunk by chunk, through buffers that stay in
// the L1 cache. Compiled once for each instruction set, see simd.h.
#include "group.h"
#include "simd.h"

namespace mm::MM_ISA {
namespace {

static_assert(kWireChunk % kGroup == 0);

// As many numbers of type E as a vector has of type T.
template <typename E, typename T>
struct Small {
  typedef E Vector __attribute__((vector_size(kWidth<T> * sizeof(E))));
};

template <typename E, typename T>
MM_INLINE typename Small<E, T>::Vector load_small(const E* x) {
  typename Small<E, T>::Vector v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

template <typename T>
struct Rounding;
template <>
struct Rounding<float> {
  using Signed = std::int32_t;
  static constexpr Signed kInfinity = 0x7f800000;
  static constexpr float kMagic = 0x1.8p23f;  // v + magic has the integer nearest to v in its end
};
template <>
struct Rounding<double> {
  using Signed = std::int64_t;
  static constexpr Signed kInfinity = 0x7ff0000000000000;
  static constexpr double kMagic = 0x1.8p52;
};

constexpr std::uint32_t kNaN = 0x7fc00000;

float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Elements of one chunk, and what they decode to; zeros from its end to that of its last group.
template <typename T>
struct Chunk {
  std::int64_t count;  // of elements
  std::int64_t padded;
  T p[kWireChunk];
  T y[kWireChunk];

  explicit Chunk(std::int64_t count)
      : count(count), padded((count + kGroup - 1) / kGroup * kGroup) {}

  void load(Memory kind, const T* x, const T* memory) {
    std::int64_t i = 0;
    for (; i + kWidth<T> <= count; i += kWidth<T>) {
      const Vector<T> v = MM_ISA::load(x + i);
      store<T>(p + i, kind == Memory::none    ? v
                      : kind == Memory::error ? v + MM_ISA::load(memory + i)
                                              : v - MM_ISA::load(memory + i));
    }
    for (; i < count; ++i) {
      p[i] = kind == Memory::none    ? x[i]
             : kind == Memory::error ? x[i] + memory[i]
                                     : x[i] - memory[i];
    }
    for (; i < padded; ++i) p[i] = 0;
  }

  void keep(Memory kind, T* memory) const {
    if (kind == Memory::error) {
      for (std::int64_t i = 0; i < count; ++i) memory[i] = p[i] - y[i];
    } else if (kind == Memory::replica) {
      for (std::int64_t i = 0; i < count; ++i) memory[i] = memory[i] + y[i];
    }
  }
};

template <typename T>
void fill_nan(Memory kind, T* memory, std::int64_t count) {
  if (kind == Memory::none) return;
  for (std::int64_t i = 0; i < count; ++i) memory[i] = from_bits(kNaN);
}

MM_INLINE void to_bf16(const float* x, std::uint16_t* out) {
  const Vector<std::uint32_t> u = bits_of<float>(load(x));
  const auto is_nan = reinterpret_cast<Vector<std::uint32_t>>(
      reinterpret_cast<Vector<std::int32_t>>(u & 0x7fffffffu) > Rounding<float>::kInfinity);
  const Vector<std::uint32_t> rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  const Vector<std::uint32_t> bits = (rounded & ~is_nan) | (is_nan & (kNaN >> 16));
  const auto small = __builtin_convertvector(bits, typename Small<std::uint16_t, float>::Vector);
  std::memcpy(out, &small, sizeof small);
}

MM_INLINE void from_bf16(const std::uint16_t* in, float* out) {
  const auto u =
      __builtin_convertvector(load_small<std::uint16_t, float>(in), Vector<std::uint32_t>);
  store<float>(out, reinterpret_cast<Vector<float>>(u << 16));
}

// One group; y may be null.
template <typename T>
MM_INLINE void bf16_group(const T* p, std::uint16_t* out, T* y) {
  float narrow[kGroup];
  for (int i = 0; i < kGroup; ++i) narrow[i] = static_cast<float>(p[i]);
  for (int i = 0; i < kGroup; i += kWidth<float>) to_bf16(narrow + i, out + i);
  if (y == nullptr) return;
  for (int i = 0; i < kGroup; i += kWidth<float>) from_bf16(out + i, narrow + i);
  for (int i = 0; i < kGroup; ++i) y[i] = static_cast<T>(narrow[i]);
}

template <typename T>
void encode_bf16(Chunk<T>& chunk, bool decodes, Bits* out) {
  std::uint16_t bits[kGroup];
  for (std::int64_t i = 0; i < chunk.count; i += kGroup) {
    bf16_group(chunk.p + i, bits, decodes ? chunk.y + i : nullptr);
    const std::int64_t left = chunk.count - i < kGroup ? chunk.count - i : kGroup;
    std::memcpy(out + 2 * i, bits, static_cast<std::size_t>(2 * left));
  }
}

// The bits of the largest magnitude: NaN and infinity are larger than all numbers.
template <typename T>
typename Rounding<T>::Signed largest(const Chunk<T>& chunk) {
  using Signed = typename Rounding<T>::Signed;
  Vector<Signed> most{};
  for (std::int64_t i = 0; i < chunk.padded; i += kWidth<T>) {
    const auto m = reinterpret_cast<Vector<Signed>>(magnitude<T>(load(chunk.p + i)));
    const auto larger = m > most;
    most = (m & larger) | (most & ~larger);
  }
  Signed result = 0;
  for (int lane = 0; lane < kWidth<T>; ++lane) result = most[lane] > result ? most[lane] : result;
  return result;
}

// Returns the scale of a chunk, which is not finite if it cannot be written.
template <typename T>
float int8_scale(const Chunk<T>& chunk) {
  const auto bits = largest(chunk);
  if (bits >= Rounding<T>::kInfinity) return from_bits(kNaN);
  T most;
  std::memcpy(&most, &bits, sizeof most);
  return most < T(kWireLeast) ? 0.0f : static_cast<float>(most / T(127));
}

template <typename T>
void encode_int8(Chunk<T>& chunk, float scale, Bits* out) {
  const T step = static_cast<T>(scale), inverse = scale == 0 ? T(0) : T(1) / step;
  std::int8_t q[kWireChunk];
  for (std::int64_t i = 0; i < chunk.padded; i += kWidth<T>) {
    const Vector<T> shifted = load(chunk.p + i) * inverse + Rounding<T>::kMagic;
    const auto small =
        __builtin_convertvector(reinterpret_cast<Vector<typename Rounding<T>::Signed>>(shifted),
                                typename Small<std::int8_t, T>::Vector);
    std::memcpy(q + i, &small, sizeof small);
    store<T>(chunk.y + i, (shifted - Rounding<T>::kMagic) * step);
  }
  std::memcpy(out, q, static_cast<std::size_t>(chunk.count));
}

// tree[0] = the sum of 2 kHalf numbers, added as a tree.
template <int kHalf>
MM_INLINE void fold(double* tree) {
  for (int l = 0; l < kHalf; ++l) tree[l] += tree[kHalf + l];
  if constexpr (kHalf > 1) fold<kHalf / 2>(tree);
}

template <typename T>
float sign_scale(const Chunk<T>& chunk) {
  Vector<T> lanes[kLanes / kWidth<T>] = {};
  for (std::int64_t i = 0; i < chunk.padded; i += kLanes) {
    for (int l = 0; l < kLanes; l += kWidth<T>) {
      lanes[l / kWidth<T>] += magnitude<T>(load(chunk.p + i + l));
    }
  }
  T sums[kLanes];
  std::memcpy(sums, lanes, sizeof sums);
  double tree[kLanes];
  for (int l = 0; l < kLanes; ++l) tree[l] = static_cast<double>(sums[l]);
  fold<kLanes / 2>(tree);
  return static_cast<float>(tree[0] / static_cast<double>(chunk.count));
}

template <typename T>
void encode_sign(Chunk<T>& chunk, float scale, Bits* out) {
  const Vector<T> step = broadcast(static_cast<T>(scale));
  for (std::int64_t i = 0; i < chunk.padded; i += kGroup) {
    std::uint64_t word = 0;
    for (int j = 0; j < kGroup; j += kWidth<T>) {
      const Vector<T> p = load(chunk.p + i + j);
      word |= negatives<T>(p) << j;
      store<T>(chunk.y + i + j, times_sign_of<T>(p, step));
    }
    if (i + kGroup <= chunk.count) {
      store_word(out + i / 8, word);
    } else {
      store_word(out + i / 8, word, chunk.count - i);
    }
  }
}

bool finite(float scale) { return scale - scale == 0; }

template <typename T>
void wire_encode(Format format, Memory kind, const T* x, T* memory, std::int64_t n, Bits* out,
                 Stream) {
  Bits* const scales = out;
  Bits* const payload = out + 4 * wire_chunks(n);
  for (std::int64_t begin = 0; begin < n; begin += kWireChunk) {
    Chunk<T> chunk(n - begin < kWireChunk ? n - begin : kWireChunk);
    T* const kept = kind == Memory::none ? nullptr : memory + begin;
    chunk.load(kind, x + begin, kept);
    if (format == Format::bf16) {
      encode_bf16(chunk, kind != Memory::none, out + 2 * begin);
      chunk.keep(kind, kept);
      continue;
    }
    const bool packs = format == Format::sign;
    Bits* const to = payload + (packs ? begin / 8 : begin);
    float scale = packs ? sign_scale(chunk) : int8_scale(chunk);
    if (!finite(scale)) {
      scale = from_bits(kNaN);
      const std::int64_t bytes = packs ? (chunk.count + 7) / 8 : chunk.count;
      std::memset(to, 0, static_cast<std::size_t>(bytes));
      fill_nan(kind, kept, chunk.count);
    } else {
      packs ? encode_sign(chunk, scale, to) : encode_int8(chunk, scale, to);
      chunk.keep(kind, kept);
    }
    std::memcpy(scales + begin / kWireChunk * 4, &scale, sizeof scale);
  }
}

template <typename T>
void decode_group(const std::uint16_t* in, T* y) {
  float wide[kGroup];
  for (int i = 0; i < kGroup; i += kWidth<float>) from_bf16(in + i, wide + i);
  for (int i = 0; i < kGroup; ++i) y[i] = static_cast<T>(wide[i]);
}

template <typename T>
void decode_group(const std::int8_t* in, T step, T* y) {
  for (int i = 0; i < kGroup; i += kWidth<T>) {
    const auto q = __builtin_convertvector(load_small<std::int8_t, T>(in + i), Vector<T>);
    store<T>(y + i, q * step);
  }
}

template <typename T>
void decode_group(std::uint64_t word, T step, T* y) {
  for (int i = 0; i < kGroup; i += kWidth<T>) {
    store<T>(y + i, times_sign<T>(broadcast(step), word >> i));
  }
}

// One group of `left` elements.
template <typename T>
void decode_group(Format format, const Bits* payload, float scale, std::int64_t left, T* y) {
  const T step = static_cast<T>(scale);
  const auto elements = static_cast<std::size_t>(left);
  if (format == Format::bf16) {
    std::uint16_t in[kGroup] = {};
    std::memcpy(in, payload, 2 * elements);
    decode_group(in, y);
  } else if (scale != scale) {
    for (int i = 0; i < kGroup; ++i) y[i] = step;
  } else if (format == Format::int8) {
    std::int8_t in[kGroup] = {};
    std::memcpy(in, payload, elements);
    decode_group(in, step, y);
  } else {
    decode_group(left < kGroup ? load_word(payload, left) : load_word(payload), step, y);
  }
}

template <typename T>
void wire_decode(Format format, const Bits* wire, std::int64_t n, bool adds, T factor, T* out,
                 Stream) {
  const Bits* const payload = format == Format::bf16 ? wire : wire + 4 * wire_chunks(n);
  float scale = 1;
  for (std::int64_t i = 0; i < n; i += kGroup) {
    if (format != Format::bf16 && i % kWireChunk == 0) {
      std::memcpy(&scale, wire + i / kWireChunk * 4, sizeof scale);
    }
    const std::int64_t left = n - i < kGroup ? n - i : kGroup;
    const Bits* const from = payload + (format == Format::bf16   ? 2 * i
                                        : format == Format::int8 ? i
                                                                 : i / 8);
    T y[kGroup];
    decode_group(format, from, scale, left, y);
    if (left == kGroup && adds) {
      for (int j = 0; j < kGroup; ++j) out[i + j] = out[i + j] + factor * y[j];
    } else if (left == kGroup) {
      std::memcpy(out + i, y, sizeof y);
    } else {
      for (std::int64_t j = 0; j < left; ++j) out[i + j] = adds ? out[i + j] + factor * y[j] : y[j];
    }
  }
}

template <typename T>
Kernels<T> with_wire(Kernels<T> kernels) {
  kernels.wire_encode = wire_encode<T>;
  kernels.wire_decode = wire_decode<T>;
  return kernels;
}

}  // namespace

void fill_wire(Implementation& implementation) {
  implementation.f32 = with_wire(implementation.f32);
  implementation.f64 = with_wire(implementation.f64);
}

}  // namespace mm::MM_ISA
