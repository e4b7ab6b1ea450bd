#include "arguments.h"

#include <algorithm>
#include <stdexcept>

#ifdef MM_CUDA
#include "cuda_device.h"
#endif

namespace nb = nanobind;

namespace mm {
namespace {

struct Named {
  DType dtype;
  const char* name;
  std::int64_t itemsize;
  char format;  // of the buffer protocol; 0 if it has none
};

constexpr Named kDTypes[] = {
    {DType::f32, "float32", 4, 'f'}, {DType::f64, "float64", 8, 'd'},
    {DType::f16, "float16", 2, 'e'}, {DType::bf16, "bfloat16", 2, 0},
    {DType::u8, "uint8", 1, 'B'},    {DType::u16, "uint16", 2, 'H'},
    {DType::i64, "int64", 8, 'l'},
};

const Named& named(DType dtype) { return kDTypes[static_cast<int>(dtype)]; }

DType from_format(const char* format) {
  if (format == nullptr) return DType::u8;
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  if (*format != '\0' && format[1] == '\0') {
    if (*format == 'q') return DType::i64;
    for (const Named& d : kDTypes) {
      if (d.format != 0 && d.format == *format) return d.dtype;
    }
  }
  return DType::other;
}

DType from_typestr(const std::string& typestr) {  // "<f4"
  static constexpr const char* kTypestr[] = {"<f4", "<f8", "<f2", "", "|u1", "<u2", "<i8"};
  for (const Named& d : kDTypes) {
    if (typestr == kTypestr[static_cast<int>(d.dtype)]) return d.dtype;
  }
  return DType::other;
}

// What is looked at in torch, kept from the first time that a tensor comes: attributes and methods
// of the class, called with the tensor, since looking each up in the tensor costs as much again.
// Never freed: at the interpreter's end there would be nobody to free it.
struct Torch {
  PyTypeObject* tensor;
  nb::object dtypes[7];
  nb::object data_ptr, numel, is_contiguous, is_neg, requires_grad, dtype, is_cpu, is_cuda;

  explicit Torch(const nb::object& torch) {
    const nb::object type = torch.attr("Tensor");
    tensor = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
    for (const Named& d : kDTypes) {
      dtypes[static_cast<int>(d.dtype)] = nb::getattr(torch, d.name, nb::none());
    }
    data_ptr = type.attr("data_ptr");
    numel = type.attr("numel");
    is_contiguous = type.attr("is_contiguous");
    is_neg = type.attr("is_neg");
    requires_grad = type.attr("requires_grad");
    dtype = type.attr("dtype");
    is_cpu = type.attr("is_cpu");
    is_cuda = type.attr("is_cuda");
  }

  DType dtype_of(nb::handle tensor) const {
    const nb::object given = get(tensor, dtype);
    for (const Named& d : kDTypes) {
      if (given.is(dtypes[static_cast<int>(d.dtype)])) return d.dtype;
    }
    return DType::other;
  }

  static nb::object get(nb::handle tensor, const nb::object& attribute) {
    return raised_if_null(Py_TYPE(attribute.ptr())
                              ->tp_descr_get(attribute.ptr(), tensor.ptr(),
                                             reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()))));
  }

  static nb::object call(nb::handle tensor, const nb::object& method) {
    return raised_if_null(PyObject_CallOneArg(method.ptr(), tensor.ptr()));
  }

  static bool is(nb::handle tensor, const nb::object& attribute) {
    return get(tensor, attribute).ptr() == Py_True;
  }

  static std::int64_t number(nb::handle tensor, const nb::object& method) {
    const std::int64_t value = PyLong_AsLongLong(call(tensor, method).ptr());
    if (value == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
    return value;
  }

 private:
  static nb::object raised_if_null(PyObject* result) {
    if (result == nullptr) throw nb::python_error();
    return nb::steal<nb::object>(result);
  }
};

// Null as long as nobody has imported torch: then nothing can be a tensor.
const Torch* torch_or_null() {
  static const Torch* torch = nullptr;
  if (torch == nullptr) {
    const nb::dict modules = nb::module_::import_("sys").attr("modules");
    if (modules.contains("torch")) torch = new Torch(modules["torch"]);
  }
  return torch;
}

std::string text(nb::handle object) { return nb::str(object).c_str(); }

std::string kind(nb::handle object) { return nb::type_name(object.type()).c_str(); }

std::string place(int device) {
  return device == kCpu ? "the CPU" : "cuda:" + std::to_string(device);
}

constexpr char kNoCuda[] =
    ", and this build has no CUDA kernels: install where nvcc is, with MPIMOMENTUM_CUDA=1, or move "
    "the arrays to the CPU";

std::int64_t item_size(DType dtype) { return named(dtype).itemsize; }

template <typename T>
constexpr DType dtype_of() {
  return sizeof(T) == sizeof(float) ? DType::f32 : DType::f64;
}

}  // namespace

