// status.h: how failures travel. A Code tells the caller what to do next; the message tells a person what happened.
// Three kinds of wrong, three mechanisms: wrong calls do not compile, bugs stop the program (check.h), and failures
// that come from outside (files, network, configuration, full memory) come back as values of the types below. Nothing
// throws.
#pragma once

#include <cassert>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "firn/export.h"

namespace firn {

enum class Code : std::uint8_t {
  kOk,
  kInvalidArgument,  // fix the call, the file or the configuration
  kNoSpace,          // make room: every byte of the budget is in use by somebody who may keep it
  kUnavailable,      // try later: the work is in flight, or the other side does not answer
  kCorrupt,          // drop this copy: it is not what it says it is
  kIo,               // stop using this device: it failed
};

FIRN_API std::string_view to_string(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) { assert(code != Code::kOk); }

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  // The same failure, told from one level further up: "reading model.gguf: tensor 3: ...".
  Status with_context(std::string_view context) const {
    return ok() ? *this : Status(code_, std::string(context) + ": " + message_);
  }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A T, or the reason why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                                  // NOLINT: a value is a result
  Result(Status status) : status_(std::move(status)) { assert(!status_.ok()); }  // NOLINT: so is a failure

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return assert(ok()), *value_; }
  const T& value() const& { return assert(ok()), *value_; }
  T&& value() && { return assert(ok()), *std::move(value_); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace firn

#define FIRN_CONCAT_(a, b) a##b
#define FIRN_CONCAT(a, b) FIRN_CONCAT_(a, b)

// FIRN_TRY(expr): returns the failure of a Status expression from the enclosing function.
#define FIRN_TRY(...)                                                                      \
  do {                                                                                     \
    if (::firn::Status firn_status = (__VA_ARGS__); !firn_status.ok()) return firn_status; \
  } while (false)

// FIRN_ASSIGN(decl, expr): decl = value of a Result expression, or returns its failure.
#define FIRN_ASSIGN(decl, ...) FIRN_ASSIGN_(FIRN_CONCAT(firn_result_, __LINE__), decl, __VA_ARGS__)
#define FIRN_ASSIGN_(result, decl, ...)     \
  auto result = (__VA_ARGS__);              \
  if (!result.ok()) return result.status(); \
  decl = std::move(result).value()
