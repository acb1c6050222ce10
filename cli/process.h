// process.h: what this process owes whoever started it, whatever they closed, filled up, limited or pressed: results or
// a reason, and an exit code; never an abort, never a hang.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <utility>

namespace firn::cli {

// To stderr, where all that is no result goes. A stderr that is full or closed changes nothing.
void tell_text(std::string_view text) noexcept;
template <class... T>
void tell(fmt::format_string<T...> format, T&&... values) noexcept {
  try {
    tell_text(fmt::format(format, std::forward<T>(values)...));
  } catch (...) {  // memory for a sentence is not there; the exit code still is
  }
}

// To stdout, one piece of a long answer, at once. False: nobody reads it any more.
bool print_now(std::string_view text) noexcept;

// While one of these is alive, SIGINT and SIGTERM are asked for by stop_signal(), so that a command ends soon and
// prints what it has; a second one ends the process at once, as either does where nobody asks.
class Interruptible {
 public:
  Interruptible();
  ~Interruptible();
};
int stop_signal() noexcept;  // 0: none was sent

// The whole life of the program: run() returns the exit code, or throws what nobody caught below. What was sent, 130
// (SIGINT) or 143 (SIGTERM), wins over a code of 0; a result that could not be written is kExitIo.
int run_process(const std::function<int()>& run);

}  // namespace firn::cli
