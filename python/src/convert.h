// convert.h: what the parts of the module share: statuses as exceptions, the interpreter's lock, and arguments that any
// Python object may be. Whatever converting an argument may run (__index__ is the caller's code) runs before anything
// of firn's is touched.
#pragma once

#include <fmt/format.h>
#include <nanobind/nanobind.h>

#include <unistd.h>

#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "firn/codec.h"
#include "firn/key.h"
#include "firn/status.h"

namespace firn::python {

namespace nb = nanobind;

// --- failures ---

inline std::array<PyObject*, 7> exceptions{};  // by Code; kept for the life of the process, as CPython's own are

[[noreturn]] inline void raise(const Status& status) {
  PyErr_SetString(exceptions[static_cast<std::size_t>(status.code())], status.message().c_str());
  throw nb::python_error();
}

// Without the interpreter's lock for as long as this lives.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  Released(const Released&) = delete;
  ~Released() {
    // Before 3.14 CPython ends a thread that asks for the lock while the interpreter goes away, by unwinding its stack;
    // through C++ that is the end of the process. Such a thread stays here instead: exit() does not wait for it.
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

 private:
  PyThreadState* state_;
};

// Runs a call without the interpreter's lock.
template <class Call>
auto unlocked(Call&& call) {
  Released released;
  return call();
}

// Calls what is the caller's: Python code, in which a thread may be ended as in Released, and stays here for the same
// reason. Nothing of C++ lies between the interpreter and this.
inline nb::object called(nb::handle callable) {
  PyObject* given = nullptr;
  try {
    given = PyObject_CallNoArgs(callable.ptr());
  } catch (...) {
    for (;;) pause();
  }
  if (given == nullptr) throw nb::python_error();
  return nb::steal(given);
}

// What a call gave, or its failure as an exception. With the lock.
template <class Outcome>
auto unpacked(Outcome outcome) {
  if constexpr (std::is_same_v<Outcome, Status>) {
    if (!outcome.ok()) raise(outcome);
  } else {
    if (!outcome.ok()) raise(outcome.status());
    return std::move(outcome).value();
  }
}

// --- arguments ---

[[noreturn]] inline void refuse(PyObject* type, const std::string& why) {
  PyErr_SetString(type, why.c_str());
  throw nb::python_error();
}

inline std::string type_of(nb::handle given) { return Py_TYPE(given.ptr())->tp_name; }

// The items of any sequence or iterator, as they are now: what converting one of them does to the list that was given
// (__index__ is the caller's code) cannot pull the others away. What has no order, and text, is no list of items.
inline nb::tuple items_of(nb::handle given, std::string_view name, std::string_view what) {
  PyObject* const p = given.ptr();
  nb::object items;
  if (!PyUnicode_Check(p) && !PyBytes_Check(p) && !PyByteArray_Check(p) && !PyAnySet_Check(p) && !PyDict_Check(p)) {
    items = nb::steal(PySequence_Tuple(p));
    if (!items.is_valid() && !PyErr_ExceptionMatches(PyExc_TypeError)) throw nb::python_error();
    PyErr_Clear();
  }
  if (!items.is_valid()) refuse(PyExc_TypeError, fmt::format("{}: {}, not {}", name, what, type_of(given)));
  return nb::borrow<nb::tuple>(items);
}

// Of items_of: exactly so many.
inline nb::tuple fields_of(nb::handle given, std::string_view name, std::string_view what, std::size_t count) {
  nb::tuple fields = items_of(given, name, what);
  if (fields.size() != count) refuse(PyExc_ValueError, fmt::format("{}: {}, not {} values", name, what, fields.size()));
  return fields;
}

template <class T>
T integer(nb::handle given, std::string_view name) {
  const nb::object number = nb::steal(PyNumber_Index(given.ptr()));
  if (!number.is_valid()) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw nb::python_error();
    PyErr_Clear();
    refuse(PyExc_TypeError, fmt::format("{}: an integer, not {}", name, type_of(given)));
  }
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow == 0 && std::in_range<T>(value)) return static_cast<T>(value);
  if constexpr (sizeof(T) == 8 && std::is_unsigned_v<T>) {
    const unsigned long long wide = PyLong_AsUnsignedLongLong(number.ptr());
    if (!PyErr_Occurred()) return wide;
    PyErr_Clear();
  }
  refuse(PyExc_OverflowError,
         fmt::format("{}: {} to {}", name, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
}

// A namespace, a salt: str (as UTF-8) or bytes.
inline std::string bytes_of(nb::handle given, std::string_view name) {
  if (PyBytes_Check(given.ptr()))
    return {PyBytes_AS_STRING(given.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(given.ptr()))};
  if (!PyUnicode_Check(given.ptr()))
    refuse(PyExc_TypeError, fmt::format("{}: str or bytes, not {}", name, type_of(given)));
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(given.ptr(), &size);
  if (!text) throw nb::python_error();
  return {text, static_cast<std::size_t>(size)};
}

inline Digest digest_of(const nb::bytes& bytes, const char* what) {
  Digest digest;
  if (bytes.size() != digest.bytes.size())
    throw nb::value_error(fmt::format("{}: 32 bytes, not {}", what, bytes.size()).c_str());
  std::memcpy(digest.bytes.data(), bytes.c_str(), digest.bytes.size());
  return digest;
}

inline nb::bytes bytes_from(const Digest& digest) {
  return nb::bytes(reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size());
}

inline nb::object key_or_none(const Key& key) { return key.is_zero() ? nb::none() : nb::object(bytes_from(key)); }

inline std::vector<Key> keys_of(nb::handle given) {
  std::vector<Key> keys;
  for (const nb::handle key : items_of(given, "keys", "a sequence of keys, bytes each")) {
    if (!PyBytes_Check(key.ptr())) refuse(PyExc_TypeError, fmt::format("keys: bytes, not {}", type_of(key)));
    keys.push_back(digest_of(nb::borrow<nb::bytes>(key), "keys"));
  }
  return keys;
}

inline nb::list keys_from(const std::vector<Key>& keys) {
  nb::list list;
  for (const Key& key : keys) list.append(bytes_from(key));
  return list;
}

inline Fidelity fidelity_of(std::string_view name, std::string_view argument = "min_fidelity") {
  for (const Fidelity fidelity : {Fidelity::kExact, Fidelity::kLossy, Fidelity::kDerived})
    if (to_string(fidelity) == name) return fidelity;
  throw nb::value_error(fmt::format("{}: exact, lossy or derived, not {}", argument, name).c_str());
}

}  // namespace firn::python
