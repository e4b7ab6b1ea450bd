// The CUDA operations that have a file of their own; sign.cu and mix.cu put them into the table.
#pragma once

#include "kernels.h"

namespace mm::cuda {

// feedback.cu
template <typename T>
void ef(T* p, const T* g, std::int64_t n, Factor<T> lr, Factor<T> scale, Bits* bits, double* l1,
        Stream stream);

// rows.cu
template <typename T>
void decode(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n, const T* scales,
            const std::int64_t* ends, std::int64_t segments, std::int64_t first, T* out,
            Stream stream);
void vote(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t m, Bits* out,
          Stream stream);
void count(const Bits* rows, std::int64_t k, std::int64_t stride, std::int64_t n,
           std::uint16_t* out, Stream stream);

}  // namespace mm::cuda