Call::Call(const char* function) : function_(function) {}

Call::~Call() {
  for (Py_buffer& buffer : buffers_) PyBuffer_Release(&buffer);
}

void Call::refuse_value(const std::string& problem) const {
  throw nb::value_error((std::string(function_) + ": " + problem).c_str());
}

void Call::refuse_type(const std::string& problem) const {
  throw nb::type_error((std::string(function_) + ": " + problem).c_str());
}

Array Call::array(const char* name, nb::handle object, DTypes wanted, Use use, std::int64_t size) {
  const Array found = read(name, object, wanted, use, false);
  if (size >= 0) check_size(found, size);
  return found;
}

void Call::check_size(const Array& array, std::int64_t size) const {
  if (array.size == size) return;
  refuse_value(std::string(array.name) + " must have " + std::to_string(size) + " elements, got " +
               std::to_string(array.size));
}

Array Call::rows(const char* name, nb::handle object, std::int64_t m) {
  const Array found = read(name, object, {DType::u8}, Use::kRead, true);
  if (found.k < 1 || found.k > 65535) {
    refuse_value(std::string(name) + " must have 1 to 65535 rows, got " + std::to_string(found.k));
  }
  if (m >= 0 && found.m != m) {
    refuse_value(std::string(name) + " must have " + std::to_string(m) + " bytes in a row, got " +
                 std::to_string(found.m));
  }
  return found;
}

template <typename T>
Factor<T> Call::factor(const char* name, nb::handle object, std::int64_t n) {
  if (PyFloat_Check(object.ptr()) || PyLong_Check(object.ptr())) {
    const double value = PyFloat_AsDouble(object.ptr());
    if (value == -1.0 && PyErr_Occurred() != nullptr) throw nb::python_error();
    return {static_cast<T>(value), nullptr, nullptr, 0};
  }
  const Array each = array(name, object, {dtype_of<T>()}, Use::kRead);
  if (each.scalar && each.device == kCpu) {
    given_.pop_back();  // its value travels with the call: it need not be where the vectors are
    return {*each.as<const T>(), nullptr, nullptr, 0};
  }
  if (each.scalar && n != 1) {
    refuse_value(std::string(name) + " is a number on " + place(each.device) +
                 ", and to read it would wait for the GPU: give a Python number, or an array of " +
                 std::to_string(n));
  }
  check_size(each, n);
  return {T(0), each.as<const T>(), nullptr, 0};
}

Array Call::ends(nb::handle object, std::int64_t n, bool exactly) {
  const Array found = array("ends", object, {DType::i64});
  if (found.size == 0) refuse_value("ends is empty: [n] is one segment of all n coordinates");
  if (found.device != kCpu) return found;
  const auto* end = found.as<const std::int64_t>();
  std::int64_t before = 0;
  for (std::int64_t s = 0; s < found.size; ++s) {
    if (end[s] < before) {
      refuse_value("ends must ascend from 0, got " + std::to_string(end[s]) + " after " +
                   std::to_string(before));
    }
    before = end[s];
  }
  if (before < n || (exactly && before != n)) {
    refuse_value("the last of ends must be " + std::string(exactly ? "" : "at least ") +
                 std::to_string(n) + ", the number of coordinates, got " + std::to_string(before));
  }
  return found;
}

template <typename T>
Factor<T> Call::segments(nb::handle scale, nb::handle ends_given, std::int64_t n) {
  const Array where = ends(ends_given, n);
  const Array factors = array("scale", scale, {dtype_of<T>()}, Use::kRead, where.size);
  return {T(0), factors.as<const T>(), where.as<const std::int64_t>(), where.size};
}

