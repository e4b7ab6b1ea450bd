// CUDA kernels of error feedback: the pass over the coordinates leaves the sum of every block of
// 512, which two small kernels then add up in the order that kernels.h prescribes.

#include "cuda_operations.cuh"
#include "cuda_warp.cuh"

namespace mm::cuda {
namespace {

// Sums are kept of each pair of a block (or superblock) and a segment that share coordinates. Both
// ascend from pair to pair, so block + segment tells the pairs apart, and those of one segment lie
// together. There are fewer than blocks + segments of them.

template <typename T>
struct Feedback {
  T* p;
  const T* g;
  Factor<T> lr, scale;
  Bits* bits;
  double* sums;  // (blocks + segments,)
};

// Adds the 64 lanes of kernels.h in its tree, to the first lane of the warp, whose lanes hold V
// each, lane * V + c, the first 64 / V of them; or two each for V = 1, c * 32 + lane.
template <int V, int kSums, typename T>
__device__ double add_lanes(const T (&sums)[kSums]) {
  double tree[kSums];
#pragma unroll
  for (int c = 0; c < kSums; ++c) tree[c] = sums[c];
  if constexpr (V == 1) tree[0] = tree[0] + tree[1];
#pragma unroll
  for (int step = V == 4 ? 8 : 16; step > 0; step /= 2) {
#pragma unroll
    for (int c = 0; c < V; ++c) tree[c] = tree[c] + __shfl_xor_sync(kAllLanes, tree[c], step);
  }
#pragma unroll
  for (int half = V / 2; half > 0; half /= 2) {
#pragma unroll
    for (int c = 0; c < half; ++c) tree[c] = tree[c] + tree[c + half];
  }
  return tree[0];
}

// The sum of a block's magnitudes, in the first lane: element c of chunk u and this lane is
// coordinate u * 32 V + lane * V + c of the block.
template <int V, int U, typename T>
__device__ double block_sum(const Vec<T, V> (&magnitude)[U]) {
  constexpr int kSums = V == 1 ? 2 : V;  // lanes of kernels.h that a lane of the warp adds up
  T sums[kSums] = {};
#pragma unroll
  for (int u = 0; u < U; ++u) {
#pragma unroll
    for (int c = 0; c < V; ++c) {
      T& sum = sums[V == 1 ? u % 2 : c];
      sum = sum + magnitude[u][c];
      // a chunk of 128 is two rounds of 64: the second is with the upper half of the warp
      if constexpr (V == 4) sum = sum + __shfl_down_sync(kAllLanes, magnitude[u][c], 16);
    }
  }
  return add_lanes<V>(sums);
}

// p = (lr * g) + (p - scale * s(p))
template <typename T>
__device__ T fed_back(T p, T g, T lr, T scale) {
  return lr * g + (p - flip(scale, negative(p)));
}

// A block with all its coordinates, of one segment, and lr no factor by segment.
template <int V, typename T>
__device__ void plain_block(const Feedback<T>& op, std::int64_t block, std::int64_t segment) {
  constexpr int kChunk = kWarpSize * V;
  constexpr int U = kBlock / kChunk;
  const std::int64_t first = block * kBlock + this_lane() * V;
  Vec<T, V> p[U], g[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    p[u] = load<V>(op.p + first + u * kChunk);
    g[u] = load<V>(op.g + first + u * kChunk);
  }
  const T scale = op.scale.values[segment];
  unsigned words[U];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    Vec<T, V> lr;
#pragma unroll
    for (int c = 0; c < V; ++c) lr[c] = op.lr.value;
    if (op.lr.values != nullptr) lr = load<V>(op.lr.values + first + u * kChunk);
#pragma unroll
    for (int c = 0; c < V; ++c) p[u][c] = fed_back(p[u][c], g[u][c], lr[c], scale);
    store<V>(op.p + first + u * kChunk, p[u]);
    words[u] = join_bits<V>(negative(p[u]));
#pragma unroll
    for (int c = 0; c < V; ++c) p[u][c] = fabs(p[u][c]);
  }
  store_words<V>(op.bits + block * (kBlock / 8), words);
  const double sum = block_sum(p);
  if (this_lane() == 0) op.sums[block + segment] = sum;
}

// Any block. Slow, but there are few others: one for each end of a segment.
template <typename T>
__device__ void mixed_block(const Feedback<T>& op, std::int64_t n, std::int64_t block,
                            std::int64_t low, std::int64_t high) {
  const std::int64_t begin = block * kBlock;
  const std::int64_t end = begin + kBlock < n ? begin + kBlock : n;
  for (std::int64_t group = begin; group < end; group += kWarpSize) {
    const std::int64_t i = group + this_lane();
    unsigned sign = 0;
    if (i < end) {
      const T scale = op.scale.values[find_segment(op.scale.ends, low, high, i)];
      const T p = fed_back(op.p[i], op.g[i], load_factor<1>(op.lr, i)[0], scale);
      op.p[i] = p;
      sign = negative(p);
    }
    const unsigned word = join_bits<1>(sign);
    if (this_lane() == 0) store_word(op.bits + group / 8, word, (end - group + 7) / 8);
  }
  for (std::int64_t s = low; s <= high; ++s) {
    const Range part = part_within(begin, end, op.scale.ends, low, high, s);
    T sums[2] = {};
    for (std::int64_t i = begin + this_lane(); i < end; i += 2 * kWarpSize) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t at = i + half * kWarpSize;
        if (part.from <= at && at < part.to) sums[half] = sums[half] + fabs(op.p[at]);
      }
    }
    const double sum = add_lanes<1>(sums);
    if (this_lane() == 0) op.sums[block + s] = sum;
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    feed_back_blocks(const __grid_constant__ Feedback<T> op, std::int64_t n) {
  const std::int64_t last = op.scale.segments - 1;
  for (std::int64_t block = this_warp(); block * kBlock < n; block += all_warps()) {
    const std::int64_t begin = block * kBlock;
    const std::int64_t end = begin + kBlock;
    const std::int64_t low = find_segment(op.scale.ends, 0, last, begin);
    const std::int64_t high = find_segment(op.scale.ends, low, last, (end < n ? end : n) - 1);
    if (low == high && end <= n && op.lr.ends == nullptr) {
      plain_block<V>(op, block, low);
    } else {
      mixed_block(op, n, block, low, high);
    }
  }
}

// values[0] + values[1] + ... from 0 on, in all lanes.
__device__ double ordered_sum(const double* values, std::int64_t count) {
  constexpr int kAtOnce = 8;
  double sum = 0;
  for (std::int64_t begin = 0; begin < count; begin += kAtOnce * kWarpSize) {
    double mine[kAtOnce];
#pragma unroll
    for (int b = 0; b < kAtOnce; ++b) {
      const std::int64_t i = begin + b * kWarpSize + this_lane();
      mine[b] = i < count ? values[i] : 0;
    }
#pragma unroll
    for (int b = 0; b < kAtOnce; ++b) {
      if (begin + b * kWarpSize >= count) break;
#pragma unroll 8
      for (int lane = 0; lane < kWarpSize; ++lane) {
        sum = sum + __shfl_sync(kAllLanes, mine[b], lane);
      }
    }
  }
  return sum;
}

// The sum of what a part of a segment left in `sums`, one for every `size` coordinates.
__device__ double segment_sum(const double* sums, std::int64_t segment, Range part,
                              std::int64_t size) {
  if (part.to <= part.from) return 0;
  const std::int64_t first = part.from / size;
  return ordered_sum(sums + first + segment, (part.to - 1) / size + 1 - first);
}

// A thread block adds the block sums of a superblock, a warp those of one segment.
__global__ void __launch_bounds__(kThreads, kBlocks)
    add_blocks(const double* sums, const std::int64_t* ends, std::int64_t segments, std::int64_t n,
               double* super_sums) {
  const std::int64_t superblocks = (n + kSuperblock - 1) / kSuperblock;
  for (std::int64_t super = blockIdx.x; super < superblocks; super += gridDim.x) {
    const std::int64_t begin = super * kSuperblock;
    const std::int64_t end = begin + kSuperblock < n ? begin + kSuperblock : n;
    const std::int64_t low = find_segment(ends, 0, segments - 1, begin);
    const std::int64_t high = find_segment(ends, low, segments - 1, end - 1);
    for (std::int64_t s = low + threadIdx.x / kWarpSize; s <= high; s += kWarps) {
      const Range part = part_within(begin, end, ends, low, high, s);
      const double sum = segment_sum(sums, s, part, kBlock);
      if (this_lane() == 0) super_sums[super + s] = sum;
    }
  }
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    add_superblocks(const double* super_sums, const std::int64_t* ends, std::int64_t segments,
                    std::int64_t n, double* l1) {
  for (std::int64_t s = this_warp(); s < segments; s += all_warps()) {
    const Range part = part_within(0, n, ends, 0, segments - 1, s);
    const double sum = segment_sum(super_sums, s, part, kSuperblock);
    if (this_lane() == 0) l1[s] = sum;
  }
}

}  // namespace

template <typename T>
void ef(T* p, const T* g, std::int64_t n, Factor<T> lr, Factor<T> scale, Bits* bits, double* l1,
        Stream stream) {
  const std::int64_t blocks = (n + kBlock - 1) / kBlock;
  const std::int64_t superblocks = (n + kSuperblock - 1) / kSuperblock;
  const std::int64_t segments = scale.segments;
  if (n > 0) {
    const Scratch scratch((blocks + superblocks + 2 * segments) * sizeof(double), stream, "ef");
    double* const sums = scratch.as<double>();
    double* const super_sums = sums + blocks + segments;
    const Feedback<T> op{p, g, lr, scale, bits, sums};
    const bool wide = aligned_to(16, p, g) && aligned_factor(lr);
    const auto kernel = wide ? feed_back_blocks<T, kWide<T>> : feed_back_blocks<T, 1>;
    launch("ef", blocks, stream, kernel, op, n);
    launch("ef", superblocks * kWarps, stream, add_blocks, sums, scale.ends, segments, n,
           super_sums);
    launch("ef", segments, stream, add_superblocks, super_sums, scale.ends, segments, n, l1);
  } else if (segments > 0) {
    check(cudaMemsetAsync(l1, 0, segments * sizeof(double), static_cast<cudaStream_t>(stream)),
          "ef");
  }
}

template void ef(float*, const float*, std::int64_t, Factor<float>, Factor<float>, Bits*, double*,
                 Stream);
template void ef(double*, const double*, std::int64_t, Factor<double>, Factor<double>, Bits*,
                 double*, Stream);

}  // namespace mm::cuda
