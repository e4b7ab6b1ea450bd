// CUDA kernels of packed signs: what takes one pass over the coordinates. The sums over rows are in
// rows.cu, error feedback is in feedback.cu.

#include "cuda_operations.cuh"
#include "cuda_warp.cuh"

namespace mm::cuda {
namespace {

template <typename T>
struct Pack {
  using Element = T;
  static constexpr int kChunks = 4;
  static constexpr bool kPacks = true;
  template <int V>
  using Loaded = Vec<T, V>;

  const T* x;

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return cuda::load<V>(x + i);
  }
  template <int V>
  __device__ unsigned run(std::int64_t, const Loaded<V>& x) const {
    return negative(x);
  }
};

struct Pack16 {
  using Element = std::uint16_t;
  static constexpr int kChunks = 4;
  static constexpr bool kPacks = true;
  template <int V>
  using Loaded = Vec<std::uint16_t, V>;

  const std::uint16_t* x;
  unsigned negatives;  // how many values are < 0: those after the bits of -0 up to those of -inf

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return cuda::load<V>(x + i);
  }
  template <int V>
  __device__ unsigned run(std::int64_t, const Loaded<V>& x) const {
    unsigned bits = 0;
#pragma unroll
    for (int c = 0; c < V; ++c) bits |= unsigned{unsigned{x[c]} - 0x8001u < negatives} << c;
    return bits;
  }
};

template <typename T>
struct Unpack {
  using Element = T;
  static constexpr int kChunks = 4;
  static constexpr bool kPacks = false;
  template <int V>
  using Loaded = unsigned;

  const Bits* bits;
  T* out;

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return load_bits(bits, i);
  }
  template <int V>
  __device__ unsigned run(std::int64_t i, Loaded<V> signs) const {
    Vec<T, V> x;
#pragma unroll
    for (int c = 0; c < V; ++c) x[c] = flip(T(1), signs >> c & 1);
    store<V>(out + i, x);
    return 0;
  }
};

template <typename T>
struct Signum {
  using Element = T;
  static constexpr int kChunks = 4;
  static constexpr bool kPacks = true;
  template <int V>
  struct Loaded {
    Vec<T, V> m, g;
  };

  T* m;
  const T* g;
  T beta, rest;

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return {cuda::load<V>(m + i), cuda::load<V>(g + i)};
  }
  template <int V>
  __device__ unsigned run(std::int64_t i, Loaded<V> at) const {
#pragma unroll
    for (int c = 0; c < V; ++c) at.m[c] = beta * at.m[c] + rest * at.g[c];
    store<V>(m + i, at.m);
    return negative(at.m);
  }
};

template <typename T, bool kShrinks>
struct Apply {
  using Element = T;
  static constexpr int kChunks = 4;
  static constexpr bool kPacks = false;
  template <int V>
  struct Loaded {
    Vec<T, V> x;
    unsigned signs;
  };

  T* x;
  const Bits* bits;
  Factor<T> step, shrink;

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return {cuda::load<V>(x + i), load_bits(bits, i)};
  }
  template <int V>
  __device__ unsigned run(std::int64_t i, Loaded<V> at) const {
    Vec<T, V> update = load_factor<V>(step, i);
#pragma unroll
    for (int c = 0; c < V; ++c) update[c] = flip(update[c], at.signs >> c & 1);
    if constexpr (kShrinks) {
      const Vec<T, V> factor = load_factor<V>(shrink, i);
#pragma unroll
      for (int c = 0; c < V; ++c) update[c] = update[c] + factor[c] * at.x[c];
    }
#pragma unroll
    for (int c = 0; c < V; ++c) at.x[c] = at.x[c] - update[c];
    store<V>(x + i, at.x);
    return 0;
  }
};

template <typename T>
void pack(const T* x, std::int64_t n, Bits* bits, Stream stream) {
  launch_map("pack", Pack<T>{x}, n, aligned_to(16, x), bits, stream);
}

void pack16(const std::uint16_t* x, std::int64_t n, std::uint16_t minus_infinity, Bits* bits,
            Stream stream) {
  const Pack16 op{x, minus_infinity - 0x8000u};
  launch_map("pack", op, n, aligned_to(16, x), bits, stream);
}

template <typename T>
void unpack(const Bits* bits, std::int64_t n, T* out, Stream stream) {
  launch_map("unpack", Unpack<T>{bits, out}, n, aligned_to(16, out), nullptr, stream);
}

template <typename T>
void signum(T* m, const T* g, std::int64_t n, T beta, T rest, Bits* bits, Stream stream) {
  launch_map("signum", Signum<T>{m, g, beta, rest}, n, aligned_to(16, m, g), bits, stream);
}

template <typename T>
void apply(T* x, const Bits* bits, std::int64_t n, Factor<T> step, const Factor<T>* shrink,
           Stream stream) {
  const bool wide = aligned_to(16, x) && aligned_factor(step);
  if (shrink == nullptr) {
    launch_map("apply", Apply<T, false>{x, bits, step, {}}, n, wide, nullptr, stream);
  } else {
    const Apply<T, true> op{x, bits, step, *shrink};
    launch_map("apply", op, n, wide && aligned_factor(*shrink), nullptr, stream);
  }
}

template <typename T>
void fill(Kernels<T>& kernels) {
  kernels.pack = pack<T>;
  kernels.unpack = unpack<T>;
  kernels.signum = signum<T>;
  kernels.apply = apply<T>;
  kernels.ef = ef<T>;
  kernels.decode = decode<T>;
}

}  // namespace

void fill_sign(Implementation& cuda) {
  fill(cuda.f32);
  fill(cuda.f64);
  cuda.sign = {pack16, vote, count};
}

}  // namespace mm::cuda
