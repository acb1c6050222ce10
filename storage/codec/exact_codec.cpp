#include "storage/codec/exact_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "firn/thread_pool.h"
#include "storage/codec/frame.h"

namespace firn {
namespace {

static_assert(std::endian::native == std::endian::little, "elements go into frames as they lie in memory");

// Sections of a layer: keys, then values.
constexpr std::uint32_t kTensors = 2;
constexpr bool is_values(std::uint32_t section) { return section % kTensors == 1; }

TensorShape tensor_shape(const ExtentShape& shape, bool values) {
  return {.heads = shape.kv.kv_heads,
          .dim = values ? shape.kv.value_dim : shape.kv.head_dim,
          .element_bytes = bytes_of(shape.kv.dtype),
          .token_count = shape.block_count * kBlockTokens};
}

Status invalid(std::string_view field, std::string_view what) {
  return Status(Code::kInvalidArgument, fmt::format("codec: {} {}", field, what));
}

Status check_range(std::string_view field, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  if (value >= least && value <= most) return {};
  return invalid(field, fmt::format("is {}; it must be {} to {}", value, least, most));
}

Status check_shape(const ExtentShape& shape) {
  FIRN_TRY(check_range("dtype", static_cast<unsigned>(shape.kv.dtype), 1, 3));
  FIRN_TRY(check_range("kv_heads", shape.kv.kv_heads, 1, kMaxKvHeads));
  FIRN_TRY(check_range("head_dim", shape.kv.head_dim, 1, kMaxHeadDim));
  FIRN_TRY(check_range("value_dim", shape.kv.value_dim, 0, kMaxHeadDim));
  FIRN_TRY(check_range("layer_count", shape.layer_count, 1, kMaxLayers));
  return check_range("block_count", shape.block_count, 1, kMaxExtentBlocks);
}

// may_skip: a view without keys means that its block is not wanted.
Status check_views(const ExtentShape& shape, std::span<const BlockView> views, std::uint32_t layers, bool may_skip) {
  const std::size_t expected = std::size_t{layers} * shape.block_count;
  FIRN_TRY(check_range("number of views", views.size(), expected, expected));
  for (std::size_t i = 0; i < views.size(); ++i) {
    if (views[i].k == 0 && may_skip) continue;
    if (views[i].k == 0 || (views[i].v == 0 && shape.kv.value_dim != 0))
      return invalid(fmt::format("view {}", i), "has no address");
  }
  return {};
}

Status check_encode(const EncodeJob& job, std::size_t bound) {
  FIRN_TRY(check_views(job.shape, job.views, job.shape.layer_count, false));
  FIRN_TRY(check_range("fidelity", static_cast<unsigned>(job.label.fidelity), 1, 3));
  return check_range("bytes of out", job.out.size(), bound, ~std::uint64_t{0});
}

Status differs(std::string_view field, std::string_view what) {
  return Status(Code::kCorrupt, fmt::format("frame: {} {}", field, what));
}

Status check_same(std::string_view field, std::uint64_t value, std::uint64_t expected) {
  if (value == expected) return {};
  return differs(field, fmt::format("is {}, not {}", value, expected));
}

// The frame is one of this codec, holds what was asked for, and has nothing that an exact frame has not.
Status check_frame(const FrameHeader& header, const DecodeJob& job, const Codec& codec) {
  const auto number = [](auto id) { return static_cast<std::uint64_t>(id); };
  FIRN_TRY(check_same("codec", number(header.codec), number(codec.id())));
  FIRN_TRY(check_same("codec_version", header.codec_version, codec.version()));
  if (header.label.last_key != job.label.last_key)
    return differs("last_key", "is " + to_hex(header.label.last_key) + ", not " + to_hex(job.label.last_key));
  FIRN_TRY(check_same("group", index(header.label.group), index(job.label.group)));
  FIRN_TRY(check_same("first_position", header.label.first_position, job.label.first_position));
  FIRN_TRY(check_same("fidelity", number(header.label.fidelity), number(job.label.fidelity)));
  FIRN_TRY(check_same("dtype", number(header.shape.kv.dtype), number(job.shape.kv.dtype)));
  FIRN_TRY(check_same("kv_heads", header.shape.kv.kv_heads, job.shape.kv.kv_heads));
  FIRN_TRY(check_same("head_dim", header.shape.kv.head_dim, job.shape.kv.head_dim));
  FIRN_TRY(check_same("value_dim", header.shape.kv.value_dim, job.shape.kv.value_dim));
  FIRN_TRY(check_same("layer_count", header.shape.layer_count, job.shape.layer_count));
  FIRN_TRY(check_same("block_count", header.shape.block_count, job.shape.block_count));
  FIRN_TRY(check_same("section_count", header.section_count, kTensors * job.shape.layer_count));
  if (!header.artefact.is_zero()) return differs("artefact", "is not zero");
  FIRN_TRY(check_same("flags", header.keys_unrotated ? 1 : 0, 0));
  FIRN_TRY(check_same("position_kind", header.position_kind, 0));
  FIRN_TRY(check_same("stack_count", header.stack_count, 0));
  FIRN_TRY(check_same("rate", header.rate, 0));
  if (header.key_error != 0) return differs("key_error", "is not zero");
  if (header.value_error != 0) return differs("value_error", "is not zero");
  return {};
}

SectionEntry expected_entry(const ExtentShape& shape, std::uint32_t section) {
  const bool values = is_values(section);
  return {.index = static_cast<std::uint16_t>(section / kTensors),
          .kind = values ? SectionKind::kLayerValues : SectionKind::kLayerKeys,
          .raw_bytes = tensor_shape(shape, values).bytes()};
}

Status check_entry(const SectionEntry& entry, const SectionEntry& expected) {
  FIRN_TRY(check_same("index", entry.index, expected.index));
  FIRN_TRY(check_same("kind", static_cast<unsigned>(entry.kind), static_cast<unsigned>(expected.kind)));
  FIRN_TRY(check_same("parameter", entry.parameter, 0));
  FIRN_TRY(check_same("raw_bytes", entry.raw_bytes, expected.raw_bytes));
  if (entry.encoded_bytes > expected.raw_bytes)  // coding 0 would have been smaller
    return differs("encoded_bytes", fmt::format("is {}, more than raw_bytes", entry.encoded_bytes));
  return {};
}

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

// Sections were coded where they would be if nothing shrank; now they move up to where the page wants them.
void finish_frame(EncodeJob& job, std::span<SectionEntry> entries, const Codec& codec) {
  std::uint64_t at = frame_head_bytes(static_cast<std::uint32_t>(entries.size()));
  for (SectionEntry& entry : entries) {
    if (entry.offset != at)
      std::memmove(job.out.data() + at, job.out.data() + entry.offset, align_frame(entry.encoded_bytes));
    entry.offset = at;
    at += align_frame(entry.encoded_bytes);
  }
  FrameHeader header;
  header.label = job.label;
  header.codec = codec.id();
  header.codec_version = codec.version();
  header.shape = job.shape;
  header.total_bytes = at;
  header.raw_bytes = job.shape.raw_bytes();
  write_frame_head(header, entries, job.out);
  job.bytes = at;
}

}  // namespace

std::size_t ExactCodec::bound(const ExtentShape& shape) const {
  const std::uint64_t layer_bytes =
      align_frame(tensor_shape(shape, false).bytes()) + align_frame(tensor_shape(shape, true).bytes());
  return frame_head_bytes(kTensors * shape.layer_count) + shape.layer_count * layer_bytes;
}

void ExactCodec::encode(std::span<EncodeJob> jobs, ThreadPool* threads) const {
  TaskMap tasks(jobs.size());
  for (EncodeJob& job : jobs) {
    job.bytes = 0;
    job.status = check_shape(job.shape);
    if (job.status.ok()) job.status = check_encode(job, bound(job.shape));
    tasks.add_job(job.status.ok() ? kTensors * job.shape.layer_count : 0);
  }
  std::vector<SectionEntry> entries(tasks.count());
  for_each_task(threads, tasks.count(), [&](std::size_t task) {
    const std::size_t j = tasks.job_of(task);
    const EncodeJob& job = jobs[j];
    const auto section = static_cast<std::uint32_t>(task - tasks.first(j));
    const std::uint32_t layer = section / kTensors;
    const TensorRows rows{.shape = tensor_shape(job.shape, is_values(section)),
                          .views = job.views.subspan(std::size_t{layer} * job.shape.block_count, job.shape.block_count),
                          .values = is_values(section)};
    const std::uint64_t key_bytes = align_frame(tensor_shape(job.shape, false).bytes());
    const std::uint64_t value_bytes = align_frame(tensor_shape(job.shape, true).bytes());
    SectionEntry entry = expected_entry(job.shape, section);
    entry.offset = frame_head_bytes(kTensors * job.shape.layer_count) + layer * (key_bytes + value_bytes) +
                   (rows.values ? key_bytes : 0);
    const std::span<std::byte> place = job.out.subspan(entry.offset, align_frame(entry.raw_bytes));
    const Encoded encoded = encode_section(rows, place.first(entry.raw_bytes));
    const std::span<std::byte> padded = place.first(align_frame(encoded.bytes));
    std::fill(padded.begin() + static_cast<std::ptrdiff_t>(encoded.bytes), padded.end(), std::byte{0});
    entry.coding = encoded.coding;
    entry.encoded_bytes = encoded.bytes;
    entry.checksum = section_checksum(frame_key(job.label, job.shape.block_count, id(), version()), section, padded);
    entries[task] = entry;
  });
  for_each_task(threads, jobs.size(), [&](std::size_t j) {
    if (!jobs[j].status.ok()) return;
    const std::size_t sections = tasks.first(j + 1) - tasks.first(j);
    finish_frame(jobs[j], std::span(entries).subspan(tasks.first(j), sections), *this);
  });
}

void ExactCodec::decode(std::span<DecodeJob> jobs, ThreadPool* threads) const {
  TaskMap tasks(jobs.size());
  std::vector<std::optional<FrameView>> frames(jobs.size());
  const auto open = [&](DecodeJob& job, std::optional<FrameView>& out) -> Status {
    FIRN_TRY(check_shape(job.shape));
    FIRN_TRY(check_range("layer", job.layer, 0, job.shape.layer_count));
    FIRN_TRY(check_range("layer_count of the job", job.layer_count, 0, job.shape.layer_count - job.layer));
    FIRN_TRY(check_views(job.shape, job.views, job.layer_count, true));
    FIRN_ASSIGN(out, FrameView::open(job.frame));
    return check_frame(out->header(), job, *this);
  };
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    jobs[j].status = open(jobs[j], frames[j]);
    tasks.add_job(jobs[j].status.ok() ? kTensors * jobs[j].layer_count : 0);
  }
  const auto decode_task = [&](std::size_t task) -> Status {
    const std::size_t j = tasks.job_of(task);
    const DecodeJob& job = jobs[j];
    const auto local = static_cast<std::uint32_t>(task - tasks.first(j));
    const TensorRows rows{
        .shape = tensor_shape(job.shape, is_values(local)),
        .views = job.views.subspan(std::size_t{local / kTensors} * job.shape.block_count, job.shape.block_count),
        .values = is_values(local)};
    if (std::all_of(rows.views.begin(), rows.views.end(), [](const BlockView& view) { return view.k == 0; })) return {};
    const std::uint32_t section = job.layer * kTensors + local;
    const SectionEntry entry = frames[j]->section(section);
    Status status = check_entry(entry, expected_entry(job.shape, section));
    if (status.ok()) {
      FIRN_ASSIGN(const std::span<const std::byte> payload, frames[j]->payload(section));
      status = decode_section(entry.coding, payload, rows);
    }
    return status.ok() ? status : status.with_context(fmt::format("section {}", section));
  };
  std::vector<Status> results(tasks.count());
  for_each_task(threads, tasks.count(), [&](std::size_t task) { results[task] = decode_task(task); });
  for (std::size_t task = 0; task < results.size(); ++task) {
    Status& status =
        jobs[tasks.job_of(task)].status;  // the first failure in frame order, whichever thread met it first
    if (status.ok() && !results[task].ok()) status = std::move(results[task]);
  }
}

}  // namespace firn
