#include "core/trace_recorder.h"

#include <fmt/format.h>

#include <algorithm>

namespace firn {

Result<std::unique_ptr<TraceRecorder>> TraceRecorder::create(const std::string& file) {
  std::unique_ptr<TraceRecorder> made(new TraceRecorder(file));
  if (!made->out_) return Status(Code::kIo, fmt::format("trace.record: {} cannot be written", file));
  return made;
}

TraceRecorder::~TraceRecorder() {
  while (!pending_.empty()) write_first();
}

void TraceRecorder::record(SeqId seq, Instant begun, std::uint32_t prompt_tokens, std::uint32_t output_tokens,
                           std::span<const Key> keys) {
  std::string rest = fmt::format("\"input_length\":{},\"output_length\":{},\"block_size\":{},\"hash_ids\":[",
                                 prompt_tokens, output_tokens, kBlockTokens);
  // 53 bits: every reader of JSON has these exactly.
  for (std::size_t i = 0; i < keys.size(); ++i)
    rest += fmt::format("{}{}", i == 0 ? "" : ",", policy_name(keys[i]) >> 11);
  pending_[index(seq)] = {begun, rest + "]}\n"};
  while (pending_.size() > kPending) write_first();
}

void TraceRecorder::write_first() {
  const auto first = pending_.begin();
  if (start_ns_ < 0) start_ns_ = first->second.begun.ns;
  constexpr std::int64_t kNsPerMs = 1'000'000;
  out_ << fmt::format("{{\"timestamp\":{},", std::max<std::int64_t>(0, first->second.begun.ns - start_ns_) / kNsPerMs)
       << first->second.rest;
  pending_.erase(first);
}

}  // namespace firn
