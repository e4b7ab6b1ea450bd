#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda_check.h"
#include "cuda_device.h"

namespace mm::cuda {
int set_device(int device) {
  int before = 0;
  check(cudaGetDevice(&before), "cudaGetDevice");
  if (before != device) check(cudaSetDevice(device), "cudaSetDevice");
  return before;
}

int device_of(const void* memory) {
  cudaPointerAttributes found{};
  if (memory == nullptr) {
    check(cudaGetDevice(&found.device), "cudaGetDevice");
    return found.device;
  }
  check(cudaPointerGetAttributes(&found, memory), "cudaPointerGetAttributes");
  if (found.type != cudaMemoryTypeDevice && found.type != cudaMemoryTypeManaged) {
    throw std::runtime_error("an array that says it is a GPU's has memory of the CPU");
  }
  return found.device;
}

void order(void* first, void* then) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  const cudaError_t recorded = cudaEventRecord(event, static_cast<cudaStream_t>(first));
  const cudaError_t waited = recorded == cudaSuccess
                                 ? cudaStreamWaitEvent(static_cast<cudaStream_t>(then), event, 0)
                                 : recorded;
  cudaEventDestroy(event);  // CUDA keeps it until it has been passed
  check(waited, "cudaStreamWaitEvent");
}

}  // namespace mm::cuda
