// The Python module mpimomentum.codecs._csrc: what codecs/sign.py, mix.py and wire.py call. Each
// function reads its arguments and runs its kernel; codecs/fallback.py has the same functions.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "arguments.h"
#include "atomics.h"
#ifdef MM_CUDA
#include <nanobind/ndarray.h>

#include "cuda_memory.h"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace mm {
namespace {

using Use = Call::Use;
constexpr Call::DTypes kFloats = {DType::f32, DType::f64};
constexpr Call::DTypes kAnyFloats = {DType::f32, DType::f64, DType::f16, DType::bf16};

std::int64_t bytes_for(std::int64_t bits) { return bits / 8 + (bits % 8 != 0); }

const Kernels<float>& of(const Implementation& kernels, float) { return kernels.f32; }
const Kernels<double>& of(const Implementation& kernels, double) { return kernels.f64; }

// Call body(T()) with the type of float that is in the arrays.
template <typename Body>
void with_type(DType dtype, Body&& body) {
  if (dtype == DType::f32) {
    body(float());
  } else {
    body(double());
  }
}

void pack(nb::handle x_, nb::handle bits_) {
  Call call("mm.sign.pack");
  const Array x = call.array("x", x_, kAnyFloats);
  const Array bits = call.array("bits", bits_, {DType::u8}, Use::kWrite, bytes_for(x.size));
  call.run([&](const Implementation& kernels, Stream stream) {
    Bits* out = bits.as<Bits>();
    if (x.dtype == DType::f32) {
      kernels.f32.pack(x.as<float>(), x.size, out, stream);
    } else if (x.dtype == DType::f64) {
      kernels.f64.pack(x.as<double>(), x.size, out, stream);
    } else {
      const std::uint16_t minus_infinity = x.dtype == DType::f16 ? 0xfc00 : 0xff80;
      kernels.sign.pack16(x.as<std::uint16_t>(), x.size, minus_infinity, out, stream);
    }
  });
}

void unpack(nb::handle bits_, nb::handle out_) {
  Call call("mm.sign.unpack");
  const Array out = call.array("out", out_, kFloats, Use::kWrite);
  const Array bits = call.array("bits", bits_, {DType::u8}, Use::kRead, bytes_for(out.size));
  with_type(out.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t).unpack(bits.as<Bits>(), out.size, out.as<T>(), stream);
    });
  });
}

void vote(nb::handle rows_, nb::handle out_) {
  Call call("mm.sign.vote");
  const Array rows = call.rows("rows", rows_);
  const Array out = call.array("out", out_, {DType::u8}, Use::kWrite, rows.m);
  call.run([&](const Implementation& kernels, Stream stream) {
    kernels.sign.vote(rows.as<Bits>(), rows.k, rows.stride, rows.m, out.as<Bits>(), stream);
  });
}

void count(nb::handle rows_, nb::handle out_) {
  Call call("mm.sign.count");
  const Array out = call.array("out", out_, {DType::u16}, Use::kWrite);
  const Array rows = call.rows("rows", rows_, bytes_for(out.size));
  call.run([&](const Implementation& kernels, Stream stream) {
    kernels.sign.count(rows.as<Bits>(), rows.k, rows.stride, out.size, out.as<std::uint16_t>(),
                       stream);
  });
}

void signum(nb::handle m_, nb::handle g_, double beta, nb::handle bits_) {
  Call call("mm.sign.signum");
  const Array m = call.array("m", m_, kFloats, Use::kWrite);
  const Array g = call.array("g", g_, {m.dtype}, Use::kRead, m.size);
  const Array bits = call.array("bits", bits_, {DType::u8}, Use::kWrite, bytes_for(m.size));
  with_type(m.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .signum(m.as<T>(), g.as<const T>(), m.size, static_cast<T>(beta),
                  static_cast<T>(1.0 - beta), bits.as<Bits>(), stream);
    });
  });
}

// x = x - (step s + shrink x), with the step of `read_step`.
template <typename ReadStep>
void descend(Call& call, nb::handle x_, nb::handle bits_, nb::handle shrink_, ReadStep read_step) {
  const Array x = call.array("x", x_, kFloats, Use::kWrite);
  const Array bits = call.array("bits", bits_, {DType::u8}, Use::kRead, bytes_for(x.size));
  with_type(x.dtype, [&](auto t) {
    using T = decltype(t);
    const Factor<T> step = read_step(t, x.size);
    const bool shrinks = !shrink_.is_none();
    const Factor<T> shrink = shrinks ? call.factor<T>("shrink", shrink_, x.size) : Factor<T>{};
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .apply(x.as<T>(), bits.as<Bits>(), x.size, step, shrinks ? &shrink : nullptr, stream);
    });
  });
}

