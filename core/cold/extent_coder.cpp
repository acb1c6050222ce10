#include "core/cold/extent_coder.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/check.h"
#include "core/cold/names.h"

namespace firn::cold {
namespace {

// Bytes from a view's first element to behind its last.
std::uint64_t reach(std::uint64_t token_stride, std::uint64_t head_stride, std::uint64_t heads, std::uint64_t row) {
  return (kBlockTokens - 1) * token_stride + (heads - 1) * head_stride + row;
}

// The host's address of so many bytes; 0: they lie in no region, or in one that it does not reach.
DeviceAddress translate(std::span<const Region> regions, DeviceAddress address, std::uint64_t bytes) {
  for (const Region& region : regions)
    if (region.host != nullptr && address >= region.address && address - region.address <= region.bytes &&
        bytes <= region.bytes - (address - region.address))
      return reinterpret_cast<DeviceAddress>(region.host) + (address - region.address);
  return 0;
}

}  // namespace

ExtentShape ExtentCoder::shape(GroupId group, std::uint32_t count) const {
  const GroupSpec& spec = groups_[index(group)];
  return {.kv = spec.kv, .layer_count = spec.layer_count, .block_count = count};
}

FrameLabel ExtentCoder::label(const Codec& codec, GroupId group, std::uint64_t position, std::span<const Key> keys,
                              Fidelity fidelity) const {
  return {.last_key = extent_key(names_, keys),
          .group = group,
          .first_position = position,
          .fidelity = std::max(fidelity, codec.fidelity())};
}

FrameKey ExtentCoder::key(const Codec& codec, const FrameLabel& label, std::uint32_t count) const {
  return frame_key(label, count, codec.id(), codec.version(), codec.artefact(), codec.rate());
}

Status ExtentCoder::check_views(const ColdRun& run, std::size_t blocks) const {
  const GroupSpec& group = groups_[index(run.group)];
  const KvShape& kv = group.kv;
  const std::uint64_t k_row = std::uint64_t{kv.head_dim} * bytes_of(kv.dtype),
                      v_row = std::uint64_t{kv.value_dim} * bytes_of(kv.dtype);
  for (std::size_t i = 0; i < run.views.size(); ++i) {
    const BlockView& view = run.views[i];
    const auto refuse = [&](std::string_view tensor, std::string_view what) {
      return Status(Code::kInvalidArgument,
                    fmt::format("view of layer {}, block {}: {} {}", i / blocks, i % blocks, tensor, what));
    };
    if (view.k == 0) return refuse("K", "has no address");
    if (view.v == 0 && kv.value_dim != 0) return refuse("V", "has no address");
    if (!run.device_addresses) continue;
    constexpr std::string_view kUnreachable = "lies in no region of the device that the host reaches";
    if (translate(regions_, view.k, reach(view.token_stride, view.head_stride, kv.kv_heads, k_row)) == 0)
      return refuse("K", kUnreachable);
    if (kv.value_dim != 0 &&
        translate(regions_, view.v, reach(view.v_token_stride, view.v_head_stride, kv.kv_heads, v_row)) == 0)
      return refuse("V", kUnreachable);
  }
  return {};
}

// check_views() has said yes.
BlockView ExtentCoder::host_view(const ColdRun& run, std::size_t layer, std::size_t block) const {
  BlockView view = run.views[layer * run.keys.size() + block];
  if (!run.device_addresses) return view;
  view.k = translate(regions_, view.k, 1);
  if (view.v != 0) view.v = translate(regions_, view.v, 1);
  return view;
}

void ExtentCoder::encode(const ColdRun& run, std::span<Encode> extents) const {
  const std::size_t layers = groups_[index(run.group)].layer_count;
  const Codec& codec = run.exact ? codecs_.exact() : codecs_.usual();
  std::size_t view_count = 0;
  for (const Encode& extent : extents) view_count += layers * extent.count;
  std::vector<BlockView> views;
  views.reserve(view_count);
  std::vector<EncodeJob> jobs;
  jobs.reserve(extents.size());
  for (const Encode& extent : extents) {
    const std::size_t from = views.size();
    for (std::size_t layer = 0; layer < layers; ++layer)
      for (std::size_t i = 0; i < extent.count; ++i) views.push_back(host_view(run, layer, extent.first + i));
    EncodeJob job;
    job.shape = shape(run.group, extent.count);
    job.label = label(codec, run.group, run.first_position + std::uint64_t{extent.first} * kBlockTokens,
                      run.keys.subspan(extent.first, extent.count), run.fidelity);
    job.views = std::span(views).subspan(from);
    job.out = extent.room;
    jobs.push_back(std::move(job));
  }
  codec.encode(jobs, threads_);
  const ErrorBound most = codec.error_bound();
  for (std::size_t i = 0; i < extents.size(); ++i) {
    Encode& extent = extents[i];
    EncodeJob& job = jobs[i];
    const Codec* by = &codec;
    extent.guarded = codec.fidelity() != Fidelity::kExact &&
                     (!job.status.ok() || !(job.key_error <= most.keys) || !(job.value_error <= most.values));
    if (extent.guarded) {
      by = &codecs_.exact();
      job.label.fidelity = run.fidelity;
      by->encode({&job, 1}, threads_);
    }
    extent.status = job.status;
    extent.label = job.label;
    extent.bytes = job.bytes;
    if (job.status.ok()) extent.key = key(*by, job.label, extent.count);
  }
}

void ExtentCoder::decode(const ColdRun& run, std::span<Decode> extents) const {
  const std::size_t layers = groups_[index(run.group)].layer_count;
  std::size_t view_count = 0;
  for (const Decode& extent : extents) view_count += layers * extent.block_count;
  std::vector<BlockView> views;
  views.reserve(view_count);
  std::vector<DecodeJob> jobs(extents.size());
  std::vector<const Codec*> by(extents.size(), nullptr);
  for (std::size_t e = 0; e < extents.size(); ++e) {
    Decode& extent = extents[e];
    const std::size_t from = views.size();
    for (std::size_t layer = 0; layer < layers; ++layer)
      for (std::uint32_t place = 0; place < extent.block_count; ++place)
        views.push_back(extent.target[place] < 0
                            ? BlockView{}
                            : host_view(run, layer, static_cast<std::size_t>(extent.target[place])));
    jobs[e] = {.frame = extent.frame,
               .shape = shape(run.group, extent.block_count),
               .label = extent.label,
               .layer = 0,
               .layer_count = static_cast<std::uint32_t>(layers),
               .views = std::span(views).subspan(from),
               .status = {}};
    const Result<const Codec*> codec = codecs_.of_frame(extent.frame);
    if (codec.ok())
      by[e] = *codec;
    else
      extent.status = codec.status();
  }
  // Runs of one codec together: usually all of them.
  for (std::size_t e = 0; e < extents.size();) {
    std::size_t end = e + 1;
    while (end < extents.size() && by[end] == by[e]) ++end;
    if (by[e] != nullptr) {
      by[e]->decode(std::span(jobs).subspan(e, end - e), threads_);
      for (std::size_t i = e; i < end; ++i) extents[i].status = jobs[i].status;
    }
    e = end;
  }
}

std::uint64_t ExtentCoder::call_bytes(std::uint32_t extents) const {
  // Views, and what a codec keeps of each section while a batch is coded: entry, energies, status.
  constexpr std::uint64_t kSectionBytes = 128, kExtentBytes = sizeof(EncodeJob) + sizeof(Encode) + 256;
  std::uint64_t layers = 0;
  for (const GroupSpec& group : groups_) layers = std::max<std::uint64_t>(layers, group.layer_count);
  return extents * (layers * (kMaxExtentBlocks * sizeof(BlockView) + 2 * kSectionBytes) + kExtentBytes);
}

}  // namespace firn::cold
