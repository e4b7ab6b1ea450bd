#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>

#include "cuda_check.h"
#include "cuda_device.h"
#include "cuda_memory.h"

namespace mm::cuda {
namespace {

// Makes a device the current one for a while.
class OnDevice {
 public:
  explicit OnDevice(int device) : before_(set_device(device)) {}
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_;
};

// Smaller allocations may share a block with others, which a handle would open as a whole.
constexpr std::size_t kBlock = std::size_t{2} << 20;

}  // namespace

std::uintptr_t allocate(int device, std::size_t bytes) {
  const OnDevice on_device(device);
  void* memory = nullptr;
  check(cudaMalloc(&memory, (bytes / kBlock + 1) * kBlock), "cudaMalloc");
  return reinterpret_cast<std::uintptr_t>(memory);
}

void free(int device, std::uintptr_t address) {
  const OnDevice on_device(device);
  check(cudaFree(reinterpret_cast<void*>(address)), "cudaFree");
}

std::string ipc_handle(int device, std::uintptr_t address) {
  const OnDevice on_device(device);
  cudaIpcMemHandle_t handle;
  check(cudaIpcGetMemHandle(&handle, reinterpret_cast<void*>(address)), "cudaIpcGetMemHandle");
  return std::string(reinterpret_cast<const char*>(&handle), sizeof handle);
}

std::uintptr_t ipc_open(int device, const std::string& handle) {
  const OnDevice on_device(device);
  cudaIpcMemHandle_t given;
  if (handle.size() != sizeof given) {
    throw std::runtime_error("an IPC handle of " + std::to_string(handle.size()) + " bytes");
  }
  std::memcpy(&given, handle.data(), sizeof given);
  void* memory = nullptr;
  check(cudaIpcOpenMemHandle(&memory, given, cudaIpcMemLazyEnablePeerAccess),
        "cudaIpcOpenMemHandle");
  return reinterpret_cast<std::uintptr_t>(memory);
}

void ipc_close(int device, std::uintptr_t address) {
  const OnDevice on_device(device);
  check(cudaIpcCloseMemHandle(reinterpret_cast<void*>(address)), "cudaIpcCloseMemHandle");
}

void host_register(int device, std::uintptr_t address, std::size_t bytes) {
  const OnDevice on_device(device);
  check(cudaHostRegister(reinterpret_cast<void*>(address), bytes, cudaHostRegisterPortable),
        "cudaHostRegister");
}

void host_unregister(int device, std::uintptr_t address) {
  const OnDevice on_device(device);
  check(cudaHostUnregister(reinterpret_cast<void*>(address)), "cudaHostUnregister");
}

}  // namespace mm::cuda
