// What a warp does: wide loads, sign bits to words and back, the segment of a coordinate; and the
// kernel that all elementwise operations run in.
//
// No operation is contracted to a fused multiply-add, flushes denormals or rounds otherwise than
// to nearest: -fmad=false --ftz=false --prec-div=true, nvcc's defaults but the first. So
// `a * b + c` rounds twice.
#pragma once

#include "cuda_launch.cuh"

namespace mm::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// V consecutive elements, moved by one instruction.
template <typename T, int V>
struct alignas(V * sizeof(T)) Vec {
  T v[V];
  __device__ T& operator[](int c) { return v[c]; }
  __device__ const T& operator[](int c) const { return v[c]; }
};

// How many elements the widest load moves, 16 bytes.
template <typename T>
constexpr int kWide = 16 / sizeof(T);

template <int V, typename T>
__device__ Vec<T, V> load(const T* p) {
  return *reinterpret_cast<const Vec<T, V>*>(p);
}

template <int V, typename T>
__device__ void store(T* p, const Vec<T, V>& x) {
  *reinterpret_cast<Vec<T, V>*>(p) = x;
}

__device__ inline int this_lane() { return threadIdx.x % kWarpSize; }
__device__ inline std::int64_t this_warp() {
  return std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
}
__device__ inline std::int64_t all_warps() { return std::int64_t{gridDim.x} * kWarps; }

// x < 0, by the bits: from that after -0 up to -inf.
__device__ inline unsigned negative(float x) {
  return __float_as_uint(x) - 0x80000001u < 0x7f800000u;
}
__device__ inline unsigned negative(double x) {
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(x));
  return bits - 0x8000000000000001u < 0x7ff0000000000000u;
}

template <typename T, int V>
__device__ unsigned negative(const Vec<T, V>& x) {
  unsigned bits = 0;
#pragma unroll
  for (int c = 0; c < V; ++c) bits |= negative(x[c]) << c;
  return bits;
}

// -x where the lowest bit is set, else x: x times a sign.
__device__ inline float flip(float x, unsigned bit) {
  return __uint_as_float(__float_as_uint(x) ^ (bit << 31));
}
__device__ inline double flip(double x, unsigned bit) {
  const auto bits = static_cast<std::uint64_t>(__double_as_longlong(x));
  return __longlong_as_double(static_cast<long long>(bits ^ (std::uint64_t{bit} << 63)));
}

// The bits of the coordinates from i on, as many as are left of its byte.
__device__ inline unsigned load_bits(const Bits* bits, std::int64_t i) {
  return static_cast<unsigned>(bits[i / 8]) >> (i % 8);
}

// Each lane gives the bits of its V of the warp's 32 V consecutive coordinates, and gets a word of
// the packed result, that of index lane / (32 / V).
template <int V>
__device__ unsigned join_bits(unsigned bits) {
  if constexpr (V == 1) {
    return __ballot_sync(kAllLanes, bits);
  } else {
    unsigned word = bits << (this_lane() * V % 32);
#pragma unroll
    for (int step = 1; step < kWarpSize / V; step *= 2) {
      word |= __shfl_xor_sync(kAllLanes, word, step);
    }
    return word;
  }
}

// Writes the first `bytes` bytes of a word, at any address.
__device__ inline void store_word(Bits* to, unsigned word, std::int64_t bytes = 4) {
  if (bytes >= 4 && reinterpret_cast<std::uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<unsigned*>(to) = word;
    return;
  }
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    if (b < bytes) to[b] = static_cast<Bits>(word >> 8 * b);
  }
}

// Writes the words that join_bits<V> gave for U successive 32 V coordinates: one store for the
// warp.
template <int V, int U>
__device__ void store_words(Bits* to, const unsigned (&words)[U]) {
  constexpr int kSharing = kWarpSize / V;  // lanes that hold the same word
  static_assert(U <= kSharing);
  const int u = this_lane() % kSharing;
  unsigned word = words[0];
#pragma unroll
  for (int i = 1; i < U; ++i) word = u == i ? words[i] : word;
  if (u < U) store_word(to + 4 * (u * V + this_lane() / kSharing), word);
}

