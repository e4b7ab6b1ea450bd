// Memory for windows: on a device, open to other processes; on the host, registered. For code that
// is no CUDA; built with CUDA only. All throw std::runtime_error with CUDA's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mm::cuda {

// An allocation of its own, which a handle opens without others.
std::uintptr_t allocate(int device, std::size_t bytes);
void free(int device, std::uintptr_t address);

// What another process opens an allocation with; not the one that made it.
std::string ipc_handle(int device, std::uintptr_t address);
std::uintptr_t ipc_open(int device, const std::string& handle);
void ipc_close(int device, std::uintptr_t address);

// Lets copies from and to this host memory go on while others work.
void host_register(int device, std::uintptr_t address, std::size_t bytes);
void host_unregister(int device, std::uintptr_t address);

}  // namespace mm::cuda
