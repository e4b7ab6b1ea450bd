// What every implementation of the kernels provides: the tables for the CPU's instruction sets
// (sign.cpp, error_feedback.cpp, vote.cpp, mix.cpp, wire.cpp, compiled once for each) and the one
// for CUDA (sign.cu, mix.cu, wire.cu).
//
// The same operation gives the same bits everywhere: every rounding is written out here, nothing is
// contracted to fused multiply-adds, sums are in a fixed order. The oracle is codecs/reference.py.
//
// A kernel checks nothing; arguments.h has checked. n >= 0 may exceed 2^31. Arrays are aligned to
// their element, no more. They are distinct, or the very same where a comment says "may be".
#pragma once

#include <cstdint>

namespace mm {

// Sign bits: bit i % 8 of byte i / 8 is 1 iff x_i < 0. So +-0 and NaN are positive and denormals
// keep their sign even where arithmetic flushes them to zero, since bits are compared, not floats.
// Padding bits of the last byte are 0.
using Bits = std::uint8_t;

// A cudaStream_t; unused on the CPU.
using Stream = void*;

// A factor for each coordinate.
template <typename T>
struct Factor {
  T value;                   // of all coordinates, if `values` is null
  const T* values;           // (n,) one each if `ends` is null; else (segments,) one a segment
  const std::int64_t* ends;  // (segments,) where each segment ends: ascending, the last is n
  std::int64_t segments;
};

// Elements whose differences are looked at together, while they are in the L1 cache.
constexpr std::int64_t kLookedAt = 2048;

// Elements whose absolute values are summed together, see Kernels::ef.
constexpr std::int64_t kLanes = 64;
constexpr std::int64_t kBlock = 512;
constexpr std::int64_t kSuperblock = 1024 * kBlock;

// How a vector is written for a slow link; codecs/wire.py says the layouts. Chunks of int8 and sign
// have a scale each, all of which come first.
enum class Format { bf16, int8, sign };
constexpr std::int64_t kWireChunk = 2048;
constexpr std::int64_t wire_chunks(std::int64_t n) { return (n + kWireChunk - 1) / kWireChunk; }

// A chunk of int8 whose largest magnitude is smaller is written as zeros, whose reciprocals exist.
constexpr float kWireLeast = 0x1p-100f;

// What an encoder goes on from, and changes: nothing; the error that earlier ones left; or the
// replica of x that those hold who decode and add up what was sent.
enum class Memory { none, error, replica };

template <typename T>  // float, double
struct Kernels {
  // bits_i = x_i < 0
  void (*pack)(const T* x, std::int64_t n, Bits* bits, Stream);

  // out_i = s_i, which is -1 where the bit is set and +1 elsewhere
  void (*unpack)(const Bits* bits, std::int64_t n, T* out, Stream);

  // m = (beta * m) + (rest * g); bits = m < 0
  void (*signum)(T* m, const T* g, std::int64_t n, T beta, T rest, Bits* bits, Stream);

  // x = x - (step * s), or with shrink x = x - ((step * s) + (shrink * x))
  void (*apply)(T* x, const Bits* bits, std::int64_t n, Factor<T> step, const Factor<T>* shrink,
                Stream);

  // Error feedback. With the error of the last step, e = p - scale * s(p), not stored:
  // p = (lr * g) + (p - scale * s(p)); bits = p < 0; l1[segment] = sum of |p| over the segment.
  //
  // The order of that sum: blocks of 512 elements, counted from p[0]; elements outside the segment
  // or beyond n count as 0. Lane l of a block is |p_l| + |p_{64+l}| + ... in ascending order, in T.
  // The 64 lanes, as doubles, are added in a tree: lane l takes lane l + 32, then l + 16, ... , 1.
  // Block sums are added in ascending order to the sum of their superblock of 1024 blocks, those in
  // ascending order to l1, each starting at 0.
  // `scale` has ends; l1 is (scale.segments,).
  void (*ef)(T* p, const T* g, std::int64_t n, Factor<T> lr, Factor<T> scale, Bits* bits,
             double* l1, Stream);