void apply(nb::handle x, nb::handle bits, nb::handle step, nb::handle shrink) {
  Call call("mm.sign.apply");
  descend(call, x, bits, shrink,
          [&](auto t, std::int64_t n) { return call.factor<decltype(t)>("lr", step, n); });
}

void apply_segments(nb::handle x, nb::handle bits, nb::handle scale, nb::handle ends,
                    nb::handle shrink) {
  Call call("mm.sign.descend");
  descend(call, x, bits, shrink,
          [&](auto t, std::int64_t n) { return call.segments<decltype(t)>(scale, ends, n); });
}

void ef(nb::handle p_, nb::handle g_, nb::handle lr_, nb::handle scale_, nb::handle ends_,
        nb::handle bits_, nb::handle l1_) {
  Call call("mm.sign.ef");
  const Array p = call.array("p", p_, kFloats, Use::kWrite);
  const Array g = call.array("g", g_, {p.dtype}, Use::kRead, p.size);
  const Array bits = call.array("bits", bits_, {DType::u8}, Use::kWrite, bytes_for(p.size));
  with_type(p.dtype, [&](auto t) {
    using T = decltype(t);
    const Factor<T> lr = call.factor<T>("lr", lr_, p.size);
    const Factor<T> scale = call.segments<T>(scale_, ends_, p.size);
    const Array l1 = call.array("l1", l1_, {DType::f64}, Use::kWrite, scale.segments);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .ef(p.as<T>(), g.as<const T>(), p.size, lr, scale, bits.as<Bits>(), l1.as<double>(),
              stream);
    });
  });
}

void decode(nb::handle rows_, nb::handle scales_, nb::handle ends_, std::int64_t first,
            nb::handle out_) {
  Call call("mm.sign.decode");
  const Array out = call.array("out", out_, kFloats, Use::kWrite);
  const Array rows = call.rows("rows", rows_, bytes_for(out.size));
  if (first < 0 || first > INT64_MAX - out.size) {
    call.refuse_value("first must be 0 or more and less than 2^63 - n, got " +
                      std::to_string(first) + "; ends must reach at least first + n");
  }
  const Array ends = call.ends(ends_, first + out.size, false);
  const Array scales = call.array("scales", scales_, {out.dtype}, Use::kRead, rows.k * ends.size);
  with_type(out.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .decode(rows.as<Bits>(), rows.k, rows.stride, out.size, scales.as<const T>(),
                  ends.as<const std::int64_t>(), ends.size, first, out.as<T>(), stream);
    });
  });
}

void average(nb::handle x_, nb::handle y_, nb::handle out_) {
  Call call("mm.mix.average");
  const Array x = call.array("x", x_, kFloats);
  const Array y = call.array("y", y_, {x.dtype}, Use::kRead, x.size);
  const Array out = call.array("out", out_, {x.dtype}, Use::kWriteMaybeInPlace, x.size);
  with_type(x.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t).average(x.as<const T>(), y.as<const T>(), x.size, out.as<T>(), stream);
    });
  });
}

void exchange(nb::handle x_, nb::handle y_, nb::handle delta_) {
  Call call("mm.mix.exchange");
  const Array x = call.array("x", x_, kFloats, Use::kWrite);
  const Array y = call.array("y", y_, {x.dtype}, Use::kRead, x.size);
  const Array delta = call.array("delta", delta_, {x.dtype}, Use::kWrite, x.size);
  with_type(x.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t).exchange(x.as<T>(), y.as<const T>(), x.size, delta.as<T>(), stream);
    });
  });
}

std::int64_t exchange_finite(nb::handle x_, nb::handle y_, nb::handle delta_) {
  Call call("mm.mix.exchange_finite");
  const Array x = call.array("x", x_, kFloats, Use::kWrite);
  const Array y = call.array("y", y_, {x.dtype}, Use::kRead, x.size);
  const Array delta = call.array("delta", delta_, {x.dtype}, Use::kWrite, x.size);
  std::int64_t done = 0;
  with_type(x.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream) {
      if (of(kernels, t).exchange_finite == nullptr) {
        call.refuse_value("the CUDA kernels have none: nothing waits for what they find");
      }
      done = of(kernels, t).exchange_finite(x.as<T>(), y.as<const T>(), x.size, delta.as<T>());
    });
  });
  return done;
}

void exchange_where_finite(nb::handle x_, nb::handle y_, nb::handle delta_, nb::handle found_) {
  Call call("mm.mix.exchange_where_finite");
  const Array x = call.array("x", x_, kFloats, Use::kWrite);
  const Array y = call.array("y", y_, {x.dtype}, Use::kRead, x.size);
  const Array delta = call.array("delta", delta_, {x.dtype}, Use::kWrite, x.size);
  const Array found = call.array("found", found_, {DType::u8}, Use::kWrite, 1);
  with_type(x.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .exchange_where_finite(x.as<T>(), y.as<const T>(), x.size, delta.as<T>(),
                                 found.as<std::uint8_t>(), stream);
    });
  });
}

