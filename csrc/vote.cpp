// Counting votes on the CPU: bit-sliced carry-save adders. Plane p holds bit p of the counts of all
// coordinates of a block, so one vector instruction counts for 512 (AVX-512) voters' bits at once.
// Compiled once for each instruction set, see simd.h.
#include "group.h"
#include "simd.h"

namespace mm::MM_ISA {
namespace {

using Plane = Vector<std::uint64_t>;

constexpr int kBlockBytes = 1024;  // the planes of a block and the rows being added stay in L1
constexpr int kColumns = kBlockBytes / kVectorBytes;
constexpr int kRowsAtOnce = 8;
constexpr int kMaxPlanes = 16;  // k <= 65535

struct Planes {
  Plane plane[kMaxPlanes][kColumns];
  int count;  // enough for k
};

// Rows of one block.
struct RowBlock {
  const Bits* first;
  std::int64_t stride;
  std::int64_t bytes;
  const Bits* next;  // the rows that are added after these,
  int next_rows;     // 1 to 8
};

template <bool kWhole>
MM_INLINE Plane load_row(const Bits* x, std::int64_t bytes) {
  return kWhole ? load_bits(x) : load_some(x, bytes);
}

// Adds kRows <= 8 rows to the counts of column c.
template <int kRows, bool kFresh, bool kWhole>
MM_INLINE void add_column(Planes& planes, const RowBlock& rows, int c, std::int64_t bytes) {
  Plane row[kRowsAtOnce] = {};
  for (int r = 0; r < kRows; ++r) {
    row[r] = load_row<kWhole>(rows.first + r * rows.stride + c * kVectorBytes, bytes);
  }
  Plane ones{}, twos{}, fours{};
  if (!kFresh) ones = planes.plane[0][c], twos = planes.plane[1][c], fours = planes.plane[2][c];
  const Plane two0 = carry_save(ones, row[0], row[1]);
  const Plane two1 = carry_save(ones, row[2], row[3]);
  const Plane four0 = carry_save(twos, two0, two1);
  const Plane two2 = carry_save(ones, row[4], row[5]);
  const Plane two3 = carry_save(ones, row[6], row[7]);
  const Plane four1 = carry_save(twos, two2, two3);
  Plane carry = carry_save(fours, four0, four1);
  planes.plane[0][c] = ones, planes.plane[1][c] = twos, planes.plane[2][c] = fours;
  for (int p = 3; p < planes.count; ++p) {
    const Plane old = kFresh ? Plane{} : planes.plane[p][c];
    planes.plane[p][c] = old ^ carry;
    carry = old & carry;
  }
}

template <int kRows, bool kFresh>
void add_rows(Planes& planes, const RowBlock& rows) {
  const int whole = static_cast<int>(rows.bytes / kVectorBytes);
  for (int c = 0; c < whole; ++c) {
    for (int r = 0; r < rows.next_rows; ++r) {
      __builtin_prefetch(rows.next + r * rows.stride + c * kVectorBytes);
    }
    add_column<kRows, kFresh, true>(planes, rows, c, kVectorBytes);
  }
  const std::int64_t some = rows.bytes % kVectorBytes;
  if (some) add_column<kRows, kFresh, false>(planes, rows, whole, some);
}

// Starts the counts with the first rows, 1 to 8 of them.
void start(Planes& planes, const RowBlock& rows, std::int64_t count) {
  switch (count) {
    case 1:
      return add_rows<1, true>(planes, rows);
    case 2:
      return add_rows<2, true>(planes, rows);
    case 3:
      return add_rows<3, true>(planes, rows);
    case 4:
      return add_rows<4, true>(planes, rows);
    case 5:
      return add_rows<5, true>(planes, rows);
    case 6:
      return add_rows<6, true>(planes, rows);
    case 7:
      return add_rows<7, true>(planes, rows);
    default:
      return add_rows<8, true>(planes, rows);
  }
}

// Counts bytes begin to begin + bytes - 1 of the k rows.
void count_block(Planes& planes, const Bits* rows, std::int64_t k, std::int64_t stride,
                 std::int64_t begin, std::int64_t bytes) {
  const int odd = k % kRowsAtOnce ? static_cast<int>(k % kRowsAtOnce) : kRowsAtOnce;
  for (std::int64_t j = 0; j < k;) {
    const std::int64_t to = j ? j + kRowsAtOnce : odd;
    RowBlock block{rows + j * stride + begin, stride, bytes, rows + to * stride + begin,
                   kRowsAtOnce};
    if (to == k) block.next = rows + begin + kBlockBytes, block.next_rows = odd;
    if (j) {
      add_rows<kRowsAtOnce, false>(planes, block);
    } else {
      start(planes, block, odd);
    }
    j = to;
  }
}

int planes_for(std::int64_t k) {
  int planes = 3;  // the fewest that add_column uses
  while (k >> planes) ++planes;
  return planes;
}

// Which counts of column c are greater than `limit`.
MM_INLINE Plane greater(const Planes& planes, int c, std::int64_t limit) {
  Plane result{};
  for (int p = 0; p < planes.count; ++p) {
    const Plane bit = planes.plane[p][c];
    result = limit >> p & 1 ? bit & result : bit | result;
  }
  return result;
}

void vote(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t m, Bits* out,
          Stream) {
  Planes planes;
  planes.count = planes_for(k);
  for (std::int64_t begin = 0; begin < m; begin += kBlockBytes) {
    const std::int64_t bytes = m - begin < kBlockBytes ? m - begin : kBlockBytes;
    count_block(planes, rows, k, stride, begin, bytes);
    for (int c = 0; c * kVectorBytes < bytes; ++c) {
      const Plane majority = greater(planes, c, k / 2);
      const std::int64_t left = bytes - c * kVectorBytes;
      std::memcpy(out + begin + c * kVectorBytes, &majority,
                  static_cast<std::size_t>(left < kVectorBytes ? left : kVectorBytes));
    }
  }
}

// The counts of the 64 coordinates at a byte of the block.
MM_INLINE void count_group(const Planes& planes, std::int64_t byte, std::uint16_t* out) {
  Vector<std::uint16_t> counts[kGroup / kWidth<std::uint16_t>] = {};
  for (int p = 0; p < planes.count; ++p) {
    const std::uint64_t word = load_word(reinterpret_cast<const Bits*>(planes.plane[p]) + byte);
    const std::uint16_t weight = static_cast<std::uint16_t>(1u << p);
    for (int i = 0; i < kGroup; i += kWidth<std::uint16_t>) {
      counts[i / kWidth<std::uint16_t>] |= where<std::uint16_t>(word >> i, weight);
    }
  }
  std::memcpy(out, counts, sizeof counts);
}

void count(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n,
           std::uint16_t* out, Stream) {
  Planes planes;
  planes.count = planes_for(k);
  const std::int64_t m = (n + 7) / 8;
  for (std::int64_t begin = 0; begin < m; begin += kBlockBytes) {
    const std::int64_t bytes = m - begin < kBlockBytes ? m - begin : kBlockBytes;
    count_block(planes, rows, k, stride, begin, bytes);
    for (std::int64_t i = 8 * begin; i < 8 * (begin + bytes) && i < n; i += kGroup) {
      if (n - i >= kGroup) {
        count_group(planes, i / 8 - begin, out + i);
      } else {
        Rest<std::uint16_t> rest(out + i, n - i);
        count_group(planes, i / 8 - begin, rest.values);
        rest.copy_to(out + i);
      }
    }
  }
}

}  // namespace

void fill_vote(Implementation& implementation) {
  implementation.sign.vote = vote;
  implementation.sign.count = count;
}

}  // namespace mm::MM_ISA
