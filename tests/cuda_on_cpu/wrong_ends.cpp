// Ends of segments that are wrong: on a GPU nobody reads them back to check them, so the kernels
// must stay inside their arrays whatever they hold. Built for the sanitizers by
// scripts/sanitize.sh; every array is of exactly its size.
#include <cstdint>
#include <random>
#include <vector>

#include "dispatch.h"

namespace {

std::mt19937_64 random_bits(1);

std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(random_bits() % n); }

std::int64_t wrong_end(std::int64_t n) {
  switch (below(5)) {
    case 0:
      return static_cast<std::int64_t>(random_bits());
    case 1:
      return -below(5000);
    case 2:
      return n + below(100000);
    default:
      return below(n + 1);
  }
}

template <typename T>
void run(const mm::Kernels<T>& kernels, std::int64_t n) {
  constexpr std::int64_t kRows = 3;
  const std::int64_t segments = 1 + below(6);
  const std::int64_t m = (n + 7) / 8;
  std::vector<T> p(n, T(1)), g(n, T(-2)), scales(kRows * segments, T(0.5));
  std::vector<double> l1(segments);
  std::vector<mm::Bits> bits(m), rows(kRows * m, 0x5a);
  std::vector<std::int64_t> ends(segments);
  for (std::int64_t& end : ends) end = wrong_end(n);
  const mm::Factor<T> scale{T(0), scales.data(), ends.data(), segments};
  const mm::Factor<T> lr{T(0.1), nullptr, nullptr, 0};
  kernels.ef(p.data(), g.data(), n, lr, scale, bits.data(), l1.data(), nullptr);
  kernels.ef(p.data(), g.data(), n, scale, scale, bits.data(), l1.data(), nullptr);
  kernels.apply(p.data(), bits.data(), n, scale, &scale, nullptr);
  kernels.decode(rows.data(), kRows, m, n, scales.data(), ends.data(), segments, below(2000),
                 p.data(), nullptr);
}

}  // namespace

int main() {
  mm::Implementation cuda{};
  mm::cuda::fill_sign(cuda);
  for (int i = 0; i < 150; ++i) {
    run(cuda.f32, below(3000));
    run(cuda.f64, below(3000));
  }
  run(cuda.f32, mm::kSuperblock + 600);
}