  // out = sum over rows j, ascending, of scales[j][segment] * s_j; the first term starts it.
  // rows: (k, stride) bytes; scales: (k, segments). first: coordinate of bit 0 of the rows, that is
  // what `ends` counts from (a rank decodes its slice of the coordinates).
  void (*decode)(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n,
                 const T* scales, const std::int64_t* ends, std::int64_t segments,
                 std::int64_t first, T* out, Stream);

  // out = 0.5 * (x + y): the same bits whichever comes first. out may be x or y, y may be x.
  void (*average)(const T* x, const T* y, std::int64_t n, T* out, Stream);

  // delta = x - y; x = x - 0.5 * delta. What one end of an average does: y's owner adds 0.5 delta.
  void (*exchange)(T* x, const T* y, std::int64_t n, T* delta, Stream);

  // exchange, block by block of kLookedAt elements, up to the first block with a delta that is not
  // finite: of that block nothing comes into x. Returns how many elements were exchanged: n, or
  // where that block begins. On the CPU only; CUDA has none.
  std::int64_t (*exchange_finite)(T* x, const T* y, std::int64_t n, T* delta);
  // exchange, but x stays as it was where delta is not finite; *found = 1 if that is anywhere.
  void (*exchange_where_finite)(T* x, const T* y, std::int64_t n, T* delta, std::uint8_t* found,
                                Stream);

  // out = ((w_0 x_0) + (w_1 x_1)) + ...; out may be one of the rows. The arrays of k pointers and
  // weights are in the CPU's memory in any case, and not used after the call.
  void (*mix)(const T* const* rows, const T* weights, std::int64_t k, std::int64_t n, T* out,
              Stream);

  // m = (mu * m) + g; x = x - (lr * m)
  void (*heavy_ball)(T* x, T* m, const T* g, std::int64_t n, Factor<T> lr, T mu, Stream);

  // v = (mu * v) - u; x = x + v. A parameter server's step; u is lr times a gradient.
  void (*server_step)(T* x, T* v, const T* u, std::int64_t n, T mu, Stream);

  // p = x, x + memory (error) or x - memory (replica); out = p in the format, aligned to 4; y is
  // what that decodes to. Then memory = p - y (error) or memory + y (replica).
  //
  // bf16: the float32 nearest to p, rounded to 16 bits, to nearest even; NaN is 0x7fc0.
  // int8: scale = float32(max |p| / 127) of the chunk, 0 where that max is below kWireLeast;
  //       q = p * (1 / scale) rounded to nearest even; y = scale * q.
  // sign: scale = float32(sum / count), the sum of |p| over the chunk in ef's order of lanes, with
  //       a chunk for a block; bits as pack's; y = scale * s(p).
  // Where a number of a chunk of int8 or sign is not finite, or its scale would not be, the scale
  // is NaN (0x7fc00000), the rest of the chunk 0, and memory and y are NaN.
  void (*wire_encode)(Format, Memory, const T* x, T* memory, std::int64_t n, Bits* out, Stream);

  // out = y, or with adds out = out + (factor * y)
  void (*wire_decode)(Format, const Bits* wire, std::int64_t n, bool adds, T factor, T* out,
                      Stream);
};

// What does not depend on a type of float, and 16-bit floats, of which only the sign is asked.
struct SignKernels {
  // sign: 0x8000; infinity: the bits of -inf. float16 and bfloat16 differ in that alone.
  void (*pack16)(const std::uint16_t* x, std::int64_t n, std::uint16_t minus_infinity, Bits* bits,
                 Stream);

  // A bit is set iff more than half of the k rows (k <= 65535) have it set: a tie is positive.
  // rows: (k, stride) bytes, of which m count.
  void (*vote)(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t m, Bits* out,
               Stream);

  // out_i = how many of the k rows have bit i set
  void (*count)(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n,
                std::uint16_t* out, Stream);
};

// All of an implementation.
struct Implementation {
  const char* name;  // "baseline", "avx2", "avx512", "neon", "cuda"
  Kernels<float> f32;
  Kernels<double> f64;
  SignKernels sign;
};

}  // namespace mm
