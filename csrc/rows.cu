// CUDA kernels that read k rows of packed signs: votes, counts and sums of scaled signs.

#include "cuda_operations.cuh"
#include "cuda_warp.cuh"

namespace mm::cuda {
namespace {

// W words, each counted by itself.
template <int W>
using Words = Vec<unsigned, W>;

// The words at byte i of rows j ... j + R - 1, 0 for rows from k on and for bytes beyond the m of a
// row. The rows of a matrix of any stride start anywhere: for W = 1 the two aligned words around
// are read, and shifted when all are on their way. They hold no byte beyond the row, and before it
// only what shares a word with its first byte. W = 4 needs rows that are aligned to 16 bytes.
template <int W, int R>
__device__ void load_rows(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t j,
                          std::int64_t i, std::int64_t m, Words<W> (&row)[R]) {
#pragma unroll
  for (int r = 0; r < R; ++r) row[r] = {};
  const Bits* const first = rows + j * stride + i;
  if (W == 4 && i + 4 * W <= m) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (j + r < k) row[r] = *reinterpret_cast<const Words<W>*>(first + r * stride);
    }
  } else if (W == 1 && i + 8 <= m) {
    unsigned high[R] = {};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (j + r >= k) break;
      const Bits* const at = first + r * stride;
      const unsigned offset = reinterpret_cast<std::uintptr_t>(at) % 4;
      const auto* const words = reinterpret_cast<const unsigned*>(at - offset);
      row[r][0] = words[0];
      if (offset != 0) high[r] = words[1];
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const unsigned offset = reinterpret_cast<std::uintptr_t>(first + r * stride) % 4;
      row[r][0] = __funnelshift_r(row[r][0], high[r], 8 * offset);
    }
  } else {
    for (std::int64_t b = 0; b < 4 * W && i + b < m; ++b) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int w = 0; w < W; ++w) {
          if (j + r < k && b / 4 == w) row[r][w] |= unsigned{first[r * stride + b]} << b % 4 * 8;
        }
      }
    }
  }
}

// Adds three bits in every place: low is their sum's bit 0, the result bit 1.
template <int W>
__device__ Words<W> carry_save(Words<W>& low, const Words<W>& a, const Words<W>& b) {
  Words<W> high;
#pragma unroll
  for (int w = 0; w < W; ++w) {
    high[w] = (a[w] & b[w]) | (low[w] & (a[w] | b[w]));
    low[w] = low[w] ^ a[w] ^ b[w];
  }
  return high;
}

// Counts, for every bit of the words at byte i, in how many rows it is set: bit b of plane p is bit
// p of the count of bit b. Eight rows cost seven carry-save adders and one ripple.
template <int P, int W>
__device__ void tally(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t i,
                      std::int64_t m, Words<W> (&planes)[P]) {
  static_assert(P > 3);
#pragma unroll
  for (int p = 0; p < P; ++p) planes[p] = {};
  for (std::int64_t j = 0; j < k; j += 8) {
    Words<W> row[8];
    load_rows(rows, k, stride, j, i, m, row);
    Words<W> twos[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) twos[r] = carry_save(planes[0], row[2 * r], row[2 * r + 1]);
    const Words<W> four = carry_save(planes[1], twos[0], twos[1]);
    const Words<W> another = carry_save(planes[1], twos[2], twos[3]);
    Words<W> carry = carry_save(planes[2], four, another);
#pragma unroll
    for (int p = 3; p < P; ++p) {
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const unsigned next = planes[p][w] & carry[w];
        planes[p][w] ^= carry[w];
        carry[w] = next;
      }
    }
  }
}

// P planes count to 2^P - 1 rows.
constexpr int kFewPlanes = 5;
constexpr int kAllPlanes = 16;
bool few(std::int64_t k) { return k < 1 << kFewPlanes; }

