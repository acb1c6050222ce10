#include "cli/process.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <new>
#include <string_view>
#include <system_error>

#include "cli/commands.h"

namespace firn::cli {
namespace {

std::atomic<int> sent{0};       // the signal; lock-free, as a handler needs it
std::atomic<int> listeners{0};  // Interruptibles
static_assert(std::atomic<int>::is_always_lock_free);

void on_signal(int signal) {
  if (listeners.load() == 0 || sent.exchange(signal) != 0) _exit(128 + signal);
}

// A file that is opened must not become stdin, stdout or stderr because somebody closed them: it would be read, or
// written into. In their place comes what fails when it is used; of stderr, what takes everything.
void keep_standard_files() {
  constexpr int kModes[] = {O_WRONLY, O_RDONLY, O_WRONLY};
  for (int file = 0; file < 3; ++file)
    if (fcntl(file, F_GETFD) < 0 && errno == EBADF && open("/dev/null", kModes[file]) < 0) return;  // the lowest free
}

// nohup and shells that start something in the background have these ignored; that stays.
void listen_to(int signal) {
  struct sigaction old {};
  if (sigaction(signal, nullptr, &old) == 0 && old.sa_handler == SIG_IGN) return;
  struct sigaction ours {};
  ours.sa_handler = on_signal;
  sigaction(signal, &ours, nullptr);
}

// The code and the sentence of an exception. No memory is taken here, as there may be none.
int explain(std::exception_ptr thrown) noexcept {
  const auto say = [](const char* what, const char* why) {
    for (const char* part : {"firn: ", what, why, "\n"}) tell_text(part);
  };
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const std::bad_alloc&) {
    say("there is not enough memory", "");
    return kExitNoSpace;
  } catch (const std::ios_base::failure& error) {
    say("a file cannot be read: ", error.what());
    return kExitUsage;
  } catch (const std::system_error& error) {
    if (std::ferror(stdout) != 0) {
      say("the result cannot be written: ", std::strerror(error.code().value()));
      return kExitIo;
    }
    say("the system refused: ", error.what());
    return error.code() == std::errc::resource_unavailable_try_again ? kExitUnavailable : kExitIo;
  } catch (const std::exception& error) {
    say("", error.what());
    return kExitProblem;
  } catch (...) {
    say("something was thrown that is no exception", "");
    return kExitProblem;
  }
}

// In a thread, or where nothing may throw: what can be said is said, and the process ends.
[[noreturn]] void on_terminate() {
  if (const std::exception_ptr thrown = std::current_exception()) _exit(explain(thrown));
  std::abort();  // a bug of ours
}

bool results_are_written() {
  errno = 0;
  const bool failed_before = std::ferror(stdout) != 0;
  std::cout.flush();
  if (std::fflush(stdout) == 0 && !failed_before && std::cout) return true;
  tell("firn: the result cannot be written{}{}\n", errno == 0 ? "" : ": ", errno == 0 ? "" : std::strerror(errno));
  return false;
}

}  // namespace

void tell_text(std::string_view text) noexcept { std::fwrite(text.data(), 1, text.size(), stderr); }

bool print_now(std::string_view text) noexcept {
  std::fwrite(text.data(), 1, text.size(), stdout);
  return std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
}

Interruptible::Interruptible() { ++listeners; }
Interruptible::~Interruptible() { --listeners; }
int stop_signal() noexcept { return sent.load(); }

int run_process(const std::function<int()>& run) {
  keep_standard_files();
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on file sizes is a failure to write, and is reported as one
  listen_to(SIGINT);
  listen_to(SIGTERM);
  std::set_terminate(on_terminate);
  int code = kExitProblem;
  try {
    code = run();
  } catch (...) {
    code = explain(std::current_exception());
    if (std::ferror(stdout) != 0) return code;  // said already
  }
  const bool written = results_are_written();
  return stop_signal() != 0 ? 128 + stop_signal() : written ? code : kExitIo;
}

}  // namespace firn::cli
