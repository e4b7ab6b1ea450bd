// CUDA kernels of averages, mixtures and momentum steps.

#include <optional>

#include "cuda_warp.cuh"

namespace mm::cuda {
namespace {

template <typename T>
struct Average {
  using Element = T;
  static constexpr int kChunks = 4;
  static constexpr bool kPacks = false;
  template <int V>
  struct Loaded {
    Vec<T, V> x, y;
  };

  const T* x;
  const T* y;
  T* out;

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return {cuda::load<V>(x + i), cuda::load<V>(y + i)};
  }
  template <int V>
  __device__ unsigned run(std::int64_t i, Loaded<V> at) const {
#pragma unroll
    for (int c = 0; c < V; ++c) at.x[c] = T(0.5) * (at.x[c] + at.y[c]);
    store<V>(out + i, at.x);
    return 0;
  }
};

// With kLooks, x stays where the difference is not finite, and that is told. Nothing is read of
// what it finds before it is over: one pass, and x is nowhere lost.
template <typename T, bool kLooks>
struct Exchange {
  using Element = T;
  static constexpr int kChunks = 4;
  static constexpr bool kPacks = false;
  template <int V>
  struct Loaded {
    Vec<T, V> x, y;
  };

  T* x;
  const T* y;
  T* delta;
  std::uint8_t* found;

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return {cuda::load<V>(x + i), cuda::load<V>(y + i)};
  }
  template <int V>
  __device__ unsigned run(std::int64_t i, Loaded<V> at) const {
    bool bad = false;
#pragma unroll
    for (int c = 0; c < V; ++c) {
      at.y[c] = at.x[c] - at.y[c];
      const bool moves = !kLooks || at.y[c] - at.y[c] == T(0);
      at.x[c] = moves ? at.x[c] - T(0.5) * at.y[c] : at.x[c];
      bad |= !moves;
    }
    store<V>(delta + i, at.y);
    store<V>(x + i, at.x);
    if (bad) *found = 1;  // whoever comes last: all write the same
    return 0;
  }
};

// Rows of one launch: they travel with its arguments.
constexpr int kRows = 64;

template <typename T>
struct Mix {
  using Element = T;
  static constexpr int kChunks = 1;  // the rows are enough under way at once
  static constexpr bool kPacks = false;
  template <int V>
  struct Loaded {};

  const T* rows[kRows];
  T weights[kRows];
  int k;
  bool continues;  // a sum begun in `out`
  T* out;

  template <int V>
  __device__ Loaded<V> load(std::int64_t) const {
    return {};
  }
  // Reads all it needs of coordinate i before it writes any, since `out` may be a row.
  template <int V>
  __device__ unsigned run(std::int64_t i, Loaded<V>) const {
    constexpr int kAtOnce = 4;
    Vec<T, V> sum;
#pragma unroll
    for (int c = 0; c < V; ++c) sum[c] = T(-0.0);  // -0 + t is t, and +0 where t is +0
    if (continues) sum = cuda::load<V>(out + i);
    for (int j = 0; j < k; j += kAtOnce) {
      Vec<T, V> x[kAtOnce];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (j + r < k) x[r] = cuda::load<V>(rows[j + r] + i);
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (j + r < k) {
#pragma unroll
          for (int c = 0; c < V; ++c) sum[c] = sum[c] + weights[j + r] * x[r][c];
        }
      }
    }
    store<V>(out + i, sum);
    return 0;
  }
};

template <typename T>
struct HeavyBall {
  using Element = T;
  static constexpr int kChunks = 2;
  static constexpr bool kPacks = false;
  template <int V>
  struct Loaded {
    Vec<T, V> x, m, g;
  };

  T* x;
  T* m;
  const T* g;
  Factor<T> lr;
  T mu;

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return {cuda::load<V>(x + i), cuda::load<V>(m + i), cuda::load<V>(g + i)};
  }
  template <int V>
  __device__ unsigned run(std::int64_t i, Loaded<V> at) const {
    const Vec<T, V> step = load_factor<V>(lr, i);
#pragma unroll
    for (int c = 0; c < V; ++c) {
      at.m[c] = mu * at.m[c] + at.g[c];
      at.x[c] = at.x[c] - step[c] * at.m[c];
    }
    store<V>(m + i, at.m);
    store<V>(x + i, at.x);
    return 0;
  }
};

