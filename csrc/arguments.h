// The arrays that a Python caller gives, checked: numpy by the buffer protocol, torch tensors by
// their attributes (a tenth of the cost of DLPack), cupy and others by __cuda_array_interface__, or
// else by DLPack. Every refusal says what was given and what is wanted.
//
// On CUDA the work is queued on the caller's stream: torch's current one if there is a tensor, else
// cupy's. An array whose interface names another stream is waited for, and that stream waits for
// what was done with it; nobody else does.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "dispatch.h"

namespace mm {

enum class DType { f32, f64, f16, bf16, u8, u16, i64, other };

// An array argument; `data` is on `device`. Valid as long as the Call that made it.
struct Array {
  const char* name;
  void* data;
  std::int64_t size;  // elements
  DType dtype;
  int device;               // of CUDA; kCpu
  bool scalar = false;      // has no dimension: a number as an array
  std::int64_t k = 0;       // of a matrix: rows,
  std::int64_t m = 0;       // bytes of a row,
  std::int64_t stride = 0;  // and bytes from row to row

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

constexpr int kCpu = -1;

// A list that allocates only beyond its first elements: a call has few arguments, and two
// allocations would be a tenth of it.
template <typename T>
class Few {
 public:
  void push_back(const T& value) {
    if (size_ == kInline && more_.empty()) more_.assign(first_, first_ + kInline);
    if (size_ < kInline) {
      first_[size_] = value;
    } else {
      more_.push_back(value);
    }
    ++size_;
  }
  void pop_back() {
    if (--size_ > kInline) {
      more_.pop_back();
    } else {
      more_.clear();
    }
  }
  T* begin() { return size_ > kInline ? more_.data() : first_; }
  T* end() { return begin() + size_; }
  const T* begin() const { return size_ > kInline ? more_.data() : first_; }
  const T* end() const { return begin() + size_; }

 private:
  static constexpr int kInline = 6;
  T first_[kInline];
  std::vector<T> more_;  // all of them, once there are more
  int size_ = 0;
};

// One call of an operation: reads its arguments, then runs a kernel where they are.
class Call {
 public:
  explicit Call(const char* function);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  using DTypes = std::initializer_list<DType>;
  enum class Use {
    kRead,
    kWrite,             // overlaps no other array
    kWriteMaybeInPlace  // or is the very same as one that is read
  };

  // size: how many elements it must have; -1 for any.
  Array array(const char* name, nanobind::handle object, DTypes wanted, Use use = Use::kRead,
              std::int64_t size = -1);

  // (k, m) uint8, whose rows may be apart; 1 <= k <= 65535. m: what it must be; -1 for any.
  Array rows(const char* name, nanobind::handle object, std::int64_t m = -1);

  // A number, or an array (n,) of one for each coordinate, of the dtype of T. An array without
  // dimensions is a number if the CPU has it, wherever the vectors are; a GPU's would be waited
  // for.
  template <typename T>
  Factor<T> factor(const char* name, nanobind::handle object, std::int64_t n);

  // Where segments end, int64, ascending; the last is n or, unless `exactly`, at least n. That is
  // checked on the CPU; on CUDA the kernels stay inside the arrays whatever it holds.
  Array ends(nanobind::handle object, std::int64_t n, bool exactly = true);

  // One factor for each segment.
  template <typename T>
  Factor<T> segments(nanobind::handle scale, nanobind::handle ends, std::int64_t n);

  // Check what concerns the arguments together: one device, no overlap. Then run
  // kernel(implementation, stream) without the GIL.
  template <typename Kernel>
  void run(Kernel&& kernel) {
    const Implementation& implementation = begin();
    const OnDevice on_device(device_);
    nanobind::gil_scoped_release without_gil;
    for (const Stream other : others_) order(other, stream_);
    kernel(implementation, stream_);
    for (const Stream other : others_) order(stream_, other);
  }

  [[noreturn]] void refuse_value(const std::string& problem) const;
  [[noreturn]] void refuse_type(const std::string& problem) const;

 private:
  struct Given {
    const char* name;
    const char* begin;
    const char* end;
    int device;
    Use use;
  };

  // Makes a CUDA device the current one for a while; does nothing on the CPU.
  class OnDevice {
   public:
    explicit OnDevice(int device);
    ~OnDevice();
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

   private:
    int before_ = kCpu;
  };

  Array read(const char* name, nanobind::handle object, DTypes wanted, Use use, bool matrix);
  Array read_buffer(const char* name, nanobind::handle object, Use use, bool matrix);
  Array read_tensor(const char* name, nanobind::handle object, bool matrix);
  Array read_cuda_interface(const char* name, nanobind::handle object, Use use, bool matrix);
  Array read_dlpack(const char* name, nanobind::handle object, Use use, bool matrix);
  void check_size(const Array& array, std::int64_t size) const;
  void set_rows(Array& rows, std::int64_t k, std::int64_t m, std::int64_t row, std::int64_t item);
  void keep(const Array& array, Use use);
  const Implementation& begin();
  void check_overlaps() const;
  void find_stream();
  void add_producer(const char* name, nanobind::handle stream);
  static void order(Stream first, Stream then);  // `then` waits for what is queued on `first`

  const char* function_;
  int device_ = kCpu;
  Stream stream_ = nullptr;
  bool torch_ = false;  // whose current stream it is on CUDA; else cupy's
  Few<Given> given_;
  std::vector<Stream> others_;  // of arrays whose interface names one that is not stream_
  std::vector<nanobind::object> imported_;  // tensors over arrays that came by DLPack
  Few<Py_buffer> buffers_;
};

}  // namespace mm
