// Averages, mixtures and momentum steps on the CPU. Compiled once for each instruction set, see
// simd.h.
#include "group.h"
#include "simd.h"

namespace mm::MM_ISA {
namespace {

template <typename T>
void average(const T* x, const T* y, std::int64_t n, T* out, Stream) {
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    for (std::int64_t j = i; j < i + kGroup; j += kWidth<T>) {
      store<T>(out + j, (load(x + j) + load(y + j)) * T(0.5));
    }
  }
  for (; i < n; ++i) out[i] = T(0.5) * (x[i] + y[i]);
}

template <typename T>
void exchange(T* x, const T* y, std::int64_t n, T* delta, Stream) {
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    for (std::int64_t j = i; j < i + kGroup; j += kWidth<T>) {
      const Vector<T> mine = load(x + j), difference = mine - load(y + j);
      store(delta + j, difference);
      store<T>(x + j, mine - difference * T(0.5));
    }
  }
  for (; i < n; ++i) {
    delta[i] = x[i] - y[i];
    x[i] = x[i] - T(0.5) * delta[i];
  }
}

template <typename T>
MM_INLINE void mix_group(const T* const* rows, const T* weights, std::int64_t k, std::int64_t i,
                         T* out) {
  constexpr int kVectors = 4;
  for (std::int64_t end = i + kGroup; i < end; i += kVectors * kWidth<T>) {
    Vector<T> sum[kVectors];
    for (int v = 0; v < kVectors; ++v) sum[v] = load(rows[0] + i + v * kWidth<T>) * weights[0];
    for (std::int64_t j = 1; j < k; ++j) {
      for (int v = 0; v < kVectors; ++v) sum[v] += load(rows[j] + i + v * kWidth<T>) * weights[j];
    }
    for (int v = 0; v < kVectors; ++v) store<T>(out + i + v * kWidth<T>, sum[v]);
  }
}

template <typename T>
void mix(const T* const* rows, const T* weights, std::int64_t k, std::int64_t n, T* out, Stream) {
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) mix_group(rows, weights, k, i, out);
  for (; i < n; ++i) {
    T sum = weights[0] * rows[0][i];
    for (std::int64_t j = 1; j < k; ++j) sum += weights[j] * rows[j][i];
    out[i] = sum;
  }
}

template <typename T>
void heavy_ball(T* x, T* m, const T* g, std::int64_t n, Factor<T> lr, T mu, Stream) {
  Factors<T> rates(lr);
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    const T* rate = rates.at(i);
    for (int j = 0; j < kGroup; j += kWidth<T>) {
      const Vector<T> momentum = load(m + i + j) * mu + load(g + i + j);
      store(m + i + j, momentum);
      store<T>(x + i + j, load(x + i + j) - load(rate + j) * momentum);
    }
  }
  const T* rate = i < n ? rates.at(i, n - i) : nullptr;
  for (std::int64_t j = 0; i < n; ++i, ++j) {
    m[i] = mu * m[i] + g[i];
    x[i] = x[i] - rate[j] * m[i];
  }
}

template <typename T>
void server_step(T* x, T* v, const T* u, std::int64_t n, T mu, Stream) {
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    for (std::int64_t j = i; j < i + kGroup; j += kWidth<T>) {
      const Vector<T> velocity = load(v + j) * mu - load(u + j);
      store(v + j, velocity);
      store<T>(x + j, load(x + j) + velocity);
    }
  }
  for (; i < n; ++i) {
    v[i] = mu * v[i] - u[i];
    x[i] = x[i] + v[i];
  }
}

template <typename T>
Kernels<T> with_mixing(Kernels<T> kernels) {
  kernels.average = average<T>;
  kernels.exchange = exchange<T>;
  kernels.mix = mix<T>;
  kernels.heavy_ball = heavy_ball<T>;
  kernels.server_step = server_step<T>;
  return kernels;
}

}  // namespace

void fill_mix(Implementation& implementation) {
  implementation.f32 = with_mixing(implementation.f32);
  implementation.f64 = with_mixing(implementation.f64);
}

}  // namespace mm::MM_ISA