// The first segment of low ... high that ends beyond coordinate i, else high: whatever the ends
// are, nothing outside is read.
__device__ inline std::int64_t find_segment(const std::int64_t* ends, std::int64_t low,
                                            std::int64_t high, std::int64_t i) {
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (ends[middle] > i) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Where segment s of those find_segment gave, low ... high, lies in begin ... end.
struct Range {
  std::int64_t from, to;
};
__device__ inline Range part_within(std::int64_t begin, std::int64_t end, const std::int64_t* ends,
                                    std::int64_t low, std::int64_t high, std::int64_t s) {
  const auto inside = [&](std::int64_t i) { return i < begin ? begin : i > end ? end : i; };
  return {s == low ? begin : inside(ends[s - 1]), s == high ? end : inside(ends[s])};
}

template <int V, typename T>
__device__ Vec<T, V> load_factor(const Factor<T>& factor, std::int64_t i) {
  Vec<T, V> f;
  if (factor.values == nullptr) {
#pragma unroll
    for (int c = 0; c < V; ++c) f[c] = factor.value;
  } else if (factor.ends == nullptr) {
    f = load<V>(factor.values + i);
  } else {
    const std::int64_t last = factor.segments - 1;
    std::int64_t s = find_segment(factor.ends, 0, last, i);
#pragma unroll
    for (int c = 0; c < V; ++c) {
      while (s < last && factor.ends[s] <= i + c) ++s;
      f[c] = factor.values[s];
    }
  }
  return f;
}

// Whether V elements may be loaded at once from a factor's values.
template <typename T>
bool aligned_factor(const Factor<T>& factor) {
  return factor.ends != nullptr || aligned_to(16, factor.values);
}

template <typename Op, int V>
constexpr int chunks = V == 1 ? 2 * Op::kChunks : Op::kChunks;

// Runs `op` over n coordinates and packs the sign bits it returns, if it packs any.
//
// A warp takes tiles of U chunks of 32 V coordinates: it loads all of a tile (Op::load), so that
// much is under way at once, then computes and writes chunk by chunk (Op::run). V is kWide where
// every array is aligned to 16 bytes and 1 elsewhere. The coordinates left over are taken by 32.
template <typename Op, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    map(const __grid_constant__ Op op, std::int64_t n, Bits* bits) {
  constexpr int U = chunks<Op, V>;
  constexpr int kChunk = kWarpSize * V;
  constexpr int kTile = U * kChunk;
  const std::int64_t tiles = n / kTile;
  for (std::int64_t tile = this_warp(); tile < tiles; tile += all_warps()) {
    const std::int64_t first = tile * kTile + this_lane() * V;
    typename Op::template Loaded<V> loaded[U];
#pragma unroll
    for (int u = 0; u < U; ++u) loaded[u] = op.template load<V>(first + u * kChunk);
    unsigned words[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const unsigned signs = op.template run<V>(first + u * kChunk, loaded[u]);
      if constexpr (Op::kPacks) words[u] = join_bits<V>(signs);
    }
    if constexpr (Op::kPacks) store_words<V>(bits + tile * (kTile / 8), words);
  }
  const std::int64_t left = tiles * kTile;
  for (std::int64_t i = left + this_warp() * kWarpSize; i < n; i += all_warps() * kWarpSize) {
    const std::int64_t mine = i + this_lane();
    unsigned signs = 0;
    if (mine < n) signs = op.template run<1>(mine, op.template load<1>(mine));
    if constexpr (Op::kPacks) {
      const unsigned word = join_bits<1>(signs);
      if (this_lane() == 0) store_word(bits + i / 8, word, (n - i + 7) / 8);
    }
  }
}

template <typename Op, int V>
void launch_map(const char* operation, const Op& op, std::int64_t n, Bits* bits, Stream stream) {
  constexpr int kTile = kWarpSize * V * chunks<Op, V>;
  const std::int64_t groups = (n % kTile + kWarpSize - 1) / kWarpSize;
  launch(operation, std::max(n / kTile, groups), stream, map<Op, V>, op, n, bits);
}

// Queues `map`; `wide` tells whether all arrays are aligned to 16 bytes.
template <typename Op>
void launch_map(const char* operation, const Op& op, std::int64_t n, bool wide, Bits* bits,
                Stream stream) {
  if (n == 0) return;
  if (wide) {
    launch_map<Op, kWide<typename Op::Element>>(operation, op, n, bits, stream);
  } else {
    launch_map<Op, 1>(operation, op, n, bits, stream);
  }
}

}  // namespace mm::cuda
