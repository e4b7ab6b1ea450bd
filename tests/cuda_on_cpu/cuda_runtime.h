// A stand-in for CUDA's header of this name: with it a C++ compiler builds csrc/*.cu for the CPU,
// so that their results are tested where there is no GPU (MPIMOMENTUM_CUDA=emulate in setup.py).
//
// The kernels are written for warps: lanes meet in shuffles and ballots, warps never meet. So a
// warp is 32 fibers of one thread. A lane that comes to a shuffle leaves its value and lets the
// next lane run; when its turn comes again all values are there. Warps run one after the other.
// What this does not show: races between warps, the alignment that wide loads need
// (UndefinedBehaviorSanitizer does), nvcc's own roundings, and any timing.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

namespace emulated {

struct Index {
  unsigned x = 0;
};

struct Warp;
inline thread_local Warp* warp = nullptr;

struct Warp {
  static constexpr int kLanes = 32;

  // Runs body() in every lane. `first`: threadIdx.x of lane 0.
  static void run(unsigned first, const std::function<void()>& body);

  // Leaves `mine` for the other lanes, waits for theirs and returns that of lane `from`.
  std::uint64_t exchange(std::uint64_t mine, int from) {
    const int me = lane;
    const int turn = meetings[me]++;
    values[turn % 2][me] = mine;
    next();
    for (int other = 0; other < kLanes; ++other) {
      // a lane may be past this meeting already, but not two meetings on
      if (meetings[other] != turn + 1 && meetings[other] != turn + 2) diverged();
    }
    return values[turn % 2][from & (kLanes - 1)];
  }

  // Lets the next lane run.
  void next() {
    const int me = lane;
    lane = (lane + 1) % kLanes;
    swapcontext(&lanes[me], &lanes[lane]);
  }

  [[noreturn]] static void diverged() {
    std::fputs("a shuffle or ballot was not reached by all lanes of a warp\n", stderr);
    std::abort();
  }

  static void start();

  ucontext_t lanes[kLanes], caller;
  int lane = 0;
  int meetings[kLanes] = {};
  std::uint64_t values[2][kLanes] = {};
  unsigned first = 0;
  const std::function<void()>* body = nullptr;
};

inline void Warp::start() {
  (*warp->body)();
  Warp& w = *warp;
  if (w.lane < kLanes - 1) {
    ++w.lane;
    setcontext(&w.lanes[w.lane]);
  }
  for (int other = 0; other < kLanes; ++other) {
    if (w.meetings[other] != w.meetings[0]) diverged();
  }
  setcontext(&w.caller);
}

inline void Warp::run(unsigned first, const std::function<void()>& body) {
  constexpr std::size_t kStack = std::size_t{1} << 17;
  static thread_local std::vector<char> stacks(kLanes * kStack);
  static thread_local Warp w;
  std::memset(w.meetings, 0, sizeof w.meetings);
  w.lane = 0;
  w.first = first;
  w.body = &body;
  warp = &w;
  for (int lane = 0; lane < kLanes; ++lane) {
    getcontext(&w.lanes[lane]);
    w.lanes[lane].uc_stack.ss_sp = stacks.data() + lane * kStack;
    w.lanes[lane].uc_stack.ss_size = kStack;
    w.lanes[lane].uc_link = nullptr;
    makecontext(&w.lanes[lane], start, 0);
  }
  swapcontext(&w.caller, &w.lanes[0]);
}

template <typename T>
T shuffle(T mine, int from) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &mine, sizeof mine);
  bits = warp->exchange(bits, from);
  std::memcpy(&mine, &bits, sizeof mine);
  return mine;
}

}  // namespace emulated

struct {
  struct {
    operator unsigned() const { return emulated::warp->first + emulated::warp->lane; }
  } x;
} inline threadIdx;
inline thread_local emulated::Index blockIdx, gridDim;

template <typename T>
T __shfl_sync(unsigned, T mine, int from) {
  return emulated::shuffle(mine, from);
}
template <typename T>
T __shfl_xor_sync(unsigned, T mine, int other) {
  return emulated::shuffle(mine, emulated::warp->lane ^ other);
}
template <typename T>
T __shfl_down_sync(unsigned, T mine, int by) {
  const int from = emulated::warp->lane + by;
  return emulated::shuffle(mine, from < 32 ? from : emulated::warp->lane);
}
inline unsigned __ballot_sync(unsigned, bool mine) {
  emulated::warp->exchange(mine, 0);
  const int turn = emulated::warp->meetings[emulated::warp->lane] - 1;
  unsigned all = 0;
  for (int lane = 0; lane < 32; ++lane) {
    all |= static_cast<unsigned>(emulated::warp->values[turn % 2][lane]) << lane;
  }
  return all;
}

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return bits_as<double>(x); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift % 32));
}

// The runtime. A call does its work at once; there is one device, of one multiprocessor.
enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
enum { cudaDevAttrMultiProcessorCount, cudaMemAllocationTypePinned, cudaMemLocationTypeDevice };
enum { cudaMemPoolAttrReleaseThreshold, cudaMemcpyDeviceToDevice };
using cudaStream_t = void*;
using cudaMemPool_t = void*;
struct cudaMemPoolProps {
  int allocType;
  struct {
    int type, id;
  } location;
};
struct cudaLaunchConfig_t {
  emulated::Index gridDim, blockDim;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = 1, cudaSuccess; }
inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  return *pool = nullptr, cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, int, void*) { return cudaSuccess; }
inline cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t,
                                           cudaStream_t) {
  *memory = std::malloc(bytes);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);  // NaN to whoever reads what no kernel wrote
  return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  std::free(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  gridDim = config->gridDim;
  const std::function<void()> body = [&] { kernel(arguments...); };
  for (unsigned block = 0; block < config->gridDim.x; ++block) {
    blockIdx.x = block;
    for (unsigned first = 0; first < config->blockDim.x; first += 32) {
      emulated::Warp::run(first, body);
    }
  }
  return cudaSuccess;
}