template <int P, int W>
__global__ void __launch_bounds__(kThreads, kBlocks)
    vote_words(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t m, Bits* out) {
  const unsigned half = static_cast<unsigned>(k / 2);
  const std::int64_t step = all_warps() * kWarpSize * 4 * W;
  for (std::int64_t i = (this_warp() * kWarpSize + this_lane()) * 4 * W; i < m; i += step) {
    Words<W> planes[P];
    tally(rows, k, stride, i, m, planes);
    // count > half, from the highest bit down
    Words<W> more = {};
#pragma unroll
    for (int w = 0; w < W; ++w) {
      unsigned equal = kAllLanes;
#pragma unroll
      for (int p = P - 1; p >= 0; --p) {
        const unsigned of_half = (half >> p & 1) != 0 ? 0xffffffffu : 0;
        more[w] |= equal & planes[p][w] & ~of_half;
        equal &= ~(planes[p][w] ^ of_half);
      }
    }
    if (W > 1 && i + 4 * W <= m) {
      *reinterpret_cast<Words<W>*>(out + i) = more;
    } else {
#pragma unroll
      for (int w = 0; w < W; ++w) store_word(out + i + 4 * w, more[w], m - i - 4 * w);
    }
  }
}

// A warp takes tiles of 1024 coordinates, of which each lane tallies 32; then each gets the planes
// of the coordinates that it writes from the lanes that have them.
constexpr int kTile = 32 * kWarpSize;

template <int P>
__global__ void __launch_bounds__(kThreads, kBlocks)
    count_tiles(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n,
                std::uint16_t* out) {
  constexpr int V = kWide<std::uint16_t>;
  const std::int64_t m = (n + 7) / 8;
  const bool wide = reinterpret_cast<std::uintptr_t>(out) % 16 == 0;
  for (std::int64_t tile = this_warp(); tile * kTile < n; tile += all_warps()) {
    const std::int64_t begin = tile * kTile;
    Words<1> planes[P];
    tally(rows, k, stride, begin / 8 + 4 * this_lane(), m, planes);
    if (wide && begin + kTile <= n) {
#pragma unroll
      for (int u = 0; u < kWarpSize / V; ++u) {
        unsigned pairs[V / 2] = {};  // of counts
#pragma unroll
        for (int p = 0; p < P; ++p) {
          const unsigned word = __shfl_sync(kAllLanes, planes[p][0], u * V + this_lane() * V / 32);
          const unsigned bits = word >> (this_lane() * V % 32) & 0xff;
#pragma unroll
          for (int q = 0; q < V / 2; ++q) {
            pairs[q] |= ((bits | bits << 15) >> 2 * q & 0x00010001) << p;
          }
        }
        const std::int64_t i = begin + u * kWarpSize * V + this_lane() * V;
        store(reinterpret_cast<unsigned*>(out + i), reinterpret_cast<Words<V / 2>&>(pairs));
      }
    } else {
      for (int u = 0; u < kWarpSize; ++u) {
        unsigned count = 0;
#pragma unroll
        for (int p = 0; p < P; ++p) {
          count |= (__shfl_sync(kAllLanes, planes[p][0], u) >> this_lane() & 1) << p;
        }
        const std::int64_t i = begin + u * kWarpSize + this_lane();
        if (i < n) out[i] = static_cast<std::uint16_t>(count);
      }
    }
  }
}

template <typename T>
struct Decode {
  const Bits* rows;
  std::int64_t k, stride, n;
  const T* scales;
  const std::int64_t* ends;
  std::int64_t segments, first;
  T* out;
};

