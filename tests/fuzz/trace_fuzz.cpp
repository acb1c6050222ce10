// trace_fuzz.cpp: what reading a trace does with bytes from anywhere: every format, plain and packed. The first byte
// chooses the format that is named; whatever is read must keep the reader's promises, and passes through the counting.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/base/check.h"
#include "sim/bookkeeping.h"
#include "sim/trace.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace firn;
  using namespace firn::sim;
  if (size == 0) return 0;
  const int file = memfd_create("trace", MFD_CLOEXEC);
  FIRN_CHECK(file >= 0);
  FIRN_CHECK(write(file, data + 1, size - 1) == static_cast<ssize_t>(size - 1));
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  TraceOptions options;
  options.format = static_cast<TraceFormat>(data[0] % 7);
  options.strict = (data[0] & 0x40) != 0;
  if ((data[0] & 0x80) != 0) options.max_requests = 100;
  if (const auto reader = TraceReader::open(path, options); reader.ok()) {
    TraceRequest request;
    std::int64_t last = 0;
    std::uint64_t requests = 0;
    Result<bool> more = true;
    while ((more = (*reader)->next(request)).ok() && *more) {
      FIRN_CHECK(request.time_ns >= last);
      FIRN_CHECK(requests != 0 || request.time_ns == 0);
      FIRN_CHECK(request.input_tokens <= TraceReader::kMaxTokens && request.output_tokens <= TraceReader::kMaxTokens);
      FIRN_CHECK((*reader)->packed_read() <= (*reader)->packed_size());
      last = request.time_ns;
      ++requests;
    }
    FIRN_CHECK(requests != 0 || !more.ok());
    if (requests != 0 && requests < 1000) {
      options.strict = false;
      TraceOptions few = options;
      few.max_requests = 50;
      const auto counted = run_bookkeeping(path, few, {.policy = "lru", .tier_blocks = {64}, .block_tokens = 1u << 20});
      FIRN_CHECK(counted.ok() || counted.status().code() != Code::kOk);
    }
  }
  close(file);
  return 0;
}
