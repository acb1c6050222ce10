// codec_calls.h: what every codec asks of a call and of a frame before it works on either, and how work is spread over
// threads. Messages: kInvalidArgument for a wrong call, kCorrupt for a frame that is not what was asked for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "firn/codec.h"
#include "firn/status.h"
#include "firn/thread_pool.h"
#include "storage/codec/frame.h"
#include "storage/codec/tensor_rows.h"

namespace firn {

TensorShape tensor_shape(const ExtentShape& shape, bool values);

// --- the call ---
Status invalid_call(std::string_view field, std::string_view what);
Status check_call(std::string_view field, std::uint64_t value, std::uint64_t least, std::uint64_t most);
Status check_shape(const ExtentShape& shape);
// Bound is the codec's for this shape. A lossy codec's content cannot be labelled exact.
Status check_encode(const EncodeJob& job, const Codec& codec, std::size_t bound);
Status check_decode(const DecodeJob& job);

// --- the frame ---
Status differs(std::string_view field, std::string_view what);
Status check_same(std::string_view field, std::uint64_t value, std::uint64_t expected);
// The frame is of this codec and holds what the job expects; what is special to lossy codecs is not looked at.
Status check_identity(const FrameHeader& header, const DecodeJob& job, const Codec& codec);
// A measured error: zero for exact codecs, else finite and not negative.
Status check_error(std::string_view field, float error, bool exact);

// Moves sections up to where the page wants them (each was coded at its entry's offset, with zeros up to the next
// multiple of 64), and writes the head. header.total_bytes is set here. Returns the frame's bytes.
std::uint64_t finish_frame(FrameHeader header, std::span<SectionEntry> entries, std::span<std::byte> out);

// --- threads ---
// All tasks of all jobs in one loop, so that few large jobs and many small ones fill the threads alike.
template <class F>
void for_each_task(ThreadPool* threads, std::size_t count, F&& body) {
  if (threads == nullptr || threads->size() == 1 || count == 1) {
    for (std::size_t i = 0; i < count; ++i) body(i);
  } else {
    threads->parallel_for(count, std::ref(body));
  }
}

// Tasks of several jobs, numbered through: job j has the numbers [first(j), first(j + 1)).
class TaskMap {
 public:
  explicit TaskMap(std::size_t jobs) { first_.reserve(jobs + 1); }
  void add_job(std::size_t tasks) { first_.push_back(first_.back() + tasks); }
  std::size_t count() const { return first_.back(); }
  std::size_t first(std::size_t job) const { return first_[job]; }
  std::size_t job_of(std::size_t task) const {
    return static_cast<std::size_t>(std::upper_bound(first_.begin(), first_.end(), task) - first_.begin()) - 1;
  }

 private:
  std::vector<std::size_t> first_{0};
};

}  // namespace firn
