#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda_device.h"

namespace mm::cuda {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

}  // namespace

int set_device(int device) {
  int before = 0;
  check(cudaGetDevice(&before), "cudaGetDevice");
  if (before != device) check(cudaSetDevice(device), "cudaSetDevice");
  return before;
}

}  // namespace mm::cuda
