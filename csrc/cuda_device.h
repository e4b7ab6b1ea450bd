// The current CUDA device of this thread, for code that is no CUDA. Built with CUDA only.
#pragma once

namespace mm::cuda {

// Make `device` the current one; returns the one before. Throws std::runtime_error.
int set_device(int device);

}  // namespace mm::cuda
