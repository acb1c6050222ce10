// guarded.h: what stands between a public call and the object that does it: two promises, kept in one place.
//
// No exception leaves. Memory that runs out is kNoSpace ("out of memory"); calls without a status answer with nothing:
// an empty list, no match. That state is whole afterwards is the object's own care.
//
// A child of fork() has none of the object's threads, and perhaps locks that nobody lets go of: every call answers
// kUnavailable there, or nothing, before it takes one, and the destructor leaves everything to the end of the process.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/base/no_throw.h"
#include "core/base/process.h"

namespace firn {

template <class T>
class Guarded {
 public:
  // what: "manager", a literal: what the message calls it.
  Guarded(std::unique_ptr<T> to, std::string_view what) : to_(std::move(to)), what_(what) {}
  ~Guarded() {
    if (here()) return;
    [[maybe_unused]] T* const left = to_.release();
  }
  T* operator->() const { return to_.get(); }
  T& operator*() const { return *to_; }
  bool here() const { return birthplace_.is_here(); }
  std::string forked() const {
    return "this " + std::string(what_) + " was made before fork(); make another one in this process";
  }

  // A call that says how it went.
  template <class Call>
  auto answer(Call call) const noexcept {
    using Answer = decltype(call());
    return no_throw([&]() -> Answer {
      if (!here()) return Status(Code::kUnavailable, forked());
      return call();
    });
  }

  // A call that answers with nothing where it cannot answer.
  template <class Call>
  auto value(Call call) const noexcept {
    using Value = decltype(call());
    if (here()) {
      try {
        return call();
      } catch (...) {
      }
    }
    return Value{};
  }

 private:
  std::unique_ptr<T> to_;
  std::string_view what_;
  Birthplace birthplace_;
};

}  // namespace firn
