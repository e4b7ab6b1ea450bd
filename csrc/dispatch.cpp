#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace mm {
namespace {

bool can_run(const std::string& isa) {
#if defined(__x86_64__)
  // each also asks the operating system whether it saves the registers
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  if (isa == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("bmi2");
  }
#endif
  return isa == "baseline";
}

#if defined(MM_CUDA) || defined(MM_CUDA_EMULATED)
Implementation cuda_kernels(const char* name) {
  Implementation kernels{};
  kernels.name = name;
  cuda::fill_sign(kernels);
  cuda::fill_mix(kernels);
  cuda::fill_wire(kernels);
  return kernels;
}
#endif

const std::vector<Implementation>& runnable() {
  static const std::vector<Implementation> all = [] {
    std::vector<Implementation> found;
#ifdef MM_CUDA_EMULATED
    found.push_back(cuda_kernels("cuda-on-cpu"));
#endif
#define MM_ADD(isa)                    \
  if (can_run(#isa)) {                 \
    Implementation kernels{};          \
    kernels.name = #isa;               \
    isa::fill_sign(kernels);           \
    isa::fill_error_feedback(kernels); \
    isa::fill_vote(kernels);           \
    isa::fill_mix(kernels);            \
    isa::fill_wire(kernels);           \
    found.push_back(kernels);          \
  }
    MM_INSTRUCTION_SETS(MM_ADD)
#undef MM_ADD
    return found;
  }();
  return all;
}

const Implementation& by_name(const std::string& name) {
  std::string names;
  for (const Implementation& kernels : runnable()) {
    if (name == kernels.name) return kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels.name);
  }
  throw std::invalid_argument("instruction set '" + name + "': this build and processor have " +
                              names);
}

const Implementation* chosen_at_start() {
  const char* wanted = std::getenv("MPIMOMENTUM_ISA");
  return wanted != nullptr && *wanted != '\0' ? &by_name(wanted) : &runnable().back();
}

std::atomic<const Implementation*>& in_use() {
  static std::atomic<const Implementation*> kernels{chosen_at_start()};
  return kernels;
}

}  // namespace

const Implementation& cpu() { return *in_use().load(std::memory_order_relaxed); }

const Implementation* cuda_or_null() {
#ifdef MM_CUDA
  static const Implementation kernels = cuda_kernels("cuda");
  return &kernels;
#else
  return nullptr;
#endif
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Implementation& kernels : runnable()) names.emplace_back(kernels.name);
  return names;
}

void use_instruction_set(const std::string& name) { in_use() = &by_name(name); }

}  // namespace mm
