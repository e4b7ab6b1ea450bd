// What the host asks of CUDA about devices and streams, for code that is no CUDA. Built with CUDA
// only. All throw std::runtime_error.
#pragma once

namespace mm::cuda {

// Make `device` the current one of this thread; returns the one before.
int set_device(int device);

// The device whose memory that is; the current one if there is none (an empty array).
int device_of(const void* memory);

// Has `then` wait for what is queued on `first`; the CPU does not.
void order(void* first, void* then);

}  // namespace mm::cuda
