#include "firn/status.h"

#include <cstdio>
#include <cstdlib>

#include "core/base/check.h"

namespace firn {

std::string_view to_string(Code code) {
  switch (code) {
    case Code::kOk:
      return "ok";
    case Code::kInvalidArgument:
      return "invalid argument";
    case Code::kNoSpace:
      return "no space";
    case Code::kUnavailable:
      return "unavailable";
    case Code::kCorrupt:
      return "corrupt";
    case Code::kIo:
      return "i/o failure";
  }
  return "unknown code";
}

void check_failed(const char* file, int line, const char* what) {
  std::fprintf(stderr, "firn: broken invariant at %s:%d: %s\n", file, line, what);
  std::abort();
}

}  // namespace firn
