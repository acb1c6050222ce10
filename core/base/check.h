// check.h: our own invariants. A failed check is a bug in firn and stops the program, in every build; data from outside
// never reaches one (it earns a Status instead).
#pragma once

namespace firn {
[[noreturn]] void check_failed(const char* file, int line, const char* what);
}

#define FIRN_CHECK(...) ((__VA_ARGS__) ? static_cast<void>(0) : ::firn::check_failed(__FILE__, __LINE__, #__VA_ARGS__))

// For hot loops: on unless NDEBUG.
#ifdef NDEBUG
#define FIRN_DCHECK(...) static_cast<void>(0)
#else
#define FIRN_DCHECK(...) FIRN_CHECK(__VA_ARGS__)
#endif