template <typename T>
struct ServerStep {
  using Element = T;
  static constexpr int kChunks = 2;
  static constexpr bool kPacks = false;
  template <int V>
  struct Loaded {
    Vec<T, V> x, v, u;
  };

  T* x;
  T* v;
  const T* u;
  T mu;

  template <int V>
  __device__ Loaded<V> load(std::int64_t i) const {
    return {cuda::load<V>(x + i), cuda::load<V>(v + i), cuda::load<V>(u + i)};
  }
  template <int V>
  __device__ unsigned run(std::int64_t i, Loaded<V> at) const {
#pragma unroll
    for (int c = 0; c < V; ++c) {
      at.v[c] = mu * at.v[c] - at.u[c];
      at.x[c] = at.x[c] + at.v[c];
    }
    store<V>(v + i, at.v);
    store<V>(x + i, at.x);
    return 0;
  }
};

template <typename T>
void average(const T* x, const T* y, std::int64_t n, T* out, Stream stream) {
  launch_map("average", Average<T>{x, y, out}, n, aligned_to(16, x, y, out), nullptr, stream);
}

template <typename T>
void exchange(T* x, const T* y, std::int64_t n, T* delta, Stream stream) {
  const bool wide = aligned_to(16, x, y, delta);
  const Exchange<T, false> op{x, y, delta, nullptr};
  launch_map("exchange", op, n, wide, nullptr, stream);
}

template <typename T>
void exchange_where_finite(T* x, const T* y, std::int64_t n, T* delta, std::uint8_t* found,
                           Stream stream) {
  const bool wide = aligned_to(16, x, y, delta);
  const Exchange<T, true> op{x, y, delta, found};
  launch_map("exchange_where_finite", op, n, wide, nullptr, stream);
}

template <typename T>
void mix(const T* const* rows, const T* weights, std::int64_t k, std::int64_t n, T* out,
         Stream stream) {
  if (n == 0) return;
  // The first launch overwrites `out`: a later one that reads it as a row is given a copy.
  std::optional<Scratch> copy;
  if (k > kRows && std::find(rows + kRows, rows + k, out) != rows + k) {
    copy.emplace(n * sizeof(T), stream, "mix");
    check(cudaMemcpyAsync(copy->as<T>(), out, n * sizeof(T), cudaMemcpyDeviceToDevice,
                          static_cast<cudaStream_t>(stream)),
          "mix");
  }
  for (std::int64_t begin = 0; begin < k; begin += kRows) {
    Mix<T> op{};
    op.k = static_cast<int>(std::min<std::int64_t>(k - begin, kRows));
    op.continues = begin > 0;
    op.out = out;
    bool wide = aligned_to(16, out);
    for (int j = 0; j < op.k; ++j) {
      const T* row = rows[begin + j];
      op.rows[j] = row == out && begin > 0 ? copy->as<T>() : row;
      op.weights[j] = weights[begin + j];
      wide = wide && aligned_to(16, op.rows[j]);
    }
    launch_map("mix", op, n, wide, nullptr, stream);
  }
}

template <typename T>
void heavy_ball(T* x, T* m, const T* g, std::int64_t n, Factor<T> lr, T mu, Stream stream) {
  const bool wide = aligned_to(16, x, m, g) && aligned_factor(lr);
  launch_map("heavy_ball", HeavyBall<T>{x, m, g, lr, mu}, n, wide, nullptr, stream);
}

template <typename T>
void server_step(T* x, T* v, const T* u, std::int64_t n, T mu, Stream stream) {
  const bool wide = aligned_to(16, x, v, u);
  launch_map("server_step", ServerStep<T>{x, v, u, mu}, n, wide, nullptr, stream);
}

template <typename T>
void fill(Kernels<T>& kernels) {
  kernels.average = average<T>;
  kernels.exchange = exchange<T>;
  kernels.exchange_where_finite = exchange_where_finite<T>;
  kernels.mix = mix<T>;
  kernels.heavy_ball = heavy_ball<T>;
  kernels.server_step = server_step<T>;
}

}  // namespace

void fill_mix(Implementation& cuda) {
  fill(cuda.f32);
  fill(cuda.f64);
}

}  // namespace mm::cuda
