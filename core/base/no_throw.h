// no_throw.h: where exceptions end. firn throws none; containers do when memory runs out. Whatever comes out of a
// public call, a thread or a codec comes out as a Status.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "firn/status.h"

namespace firn {

// Short enough to need no memory itself.
inline Status out_of_memory() { return Status(Code::kNoSpace, "out of memory"); }

// Runs body, which returns a Status or a Result.
template <class Body>
auto no_throw(Body&& body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  } catch (const std::length_error&) {  // more than any memory has
    return out_of_memory();
  } catch (const std::exception& error) {  // out of what the caller gave: a clock, a device of its own
    try {
      return Status(Code::kInvalidArgument, std::string("an exception: ") + error.what());
    } catch (...) {
      return out_of_memory();
    }
  } catch (...) {
    return Status(Code::kInvalidArgument, "an exception");
  }
}

}  // namespace firn