template Factor<float> Call::factor(const char*, nb::handle, std::int64_t);
template Factor<double> Call::factor(const char*, nb::handle, std::int64_t);
template Factor<float> Call::segments(nb::handle, nb::handle, std::int64_t);
template Factor<double> Call::segments(nb::handle, nb::handle, std::int64_t);

Array Call::read(const char* name, nb::handle object, DTypes wanted, Use use, bool matrix) {
  const Torch* torch = torch_or_null();
  Array found{};
  if (torch != nullptr && PyObject_TypeCheck(object.ptr(), torch->tensor)) {
    try {
      found = read_tensor(name, object, matrix);
    } catch (const nb::python_error& error) {  // torch's: sparse, or inside a transform like vmap
      if (!error.matches(PyExc_RuntimeError)) throw;
      refuse_value(std::string(name) + " is a tensor without plain memory: " + text(error.value()));
    }
  } else if (PyObject_CheckBuffer(object.ptr())) {
    found = read_buffer(name, object, use, matrix);
  } else if (nb::hasattr(object, "__cuda_array_interface__")) {
    found = read_cuda_interface(name, object, use, matrix);
  } else if (torch != nullptr && nb::hasattr(object, "__dlpack__")) {
    found = read_dlpack(name, object, use, matrix);
  } else {
    refuse_type(std::string(name) + " must be a numpy, torch or cupy array, got " + kind(object));
  }
  if (std::find(wanted.begin(), wanted.end(), found.dtype) == wanted.end()) {
    std::string names;
    for (const DType dtype : wanted) {
      names += (names.empty() ? "" : " or ") + std::string(named(dtype).name);
    }
    refuse_type(std::string(name) + " must be " + names + ", got " +
                text(nb::getattr(object, "dtype", nb::str("other things"))));
  }
  if (reinterpret_cast<std::uintptr_t>(found.data) % item_size(found.dtype) != 0) {
    refuse_value(std::string(name) + " does not begin at a multiple of " +
                 std::to_string(item_size(found.dtype)) + " bytes, its element: give a copy");
  }
  keep(found, use);
  return found;
}

Array Call::read_buffer(const char* name, nb::handle object, Use use, bool matrix) {
  Py_buffer view;
  if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_FORMAT | PyBUF_STRIDES) != 0) {
    PyErr_Clear();
    refuse_type(std::string(name) + " is a " + kind(object) +
                " whose memory cannot be read as numbers of this kind");
  }
  buffers_.push_back(view);
  if (view.readonly && use != Use::kRead) {
    refuse_value(std::string(name) + " is read-only, and is written here: give a copy");
  }
  Array found{name, view.buf, view.itemsize != 0 ? view.len / view.itemsize : 0,
              from_format(view.format), kCpu};
  if (found.dtype != DType::other && view.itemsize != item_size(found.dtype)) {
    found.dtype = DType::other;  // "<l" may be four bytes
  }
  if (matrix) {
    if (view.ndim != 2) refuse_value(std::string(name) + " must be (k, m), one row a voter");
    set_rows(found, view.shape[0], view.shape[1], view.strides[0], view.strides[1]);
  } else if (view.ndim == 0) {
    found.scalar = true;
  } else if (PyBuffer_IsContiguous(&view, 'C') == 0) {
    refuse_value(std::string(name) + " is not contiguous: give a copy");
  }
  return found;
}