void mix(nb::handle rows_, nb::handle weights_, nb::handle out_) {
  Call call("mm.mix.mix");
  const Array out = call.array("out", out_, kFloats, Use::kWriteMaybeInPlace);
  std::vector<void*> pointers;
  const nb::tuple rows(rows_);  // holds what a generator made until the sum is done
  for (const nb::handle row : rows) {
    pointers.push_back(call.array("rows", row, {out.dtype}, Use::kRead, out.size).data);
  }
  std::vector<double> values;
  for (const nb::handle weight : weights_) {
    values.push_back(PyFloat_AsDouble(weight.ptr()));
    if (PyErr_Occurred() != nullptr) throw nb::python_error();
  }
  if (pointers.empty() || pointers.size() != values.size()) {
    call.refuse_value("rows and weights must be as many, at least one, got " +
                      std::to_string(pointers.size()) + " and " + std::to_string(values.size()));
  }
  with_type(out.dtype, [&](auto t) {
    using T = decltype(t);
    const std::vector<T> weights(values.begin(), values.end());
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .mix(reinterpret_cast<const T* const*>(pointers.data()), weights.data(),
               static_cast<std::int64_t>(pointers.size()), out.size, out.as<T>(), stream);
    });
  });
}

void heavy_ball(nb::handle x_, nb::handle m_, nb::handle g_, nb::handle lr_, double mu) {
  Call call("mm.mix.heavy_ball");
  const Array x = call.array("x", x_, kFloats, Use::kWrite);
  const Array m = call.array("m", m_, {x.dtype}, Use::kWrite, x.size);
  const Array g = call.array("g", g_, {x.dtype}, Use::kRead, x.size);
  with_type(x.dtype, [&](auto t) {
    using T = decltype(t);
    const Factor<T> lr = call.factor<T>("lr", lr_, x.size);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .heavy_ball(x.as<T>(), m.as<T>(), g.as<const T>(), x.size, lr, static_cast<T>(mu),
                      stream);
    });
  });
}

void server_step(nb::handle x_, nb::handle v_, nb::handle u_, double mu) {
  Call call("mm.mix.server_step");
  const Array x = call.array("x", x_, kFloats, Use::kWrite);
  const Array v = call.array("v", v_, {x.dtype}, Use::kWrite, x.size);
  const Array u = call.array("u", u_, {x.dtype}, Use::kRead, x.size);
  with_type(x.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .server_step(x.as<T>(), v.as<T>(), u.as<const T>(), x.size, static_cast<T>(mu), stream);
    });
  });
}

Format format_of(const Call& call, const std::string& name) {
  if (name == "bf16") return Format::bf16;
  if (name == "int8") return Format::int8;
  if (name == "sign") return Format::sign;
  call.refuse_value("format must be 'bf16', 'int8' or 'sign', got '" + name + "'");
}

std::int64_t wire_bytes(Format format, std::int64_t n) {
  if (format == Format::bf16) return 2 * n;
  return 4 * wire_chunks(n) + (format == Format::int8 ? n : bytes_for(n));
}

Array wire_array(Call& call, const char* name, nb::handle object, Use use, std::int64_t bytes) {
  const Array wire = call.array(name, object, {DType::u8}, use, bytes);
  if (bytes > 0 && reinterpret_cast<std::uintptr_t>(wire.data) % 4 != 0) {
    call.refuse_value(std::string(name) + " must begin at a multiple of 4 bytes: give a copy");
  }
  return wire;
}

void wire_encode(const std::string& format_, nb::handle x_, nb::handle memory_, bool differs,
                 nb::handle out_) {
  Call call("mm.wire.encode");
  const Format format = format_of(call, format_);
  const Array x = call.array("x", x_, kFloats);
  Memory kind = Memory::none;
  Array memory{};
  if (!memory_.is_none()) {
    kind = differs ? Memory::replica : Memory::error;
    memory = call.array(differs ? "replica" : "error", memory_, {x.dtype}, Use::kWrite, x.size);
  }
  const Array out = wire_array(call, "out", out_, Use::kWrite, wire_bytes(format, x.size));
  with_type(x.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .wire_encode(format, kind, x.as<const T>(), memory.as<T>(), x.size, out.as<Bits>(),
                       stream);
    });
  });
}

void wire_decode(const std::string& format_, nb::handle wire_, nb::handle factor_,
                 nb::handle out_) {
  Call call("mm.wire.decode");
  const Format format = format_of(call, format_);
  const Array out = call.array("out", out_, kFloats, Use::kWrite);
  const Array wire = wire_array(call, "wire", wire_, Use::kRead, wire_bytes(format, out.size));
  const bool adds = !factor_.is_none();
  const double factor = adds ? nb::cast<double>(factor_) : 1.0;
  with_type(out.dtype, [&](auto t) {
    using T = decltype(t);
    call.run([&](const Implementation& kernels, Stream stream) {
      of(kernels, t)
          .wire_decode(format, wire.as<const Bits>(), out.size, adds, static_cast<T>(factor),
                       out.as<T>(), stream);
    });
  });
}

}  // namespace
}  // namespace mm

