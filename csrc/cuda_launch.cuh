// What the host does to run a CUDA kernel: grid, errors, scratch memory.
//
// Who calls has made the arrays' device the current one. Nothing here runs, and no context is made,
// before the first operation on a CUDA array: the module is imported where there is no driver.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda_check.h"
#include "kernels.h"

namespace mm::cuda {

constexpr int kWarpSize = 32;
constexpr int kWarps = 8;  // of a thread block
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kBlocks =
    2;  // fit a multiprocessor at least: no kernel takes more than 128 registers

inline int current_device(const char* operation) {
  int device = 0;
  check(cudaGetDevice(&device), operation);
  return device;
}

// Device memory for the kernels of one operation, in the stream's order.
//
// It comes from a pool of our own that keeps what was freed: the default pool gives memory back to
// the driver at every synchronisation, and mapping it anew takes longer than the kernels.
class Scratch {
 public:
  Scratch(std::size_t bytes, Stream stream, const char* operation)
      : stream_(static_cast<cudaStream_t>(stream)) {
    cudaMemPool_t from = pool(current_device(operation), operation);
    check(cudaMallocFromPoolAsync(&memory_, bytes, from, stream_), operation);
  }
  ~Scratch() { cudaFreeAsync(memory_, stream_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  static cudaMemPool_t pool(int device, const char* operation) {
    static std::mutex mutex;
    static std::map<int, cudaMemPool_t> pools;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = pools.find(device);
    if (found != pools.end()) return found->second;
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    cudaMemPool_t made = nullptr;
    check(cudaMemPoolCreate(&made, &properties), operation);
    std::uint64_t keep = UINT64_MAX;
    check(cudaMemPoolSetAttribute(made, cudaMemPoolAttrReleaseThreshold, &keep), operation);
    return pools[device] = made;
  }

  cudaStream_t stream_;
  void* memory_ = nullptr;
};

template <typename T>
struct Same {
  using Type = T;
};

// Queues `kernel` on the stream, with warps for `work` pieces (each kernel strides over its pieces
// by the number of warps there are).
template <typename... Parameters>
void launch(const char* operation, std::int64_t work, Stream stream, void (*kernel)(Parameters...),
            typename Same<Parameters>::Type... arguments) {
  int multiprocessors = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount,
                               current_device(operation)),
        operation);
  // 8 blocks of 256 threads fill a multiprocessor. Four times as many let the hardware even out the
  // end of the launch: with exactly as many as fit, the last of few rounds would leave most idle.
  const std::int64_t most = std::int64_t{32} * multiprocessors;
  const std::int64_t wanted = (work + kWarps - 1) / kWarps;
  cudaLaunchConfig_t config{};
  config.gridDim.x = static_cast<unsigned>(std::clamp<std::int64_t>(wanted, 1, most));
  config.blockDim.x = kThreads;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), operation);
}

// Whether accesses of so many bytes may be made to all of these.
inline bool aligned_to(std::uintptr_t) { return true; }

template <typename Pointer, typename... Others>
bool aligned_to(std::uintptr_t bytes, Pointer pointer, Others... others) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0 && aligned_to(bytes, others...);
}

}  // namespace mm::cuda
