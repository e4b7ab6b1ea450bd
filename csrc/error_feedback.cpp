// Error feedback on the CPU: the one pass that compresses, with the sums of |p| in their fixed
// order, and the sum of what several ranks compressed. Compiled once for each instruction set, see
// simd.h.
#include "group.h"
#include "simd.h"

namespace mm::MM_ISA {
namespace {

// tree[0] = the sum of 2 kHalf numbers, added as a tree.
template <int kHalf>
MM_INLINE void fold(double* tree) {
  for (int l = 0; l < kHalf; ++l) tree[l] += tree[kHalf + l];
  if constexpr (kHalf > 1) fold<kHalf / 2>(tree);
}

// Adds the sums of blocks up to the L1 norms of the segments, in the order of kernels.h.
template <typename T>
class Norms {
 public:
  Norms(const Factor<T>& scale, double* l1) : ends_(scale.ends), l1_(l1) {
    for (std::int64_t s = 0; s < scale.segments; ++s) l1[s] = 0;
  }

  // The segment of coordinate i, which ascends.
  std::int64_t segment(std::int64_t i) {
    while (ends_[segment_] <= i) end_segment();
    return segment_;
  }

  // Adds the 64 lanes of a block that lies in segment() as a whole.
  MM_INLINE void add_block(const T* lanes) {
    double tree[kLanes];
    for (int l = 0; l < kLanes; ++l) tree[l] = static_cast<double>(lanes[l]);
    fold<kLanes / 2>(tree);
    superblock_ += tree[0];
  }

  // Adds elements begin to end - 1 of one block, of whichever segments they are.
  void add_part(const T* p, std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t s = segment(begin), to = ends_[s] < end ? ends_[s] : end;
      T lanes[kLanes] = {};
      for (; begin < to; ++begin) lanes[begin % kLanes] += magnitude(p[begin]);
      add_block(lanes);
    }
  }

  void end_superblock() {
    l1_[segment_] += superblock_;
    superblock_ = 0;
  }

 private:
  void end_segment() {
    end_superblock();
    ++segment_;
  }

  static T magnitude(T x) {
    Word<T> word;
    std::memcpy(&word, &x, sizeof word);
    word &= ~Integer<T>::kMinusZero;
    std::memcpy(&x, &word, sizeof word);
    return x;
  }

  const std::int64_t* ends_;
  double* l1_;
  std::int64_t segment_ = 0;
  double superblock_ = 0;
};

// One group; adds |p| to the lanes.
template <typename T>
MM_INLINE std::uint64_t ef_group(T* p, const T* g, const T* lr, const T* scale,
                                 Vector<T> (&lanes)[kLanes / kWidth<T>]) {
  std::uint64_t word = 0;
  for (int i = 0; i < kGroup; i += kWidth<T>) {
    const Vector<T> before = load(p + i);
    const Vector<T> error = before - times_sign_of<T>(before, load(scale + i));
    const Vector<T> after = load(lr + i) * load(g + i) + error;
    store(p + i, after);
    word |= negatives<T>(after) << i;
    lanes[i / kWidth<T>] += magnitude<T>(after);
  }
  return word;
}

template <typename T>
void ef(T* p, const T* g, std::int64_t n, Factor<T> lr, Factor<T> scale, Bits* bits, double* l1,
        Stream) {
  Factors<T> rates(lr), scales(scale);
  Norms<T> norms(scale, l1);
  std::int64_t i = 0;
  for (; i < n; i += kBlock) {
    const std::int64_t end = i + kBlock < n ? i + kBlock : n;
    Vector<T> lanes[kLanes / kWidth<T>] = {};
    std::int64_t j = i;
    for (; j + kGroup <= end; j += kGroup) {
      fetch_ahead(p + j);
      fetch_ahead(g + j);
      store_word(bits + j / 8, ef_group(p + j, g + j, rates.at(j), scales.at(j), lanes));
    }
    if (j < end) {
      Rest<T> last_p(p + j, end - j);
      const Rest<T> last_g(g + j, end - j);
      const std::uint64_t word = ef_group(last_p.values, last_g.values, rates.at(j, end - j),
                                          scales.at(j, end - j), lanes);
      store_word(bits + j / 8, word, end - j);
      last_p.copy_to(p + j);
    }
    if (end - i == kBlock && scale.ends[norms.segment(i)] >= end) {
      T sums[kLanes];
      std::memcpy(sums, lanes, sizeof sums);
      norms.add_block(sums);
    } else {
      norms.add_part(p, i, end);
    }
    if (end % kSuperblock == 0 || end == n) norms.end_superblock();
  }
}

// The signs of several rows at one group of coordinates.
struct SignRows {
  const Bits* first;
  std::int64_t k;
  std::int64_t stride;
};

// One group in one segment; scales of the rows are `segments` apart.
template <typename T>
MM_INLINE void decode_group(SignRows rows, const T* scales, std::int64_t segments, T* out) {
  constexpr int kVectors = 4;
  for (int i = 0; i < kGroup; i += kVectors * kWidth<T>) {
    Vector<T> sum[kVectors] = {};
    for (std::int64_t j = 0; j < rows.k; ++j) {
      const std::uint64_t word = load_word(rows.first + j * rows.stride) >> i;
      const Vector<T> scale = broadcast(scales[j * segments]);
      for (int v = 0; v < kVectors; ++v) {
        const Vector<T> term = times_sign<T>(scale, word >> (v * kWidth<T>));
        sum[v] = j ? sum[v] + term : term;
      }
    }
    for (int v = 0; v < kVectors; ++v) store(out + i + v * kWidth<T>, sum[v]);
  }
}

// The one coordinate `i` of a group.
template <typename T>
T decode_one(SignRows rows, std::int64_t i, const T* scales, std::int64_t segments) {
  T sum = 0;
  for (std::int64_t j = 0; j < rows.k; ++j) {
    const bool minus = rows.first[j * rows.stride + i / 8] >> (i % 8) & 1;
    const T term = scales[j * segments] * (minus ? T(-1) : T(1));
    sum = j ? sum + term : term;
  }
  return sum;
}

template <typename T>
void decode(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n, const T* scales,
            const std::int64_t* ends, std::int64_t segments, std::int64_t first, T* out, Stream) {
  std::int64_t s = 0;
  for (std::int64_t i = 0; i < n; i += kGroup) {
    const SignRows group{rows + i / 8, k, stride};
    while (ends[s] <= first + i) ++s;
    if (i + kGroup <= n && ends[s] >= first + i + kGroup) {
      decode_group(group, scales + s, segments, out + i);
      continue;
    }
    for (std::int64_t j = i; j < i + kGroup && j < n; ++j) {
      while (ends[s] <= first + j) ++s;
      out[j] = decode_one(group, j - i, scales + s, segments);
    }
  }
}

template <typename T>
Kernels<T> with_error_feedback(Kernels<T> kernels) {
  kernels.ef = ef<T>;
  kernels.decode = decode<T>;
  return kernels;
}

}  // namespace

void fill_error_feedback(Implementation& implementation) {
  implementation.f32 = with_error_feedback(implementation.f32);
  implementation.f64 = with_error_feedback(implementation.f64);
}

}  // namespace mm::MM_ISA