// A warp takes tiles of 1024 coordinates. Of every row each lane loads one word, and gets the bits
// of the coordinates that it sums from the lanes that have them. A tile that several segments share
// is summed once for each.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    decode_tiles(const __grid_constant__ Decode<T> op) {
  constexpr int kChunk = kWarpSize * V;
  constexpr int U = kTile / kChunk;
  constexpr int kAtOnce = 16 / sizeof(T);
  const std::int64_t n = op.n;
  const std::int64_t m = (n + 7) / 8;
  for (std::int64_t tile = this_warp(); tile * kTile < n; tile += all_warps()) {
    const std::int64_t begin = tile * kTile;
    const std::int64_t end = begin + kTile < n ? begin + kTile : n;
    const std::int64_t low = find_segment(op.ends, 0, op.segments - 1, op.first + begin);
    const std::int64_t high = find_segment(op.ends, low, op.segments - 1, op.first + end - 1);
    for (std::int64_t s = low; s <= high; ++s) {
      Vec<T, V> sum[U];
#pragma unroll
      for (int u = 0; u < U; ++u) {
#pragma unroll
        for (int c = 0; c < V; ++c) sum[u][c] = T(-0.0);  // -0 + t is t, and +0 where t is +0
      }
      for (std::int64_t j = 0; j < op.k; j += kAtOnce) {
        T scales[kAtOnce];
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) {
          if (j + r < op.k) scales[r] = op.scales[(j + r) * op.segments + s];
        }
        Words<1> words[kAtOnce];
        load_rows(op.rows, op.k, op.stride, j, begin / 8 + 4 * this_lane(), m, words);
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) {
          if (j + r >= op.k) break;
#pragma unroll
          for (int u = 0; u < U; ++u) {
            const unsigned word =
                __shfl_sync(kAllLanes, words[r][0], u * V + this_lane() * V / 32) >>
                (this_lane() * V % 32);
#pragma unroll
            for (int c = 0; c < V; ++c) {
              sum[u][c] = sum[u][c] + flip(scales[r], word >> c & 1);
            }
          }
        }
      }
      const Range part = part_within(op.first + begin, op.first + end, op.ends, low, high, s);
      // in the tile
      const int from = static_cast<int>(part.from - op.first - begin);
      const int to = static_cast<int>(part.to - op.first - begin);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        const int at = u * kChunk + this_lane() * V;
        if (from <= at && at + V <= to) {
          store<V>(op.out + begin + at, sum[u]);
        } else {
#pragma unroll
          for (int c = 0; c < V; ++c) {
            if (from <= at + c && at + c < to) op.out[begin + at + c] = sum[u][c];
          }
        }
      }
    }
  }
}

}  // namespace

template <typename T>
void decode(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n, const T* scales,
            const std::int64_t* ends, std::int64_t segments, std::int64_t first, T* out,
            Stream stream) {
  if (n == 0) return;
  const Decode<T> op{rows, k, stride, n, scales, ends, segments, first, out};
  const auto kernel = aligned_to(16, out) ? decode_tiles<T, kWide<T>> : decode_tiles<T, 1>;
  launch("decode", (n + kTile - 1) / kTile, stream, kernel, op);
}

template void decode(const Bits*, std::int64_t, std::int64_t, std::int64_t, const float*,
                     const std::int64_t*, std::int64_t, std::int64_t, float*, Stream);
template void decode(const Bits*, std::int64_t, std::int64_t, std::int64_t, const double*,
                     const std::int64_t*, std::int64_t, std::int64_t, double*, Stream);

void vote(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t m, Bits* out,
          Stream stream) {
  if (m == 0) return;
  const bool wide = aligned_to(16, rows, out) && (k == 1 || stride % 16 == 0);
  const auto few_planes = wide ? vote_words<kFewPlanes, 4> : vote_words<kFewPlanes, 1>;
  const auto all_planes = wide ? vote_words<kAllPlanes, 4> : vote_words<kAllPlanes, 1>;
  const std::int64_t of_warp = kWarpSize * (wide ? 16 : 4);
  launch("vote", (m + of_warp - 1) / of_warp, stream, few(k) ? few_planes : all_planes, rows, k,
         stride, m, out);
}

void count(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n,
           std::uint16_t* out, Stream stream) {
  if (n == 0) return;
  const auto kernel = few(k) ? count_tiles<kFewPlanes> : count_tiles<kAllPlanes>;
  launch("count", (n + kTile - 1) / kTile, stream, kernel, rows, k, stride, n, out);
}

}  // namespace mm::cuda
