// CUDA kernels of the formats of slow links. A warp takes a chunk: it reads it once for the scale
// and again, from the caches, to write it.

#include "cuda_warp.cuh"

namespace mm::cuda {
namespace {

constexpr unsigned kNaN = 0x7fc00000;

template <typename T>
struct Rounding;
template <>
struct Rounding<float> {
  using Bits = unsigned;
  static constexpr Bits kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
  static constexpr float kMagic = 0x1.8p23f;  // v + magic has the integer nearest to v in its end
  static __device__ Bits bits(float x) { return __float_as_uint(x); }
  static __device__ float number(Bits bits) { return __uint_as_float(bits); }
};
template <>
struct Rounding<double> {
  using Bits = std::uint64_t;
  static constexpr Bits kMagnitude = 0x7fffffffffffffff, kInfinity = 0x7ff0000000000000;
  static constexpr double kMagic = 0x1.8p52;
  static __device__ Bits bits(double x) { return static_cast<Bits>(__double_as_longlong(x)); }
  static __device__ double number(Bits bits) {
    return __longlong_as_double(static_cast<long long>(bits));
  }
};

template <typename T>
struct Encode {
  Memory kind;
  const T* x;
  T* memory;
  Bits* out;

  __device__ T value(std::int64_t i) const {
    if (kind == Memory::none) return x[i];
    return kind == Memory::error ? x[i] + memory[i] : x[i] - memory[i];
  }
  __device__ void keep(std::int64_t i, T p, T y) const {
    if (kind == Memory::error) memory[i] = p - y;
    if (kind == Memory::replica) memory[i] = memory[i] + y;
  }
};

__device__ inline unsigned to_bf16(float x) {
  const unsigned u = __float_as_uint(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return kNaN >> 16;
  return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    encode_bf16(const __grid_constant__ Encode<T> op, std::int64_t n) {
  auto* const out = reinterpret_cast<std::uint16_t*>(op.out);
  for (std::int64_t chunk = this_warp(); chunk * kWireChunk < n; chunk += all_warps()) {
    const std::int64_t begin = chunk * kWireChunk;
    const std::int64_t end = begin + kWireChunk < n ? begin + kWireChunk : n;
#pragma unroll 4
    for (std::int64_t i = begin + this_lane(); i < end; i += kWarpSize) {
      const T p = op.value(i);
      const unsigned bits = to_bf16(static_cast<float>(p));
      out[i] = static_cast<std::uint16_t>(bits);
      op.keep(i, p, static_cast<T>(__uint_as_float(bits << 16)));
    }
  }
}

// The scale of a chunk of int8, in all lanes.
template <typename T>
__device__ float int8_scale(const Encode<T>& op, std::int64_t begin, std::int64_t end) {
  using R = Rounding<T>;
  typename R::Bits most = 0;
#pragma unroll 4
  for (std::int64_t i = begin + this_lane(); i < end; i += kWarpSize) {
    const typename R::Bits bits = R::bits(op.value(i)) & R::kMagnitude;
    most = bits > most ? bits : most;
  }
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    const typename R::Bits other = __shfl_xor_sync(kAllLanes, most, step);
    most = other > most ? other : most;
  }
  if (most >= R::kInfinity) return __uint_as_float(kNaN);
  const T size = R::number(most);
  return size < T(kWireLeast) ? 0.0f : static_cast<float>(size / T(127));
}

// The scale of a chunk of signs, in all lanes. Lane l adds up the lanes l and l + 32 of kernels.h.
template <typename T>
__device__ float sign_scale(const Encode<T>& op, std::int64_t begin, std::int64_t end) {
  T sums[2] = {};
  for (std::int64_t i = begin + this_lane(); i < end; i += 2 * kWarpSize) {
    sums[0] = sums[0] + fabs(op.value(i));
    if (i + kWarpSize < end) sums[1] = sums[1] + fabs(op.value(i + kWarpSize));
  }
  double tree = static_cast<double>(sums[0]) + static_cast<double>(sums[1]);
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    tree = tree + __shfl_xor_sync(kAllLanes, tree, step);
  }
  return static_cast<float>(tree / static_cast<double>(end - begin));
}

template <typename T>
__device__ void write_int8(const Encode<T>& op, std::int64_t begin, std::int64_t end, float scale,
                           std::int8_t* to) {
  const bool finite = scale - scale == 0;
  const T step = static_cast<T>(scale);
  const T inverse = scale == 0 || !finite ? T(0) : T(1) / step;
#pragma unroll 4
  for (std::int64_t i = begin + this_lane(); i < end; i += kWarpSize) {
    const T p = op.value(i);
    const T shifted = p * inverse + Rounding<T>::kMagic;
    to[i] = finite ? static_cast<std::int8_t>(Rounding<T>::bits(shifted) & 0xff) : std::int8_t{0};
    op.keep(i, p, finite ? (shifted - Rounding<T>::kMagic) * step : step);
  }
}

template <typename T>
__device__ void write_signs(const Encode<T>& op, std::int64_t begin, std::int64_t end, float scale,
                            Bits* to) {
  const bool finite = scale - scale == 0;
  const T step = static_cast<T>(scale);
  for (std::int64_t first = begin; first < end; first += kWarpSize) {
    const std::int64_t i = first + this_lane();
    unsigned sign = 0;
    if (i < end) {
      const T p = op.value(i);
      sign = finite ? negative(p) : 0;
      op.keep(i, p, flip(step, sign));
    }
    const unsigned word = join_bits<1>(sign);
    if (this_lane() == 0) store_word(to + first / 8, word, (end - first + 7) / 8);
  }
}

template <typename T, Format kFormat>
__global__ void __launch_bounds__(kThreads, kBlocks)
    encode_chunks(const __grid_constant__ Encode<T> op, std::int64_t n) {
  auto* const scales = reinterpret_cast<float*>(op.out);
  Bits* const payload = op.out + 4 * ((n + kWireChunk - 1) / kWireChunk);
  for (std::int64_t chunk = this_warp(); chunk * kWireChunk < n; chunk += all_warps()) {
    const std::int64_t begin = chunk * kWireChunk;
    const std::int64_t end = begin + kWireChunk < n ? begin + kWireChunk : n;
    constexpr bool kPacks = kFormat == Format::sign;
    float scale = kPacks ? sign_scale(op, begin, end) : int8_scale(op, begin, end);
    if (scale - scale != 0) scale = __uint_as_float(kNaN);
    if (this_lane() == 0) scales[chunk] = scale;
    if constexpr (kPacks) {
      write_signs(op, begin, end, scale, payload);
    } else {
      write_int8(op, begin, end, scale, reinterpret_cast<std::int8_t*>(payload));
    }
  }
}

template <typename T>
struct Decode {
  const Bits* wire;
  T* out;
  T factor;
  bool adds;
};

template <typename T, Format kFormat>
__global__ void __launch_bounds__(kThreads, kBlocks)
    decode_chunks(const __grid_constant__ Decode<T> op, std::int64_t n) {
  const std::int64_t chunks = (n + kWireChunk - 1) / kWireChunk;
  const auto* const scales = reinterpret_cast<const float*>(op.wire);
  const Bits* const payload = kFormat == Format::bf16 ? op.wire : op.wire + 4 * chunks;
  for (std::int64_t chunk = this_warp(); chunk < chunks; chunk += all_warps()) {
    const std::int64_t begin = chunk * kWireChunk;
    const std::int64_t end = begin + kWireChunk < n ? begin + kWireChunk : n;
    const T step = kFormat == Format::bf16 ? T(1) : static_cast<T>(scales[chunk]);
    const bool lost = step != step;
#pragma unroll 4
    for (std::int64_t i = begin + this_lane(); i < end; i += kWarpSize) {
      T y = step;
      if constexpr (kFormat == Format::bf16) {
        const unsigned bits = reinterpret_cast<const std::uint16_t*>(payload)[i];
        y = static_cast<T>(__uint_as_float(bits << 16));
      } else if constexpr (kFormat == Format::int8) {
        const auto q = static_cast<std::int8_t>(payload[i]);
        if (!lost) y = static_cast<T>(q) * step;
      } else {
        y = flip(step, load_bits(payload, i) & 1u);
      }
      op.out[i] = op.adds ? op.out[i] + op.factor * y : y;
    }
  }
}

template <typename T>
void wire_encode(Format format, Memory kind, const T* x, T* memory, std::int64_t n, Bits* out,
                 Stream stream) {
  if (n == 0) return;
  const Encode<T> op{kind, x, memory, out};
  const auto kernel = format == Format::bf16   ? encode_bf16<T>
                      : format == Format::int8 ? encode_chunks<T, Format::int8>
                                               : encode_chunks<T, Format::sign>;
  launch("wire_encode", wire_chunks(n), stream, kernel, op, n);
}

template <typename T>
void wire_decode(Format format, const Bits* wire, std::int64_t n, bool adds, T factor, T* out,
                 Stream stream) {
  if (n == 0) return;
  const Decode<T> op{wire, out, factor, adds};
  const auto kernel = format == Format::bf16   ? decode_chunks<T, Format::bf16>
                      : format == Format::int8 ? decode_chunks<T, Format::int8>
                                               : decode_chunks<T, Format::sign>;
  launch("wire_decode", wire_chunks(n), stream, kernel, op, n);
}

template <typename T>
void fill(Kernels<T>& kernels) {
  kernels.wire_encode = wire_encode<T>;
  kernels.wire_decode = wire_decode<T>;
}

}  // namespace

void fill_wire(Implementation& cuda) {
  fill(cuda.f32);
  fill(cuda.f64);
}

}  // namespace mm::cuda
