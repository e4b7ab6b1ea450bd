// What becomes of a status of CUDA's.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace mm::cuda {

// Throws what went wrong, and clears it: the next library to ask would be told of it otherwise.
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error("CUDA, " + std::string(what) + ": " + cudaGetErrorString(status));
}

}  // namespace mm::cuda
