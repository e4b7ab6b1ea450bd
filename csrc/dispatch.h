// Which implementation computes: the best one for this processor, or the one asked for.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#define MM_INSTRUCTION_SETS(X) X(baseline) X(avx2) X(avx512)  // the best one last
#else
#define MM_INSTRUCTION_SETS(X) X(baseline)
#endif

namespace mm {

// Defined by sign.cpp, error_feedback.cpp, vote.cpp, mix.cpp and wire.cpp, which are compiled once
// for each instruction set; each fills its part of the table.
#define MM_DECLARE(isa)                      \
  namespace isa {                            \
  void fill_sign(Implementation&);           \
  void fill_error_feedback(Implementation&); \
  void fill_vote(Implementation&);           \
  void fill_mix(Implementation&);            \
  void fill_wire(Implementation&);           \
  }
MM_INSTRUCTION_SETS(MM_DECLARE)
#undef MM_DECLARE

#if defined(MM_CUDA) || defined(MM_CUDA_EMULATED)
namespace cuda {  // sign.cu, mix.cu and wire.cu; need no driver
void fill_sign(Implementation&);
void fill_mix(Implementation&);
void fill_wire(Implementation&);
}  // namespace cuda
#endif

// The kernels for the CPU that are in use. At first the best this processor can run, or the one
// named by the environment variable MPIMOMENTUM_ISA.
const Implementation& cpu();

// The kernels for CUDA; null if they were not built.
const Implementation* cuda_or_null();

// What this build has and this processor can run, best last.
std::vector<std::string> instruction_sets();

// Use another one from now on (for tests). Throws std::invalid_argument, naming those there are.
void use_instruction_set(const std::string& name);

}  // namespace mm