Array Call::read_tensor(const char* name, nb::handle tensor, bool matrix) {
  const Torch& torch = *torch_or_null();
  if (Torch::is(tensor, torch.requires_grad)) {
    refuse_value(std::string(name) +
                 " requires grad, and nothing here goes through autograd: give " + name +
                 ".detach()");
  }
  int device = kCpu;
  if (!Torch::is(tensor, torch.is_cpu)) {
    if (!Torch::is(tensor, torch.is_cuda)) {
      refuse_value(std::string(name) + " must be on the CPU or a CUDA device, is on " +
                   text(tensor.attr("device")));
    }
    device = nb::cast<int>(tensor.attr("get_device")());
    torch_ = true;
  }
  Array found{name, nullptr, Torch::number(tensor, torch.numel), torch.dtype_of(tensor), device};
  if (matrix) {
    const nb::tuple shape = tensor.attr("shape");
    if (shape.size() != 2) refuse_value(std::string(name) + " must be (k, m), one row a voter");
    const nb::object stride = tensor.attr("stride")();
    set_rows(found, nb::cast<std::int64_t>(shape[0]), nb::cast<std::int64_t>(shape[1]),
             nb::cast<std::int64_t>(stride[0]), nb::cast<std::int64_t>(stride[1]));
  } else if (Torch::call(tensor, torch.is_contiguous).ptr() != Py_True) {
    refuse_value(std::string(name) + " is not contiguous: give " + name + ".contiguous()");
  }
  found.scalar = found.size == 1 && nb::cast<int>(tensor.attr("dim")()) == 0;
  const bool is_float = found.dtype <= DType::bf16;
  if (is_float && Torch::call(tensor, torch.is_neg).ptr() == Py_True) {
    refuse_value(std::string(name) + " is a view that negates its memory: give " + name +
                 ".resolve_neg()");
  }
  found.data = reinterpret_cast<void*>(Torch::number(tensor, torch.data_ptr));
  if (found.data == nullptr && found.size > 0) {
    refuse_value(std::string(name) + " is a tensor without memory (fake, or its storage freed)");
  }
  return found;
}

Array Call::read_cuda_interface(const char* name, nb::handle object, Use use, bool matrix) {
  const nb::dict interface = object.attr("__cuda_array_interface__");
  const nb::tuple data = interface["data"];
  if (use != Use::kRead && nb::cast<bool>(data[1])) {
    refuse_value(std::string(name) + " is read-only, and is written here: give a copy");
  }
  if (interface.contains("mask") && !interface["mask"].is_none()) {
    refuse_value(std::string(name) + " is masked: give the values alone");
  }
  const std::string typestr = text(interface["typestr"]);
  Array found{name, reinterpret_cast<void*>(nb::cast<std::uintptr_t>(data[0])), 1,
              from_typestr(typestr), kCpu};
  std::vector<std::int64_t> shape, stride;  // stride: in bytes
  for (const nb::handle extent : nb::tuple(interface["shape"])) {
    shape.push_back(nb::cast<std::int64_t>(extent));
    found.size *= shape.back();
  }
  found.scalar = shape.empty();
  std::int64_t contiguous = typestr.size() > 2 ? std::stoll(typestr.substr(2)) : 1;
  const bool given = interface.contains("strides") && !interface["strides"].is_none();
  bool is_contiguous = true;
  stride.resize(shape.size());
  for (std::size_t i = shape.size(); i-- > 0;) {
    stride[i] = given ? nb::cast<std::int64_t>(nb::tuple(interface["strides"])[i]) : contiguous;
    is_contiguous = is_contiguous && (shape[i] <= 1 || stride[i] == contiguous);
    contiguous *= shape[i];
  }
  if (matrix) {
    if (shape.size() != 2) refuse_value(std::string(name) + " must be (k, m), one row a voter");
    set_rows(found, shape[0], shape[1], stride[0], stride[1]);
  } else if (!is_contiguous && found.size > 0) {
    refuse_value(std::string(name) + " is not contiguous: give a copy");
  }
  if (interface.contains("stream")) add_producer(name, interface["stream"]);
#ifdef MM_CUDA
  found.device = cuda::device_of(found.data);
#else
  refuse_value(std::string(name) + " is on a GPU" + kNoCuda);
#endif
  return found;
}

void Call::add_producer(const char* name, nb::handle stream) {
  if (stream.is_none()) return;  // its producer has waited, or says that nobody need
  const auto number = nb::cast<std::intptr_t>(stream);
  if (number == 0) {
    refuse_value(std::string(name) +
                 " names stream 0, which may be one of two: the interface wants 1 or 2");
  }
  const auto other = reinterpret_cast<Stream>(number);  // 1 and 2 are CUDA's names for those two
  if (std::find(others_.begin(), others_.end(), other) == others_.end()) others_.push_back(other);
}

