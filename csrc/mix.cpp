// Averages, mixtures and momentum steps on the CPU. Compiled once for each instruction set, see
// simd.h.
#include "group.h"
#include "simd.h"

namespace mm::MM_ISA {
namespace {

// An array of so many bytes that is only written would not be in the caches when it is read again,
// so it goes past them: that saves reading its lines first, a third of an average's traffic.
constexpr std::int64_t kStreamedBytes = 8 << 20;

template <typename T>
bool too_long_for_caches(std::int64_t n) {
  return n >= kStreamedBytes / static_cast<std::int64_t>(sizeof(T));
}

struct Cached {
  template <typename T, typename V>
  MM_INLINE void operator()(T* x, V v) const {
    store<T>(x, v);
  }
};

struct Streamed {
  template <typename T, typename V>
  MM_INLINE void operator()(T* x, V v) const {
    stream<T>(x, v);
  }
};

// Does group(i, put) for groups of 64 elements and one(i) for those left over; put(x, v) writes to
// `out`, at aligned addresses where it is streamed.
template <typename T, typename Group, typename One>
MM_INLINE void for_each(std::int64_t n, const T* out, bool streamed, Group group, One one) {
  std::int64_t i = 0;
  if (streamed) {
    while (reinterpret_cast<std::uintptr_t>(out + i) % kVectorBytes) one(i++);
    for (; i + kGroup <= n; i += kGroup) group(i, Streamed{});
    end_stream();
  } else {
    for (; i + kGroup <= n; i += kGroup) group(i, Cached{});
  }
  for (; i < n; ++i) one(i);
}

template <typename T>
void average(const T* x, const T* y, std::int64_t n, T* out, Stream) {
  const bool streamed = too_long_for_caches<T>(n) && out != x && out != y;
  const auto group = [=](std::int64_t i, auto put) {
    fetch_ahead(x + i);
    fetch_ahead(y + i);
    for (std::int64_t j = i; j < i + kGroup; j += kWidth<T>) {
      put(out + j, (load(x + j) + load(y + j)) * T(0.5));
    }
  };
  for_each(n, out, streamed, group, [=](std::int64_t i) { out[i] = T(0.5) * (x[i] + y[i]); });
}

template <typename T>
void exchange(T* x, const T* y, std::int64_t n, T* delta, Stream) {
  const auto group = [=](std::int64_t i, auto put) {
    fetch_ahead(x + i);
    fetch_ahead(y + i);
    for (std::int64_t j = i; j < i + kGroup; j += kWidth<T>) {
      const Vector<T> mine = load(x + j), difference = mine - load(y + j);
      put(delta + j, difference);
      store<T>(x + j, mine - difference * T(0.5));
    }
  };
  const auto one = [=](std::int64_t i) {
    delta[i] = x[i] - y[i];
    x[i] = x[i] - T(0.5) * delta[i];
  };
  for_each(n, delta, too_long_for_caches<T>(n), group, one);
}

template <typename T>
std::int64_t exchange_finite(T* x, const T* y, std::int64_t n, T* delta) {
  for (std::int64_t begin = 0; begin < n; begin += kLookedAt) {
    const std::int64_t end = begin + kLookedAt < n ? begin + kLookedAt : n;
    Vector<T> zeros{};  // NaN from the first difference on that is not finite
    T zero = 0;
    std::int64_t i = begin;
    for (; i + kWidth<T> <= end; i += kWidth<T>) {
      const Vector<T> difference = load(x + i) - load(y + i);
      store<T>(delta + i, difference);
      zeros += difference - difference;
    }
    for (; i < end; ++i) {
      delta[i] = x[i] - y[i];
      zero += delta[i] - delta[i];
    }
    for (int lane = 0; lane < kWidth<T>; ++lane) zero += zeros[lane];
    if (zero != 0) return begin;
    for (i = begin; i + kWidth<T> <= end; i += kWidth<T>) {
      store<T>(x + i, load(x + i) - load(delta + i) * T(0.5));
    }
    for (; i < end; ++i) x[i] = x[i] - T(0.5) * delta[i];
  }
  return n;
}

template <typename T>
void exchange_where_finite(T* x, const T* y, std::int64_t n, T* delta, std::uint8_t* found,
                           Stream) {
  bool bad = false;
  for (std::int64_t i = 0; i < n; ++i) {
    delta[i] = x[i] - y[i];
    const bool finite = delta[i] - delta[i] == 0;
    x[i] = finite ? x[i] - T(0.5) * delta[i] : x[i];
    bad |= !finite;
  }
  if (bad) *found = 1;
}

template <typename T>
void mix(const T* const* rows, const T* weights, std::int64_t k, std::int64_t n, T* out, Stream) {
  bool streamed = too_long_for_caches<T>(n);
  for (std::int64_t j = 0; j < k; ++j) streamed = streamed && rows[j] != out;
  const auto group = [=](std::int64_t i, auto put) {
    constexpr int kVectors = 4;
    for (std::int64_t j = 0; j < k; ++j) fetch_ahead(rows[j] + i);
    for (const std::int64_t end = i + kGroup; i < end; i += kVectors * kWidth<T>) {
      Vector<T> sum[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = load(rows[0] + i + v * kWidth<T>) * weights[0];
      for (std::int64_t j = 1; j < k; ++j) {
        for (int v = 0; v < kVectors; ++v) sum[v] += load(rows[j] + i + v * kWidth<T>) * weights[j];
      }
      for (int v = 0; v < kVectors; ++v) put(out + i + v * kWidth<T>, sum[v]);
    }
  };
  const auto one = [=](std::int64_t i) {
    T sum = weights[0] * rows[0][i];
    for (std::int64_t j = 1; j < k; ++j) sum += weights[j] * rows[j][i];
    out[i] = sum;
  };
  for_each(n, out, streamed, group, one);
}

template <typename T>
void heavy_ball(T* x, T* m, const T* g, std::int64_t n, Factor<T> lr, T mu, Stream) {
  Factors<T> rates(lr);
  std::int64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) {
    fetch_ahead(x + i);
    fetch_ahead(m + i);
    fetch_ahead(g + i);
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
    fetch_ahead(x + i);
    fetch_ahead(v + i);
    fetch_ahead(u + i);
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
  kernels.exchange_finite = exchange_finite<T>;
  kernels.exchange_where_finite = exchange_where_finite<T>;
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
