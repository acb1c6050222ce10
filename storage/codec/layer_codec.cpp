#include "storage/codec/layer_codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "storage/codec/codec_calls.h"
#include "storage/codec/frame.h"

namespace firn {
namespace {

// Sections of a layer: keys, then values.
constexpr std::uint32_t kTensors = 2;
constexpr bool is_values(std::uint32_t section) { return section % kTensors == 1; }

// The frame is one of this codec, holds what was asked for, and has nothing that a frame of layers has not.
Status check_frame(const FrameHeader& header, const DecodeJob& job, const Codec& codec) {
  const bool exact = codec.fidelity() == Fidelity::kExact;
  FIRN_TRY(check_identity(header, job, codec));
  FIRN_TRY(check_same("section_count", header.section_count, kTensors * job.shape.layer_count));
  if (!header.artefact.is_zero()) return differs("artefact", "is not zero");
  FIRN_TRY(check_same("flags", header.keys_unrotated ? 1 : 0, 0));
  FIRN_TRY(check_same("position_kind", header.position_kind, 0));
  FIRN_TRY(check_same("stack_count", header.stack_count, 0));
  FIRN_TRY(check_same("rate", header.rate, codec.rate()));
  FIRN_TRY(check_error("key_error", header.key_error, exact));
  return check_error("value_error", header.value_error, exact);
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

// Of keys or values of all layers, in the order of the layers, so that threads change no bit of it.
struct Energies {
  double error = 0, all = 0;
  float relative() const { return all > 0 ? static_cast<float>(std::sqrt(error / all)) : 0.0f; }
};

}  // namespace

std::size_t LayerCodec::bound(const ExtentShape& shape) const {
  const std::uint64_t layer_bytes =
      align_frame(tensor_shape(shape, false).bytes()) + align_frame(tensor_shape(shape, true).bytes());
  return frame_head_bytes(kTensors * shape.layer_count) + shape.layer_count * layer_bytes;
}

std::uint64_t LayerCodec::section_offset(const ExtentShape& shape, std::uint32_t section) {
  const std::uint64_t key_bytes = align_frame(tensor_shape(shape, false).bytes());
  const std::uint64_t value_bytes = align_frame(tensor_shape(shape, true).bytes());
  return frame_head_bytes(kTensors * shape.layer_count) + section / kTensors * (key_bytes + value_bytes) +
         (is_values(section) ? key_bytes : 0);
}

void LayerCodec::encode(std::span<EncodeJob> jobs, ThreadPool* threads) const {
  encode_with(jobs, threads, [this](std::uint32_t, const TensorRows& rows, std::span<std::byte> out) {
    return encode_section(rows, out);
  });
}

void LayerCodec::encode_with(std::span<EncodeJob> jobs, ThreadPool* threads, const Coder& code) const {
  TaskMap tasks(jobs.size());
  for (EncodeJob& job : jobs) {
    job.bytes = 0;
    job.status = check_shape(job.shape);
    if (job.status.ok()) job.status = check_encode(job, *this, bound(job.shape));
    tasks.add_job(job.status.ok() ? kTensors * job.shape.layer_count : 0);
  }
  std::vector<SectionEntry> entries(tasks.count());
  std::vector<Energies> energies(tasks.count());
  for_each_task(threads, tasks.count(), [&](std::size_t task) {
    const std::size_t j = tasks.job_of(task);
    const EncodeJob& job = jobs[j];
    const auto section = static_cast<std::uint32_t>(task - tasks.first(j));
    const std::uint32_t layer = section / kTensors;
    const TensorRows rows{.shape = tensor_shape(job.shape, is_values(section)),
                          .views = job.views.subspan(std::size_t{layer} * job.shape.block_count, job.shape.block_count),
                          .values = is_values(section)};
    SectionEntry entry = expected_entry(job.shape, section);
    entry.offset = section_offset(job.shape, section);
    const std::span<std::byte> place = job.out.subspan(entry.offset, align_frame(entry.raw_bytes));
    const Encoded encoded = code(section, rows, place.first(entry.raw_bytes));
    const std::span<std::byte> padded = place.first(align_frame(encoded.bytes));
    std::fill(padded.begin() + static_cast<std::ptrdiff_t>(encoded.bytes), padded.end(), std::byte{0});
    entry.coding = encoded.coding;
    entry.encoded_bytes = encoded.bytes;
    entry.checksum =
        section_checksum(frame_key(job.label, job.shape.block_count, id(), version(), {}, rate()), section, padded);
    entries[task] = entry;
    energies[task] = {encoded.error_energy, encoded.energy};
  });
  for_each_task(threads, jobs.size(), [&](std::size_t j) {
    EncodeJob& job = jobs[j];
    if (!job.status.ok()) return;
    Energies tensors[kTensors];
    for (std::size_t task = tasks.first(j); task < tasks.first(j + 1); ++task) {
      Energies& sum = tensors[(task - tasks.first(j)) % kTensors];
      sum.error += energies[task].error;
      sum.all += energies[task].all;
    }
    FrameHeader header;
    header.label = job.label;
    header.codec = id();
    header.codec_version = version();
    header.rate = rate();
    header.shape = job.shape;
    header.raw_bytes = job.shape.raw_bytes();
    header.key_error = job.key_error = tensors[0].relative();
    header.value_error = job.value_error = tensors[1].relative();
    const std::size_t sections = tasks.first(j + 1) - tasks.first(j);
    job.bytes = finish_frame(header, std::span(entries).subspan(tasks.first(j), sections), job.out);
  });
}

void LayerCodec::decode(std::span<DecodeJob> jobs, ThreadPool* threads) const {
  decode_with(jobs, threads,
              [this](std::uint32_t, std::uint8_t coding, std::span<const std::byte> payload, const TensorRows& rows) {
                return decode_section(coding, payload, rows);
              });
}

void LayerCodec::decode_with(std::span<DecodeJob> jobs, ThreadPool* threads, const Reader& read) const {
  TaskMap tasks(jobs.size());
  std::vector<std::optional<FrameView>> frames(jobs.size());
  const auto open = [&](DecodeJob& job, std::optional<FrameView>& out) -> Status {
    FIRN_TRY(check_decode(job));
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
      status = read(section, entry.coding, payload, rows);
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