Array Call::read_dlpack(const char* name, nb::handle object, Use use, bool matrix) {
  nb::object tensor;
  try {
    tensor = nb::module_::import_("torch").attr("from_dlpack")(object);
  } catch (const nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    refuse_value(std::string(name) + " cannot be taken over by DLPack: " + text(error.value()));
  }
  const Array found = read_tensor(name, tensor, matrix);
  if (found.device != kCpu && use != Use::kRead) {
    refuse_value(std::string(name) +
                 " is written here, and by DLPack alone nobody learns on which stream that must be "
                 "waited for: give an array with __cuda_array_interface__");
  }
  imported_.push_back(tensor);
  return found;
}

void Call::set_rows(Array& rows, std::int64_t k, std::int64_t m, std::int64_t row,
                    std::int64_t item) {
  if ((m > 1 && item != 1) || (k > 1 && row < m)) {
    refuse_value(std::string(rows.name) + " must have contiguous rows one after the other, got " +
                 "strides (" + std::to_string(row) + ", " + std::to_string(item) +
                 ") for rows of " + std::to_string(m) + " bytes");
  }
  rows.k = k;
  rows.m = m;
  rows.stride = k > 1 ? row : m;
}

void Call::keep(const Array& array, Use use) {
  const auto* begin = array.as<const char>();
  const std::int64_t bytes =
      array.k > 0 ? (array.k - 1) * array.stride + array.m : array.size * item_size(array.dtype);
  given_.push_back({array.name, begin, begin + bytes, array.device, use});
}

const Implementation& Call::begin() {
  device_ = given_.begin()->device;
  for (const Given& other : given_) {
    if (other.device != device_) {
      refuse_value(std::string(given_.begin()->name) + " is on " + place(device_) + " and " +
                   other.name + " on " + place(other.device) + ": they must be in one place");
    }
  }
  check_overlaps();
  if (device_ == kCpu) return cpu();
  const Implementation* kernels = cuda_or_null();
  if (kernels == nullptr) {
    refuse_value(std::string(given_.begin()->name) + " is on " + place(device_) + kNoCuda);
  }
  find_stream();
  return *kernels;
}

void Call::check_overlaps() const {
  for (const Given& a : given_) {
    if (a.use == Use::kRead || a.begin == a.end) continue;
    for (const Given& b : given_) {
      if (&a == &b || b.begin >= a.end || a.begin >= b.end) continue;
      const bool same = a.begin == b.begin && a.end == b.end;
      const bool allowed = b.use == Use::kRead && a.use == Use::kWriteMaybeInPlace;
      if (same && allowed) continue;
      refuse_value(std::string(a.name) + " is written and " + (same ? "is" : "overlaps") + " " +
                   b.name + ": give arrays that share no memory");
    }
  }
}

void Call::find_stream() {
  nb::object stream;
  if (torch_) {
    const nb::object cuda = nb::module_::import_("torch").attr("cuda");
    stream = cuda.attr("current_stream")(device_).attr("cuda_stream");
  } else if (const nb::dict modules = nb::module_::import_("sys").attr("modules");
             modules.contains("cupy")) {
    const nb::object cuda = modules["cupy"].attr("cuda");
    stream = cuda.attr("get_current_stream")(device_).attr("ptr");
  } else {  // of another library: the stream that it names, or the default one
    stream = nb::int_(others_.empty() ? 0 : reinterpret_cast<std::intptr_t>(others_.front()));
  }
  stream_ = reinterpret_cast<Stream>(nb::cast<std::intptr_t>(stream));
  // CUDA has two names for the default stream
  const auto same = [&](Stream other) {
    return other == stream_ || (stream_ == nullptr && other == reinterpret_cast<Stream>(1));
  };
  others_.erase(std::remove_if(others_.begin(), others_.end(), same), others_.end());
}

#ifdef MM_CUDA
void Call::order(Stream first, Stream then) { cuda::order(first, then); }

Call::OnDevice::OnDevice(int device) {
  if (device != kCpu) before_ = cuda::set_device(device);
}

Call::OnDevice::~OnDevice() {
  if (before_ == kCpu) return;
  try {
    cuda::set_device(before_);
  } catch (const std::runtime_error&) {  // the device is lost; a destructor must not throw
  }
}
#else
void Call::order(Stream, Stream) {}
Call::OnDevice::OnDevice(int) {}
Call::OnDevice::~OnDevice() {}
#endif

}  // namespace mm