NB_MODULE(_csrc, m) {
  m.def("pack", &mm::pack, "x"_a, "bits"_a);
  m.def("unpack", &mm::unpack, "bits"_a, "out"_a);
  m.def("vote", &mm::vote, "rows"_a, "out"_a);
  m.def("count", &mm::count, "rows"_a, "out"_a);
  m.def("signum", &mm::signum, "m"_a, "g"_a, "beta"_a, "bits"_a);
  m.def("apply", &mm::apply, "x"_a, "bits"_a, "step"_a, "shrink"_a.none());
  m.def("apply_segments", &mm::apply_segments, "x"_a, "bits"_a, "scale"_a, "ends"_a,
        "shrink"_a.none());
  m.def("ef", &mm::ef, "p"_a, "g"_a, "lr"_a, "scale"_a, "ends"_a, "bits"_a, "l1"_a);
  m.def("decode", &mm::decode, "rows"_a, "scales"_a, "ends"_a, "first"_a, "out"_a);
  m.def("average", &mm::average, "x"_a, "y"_a, "out"_a);
  m.def("exchange", &mm::exchange, "x"_a, "y"_a, "delta"_a);
  m.def("exchange_finite", &mm::exchange_finite, "x"_a, "y"_a, "delta"_a);
  m.def("exchange_where_finite", &mm::exchange_where_finite, "x"_a, "y"_a, "delta"_a, "found"_a);
  m.def("mix", &mm::mix, "rows"_a, "weights"_a, "out"_a);
  m.def("heavy_ball", &mm::heavy_ball, "x"_a, "m"_a, "g"_a, "lr"_a, "mu"_a);
  m.def("server_step", &mm::server_step, "x"_a, "v"_a, "u"_a, "mu"_a);
  m.def("wire_encode", &mm::wire_encode, "format"_a, "x"_a, "memory"_a.none(), "differs"_a,
        "out"_a);
  m.def("wire_decode", &mm::wire_decode, "format"_a, "wire"_a, "factor"_a.none(), "out"_a);

  m.def("atomic_load", &mm::atomic_load, "address"_a);
  m.def("atomic_compare_and_swap", &mm::atomic_compare_and_swap, "address"_a, "expected"_a,
        "desired"_a);
  m.def("atomic_fetch_add", &mm::atomic_fetch_add, "address"_a, "k"_a);

#ifdef MM_CUDA
  const auto without_gil = nb::call_guard<nb::gil_scoped_release>();
  m.def("device_allocate", &mm::cuda::allocate, "device"_a, "bytes"_a, without_gil);
  m.def("device_free", &mm::cuda::free, "device"_a, "address"_a, without_gil);
  m.def("device_close", &mm::cuda::ipc_close, "device"_a, "address"_a, without_gil);
  m.def("host_register", &mm::cuda::host_register, "device"_a, "address"_a, "bytes"_a, without_gil);
  m.def("host_unregister", &mm::cuda::host_unregister, "device"_a, "address"_a, without_gil);
  m.def(
      "device_handle",
      [](int device, std::uintptr_t address) {
        const std::string handle = mm::cuda::ipc_handle(device, address);
        return nb::bytes(handle.data(), handle.size());
      },
      "device"_a, "address"_a);
  m.def(
      "device_open",
      [](int device, nb::bytes handle) {
        return mm::cuda::ipc_open(device, std::string(handle.c_str(), handle.size()));
      },
      "device"_a, "handle"_a);
  // A tensor of the device that is to work on it: torch would ask CUDA where the memory is, and for
  // a peer's that is another. -1: of the CPU.
  m.def(
      "device_tensor",
      [](int device, std::uintptr_t address, std::size_t bytes) {
        const int kind = device < 0 ? nb::device::cpu::value : nb::device::cuda::value;
        return nb::ndarray<nb::pytorch, std::uint8_t, nb::ndim<1>>(
            reinterpret_cast<void*>(address), {bytes}, nb::handle(), {}, nb::dtype<std::uint8_t>(),
            kind, device < 0 ? 0 : device);
      },
      nb::rv_policy::reference, "device"_a, "address"_a, "bytes"_a);
#endif

  m.def("cuda", [] { return mm::cuda_or_null() != nullptr; });
  m.def("instruction_set", [] { return std::string(mm::cpu().name); });
  m.def("instruction_sets", &mm::instruction_sets);
  m.def("use_instruction_set", &mm::use_instruction_set, "name"_a);
}
