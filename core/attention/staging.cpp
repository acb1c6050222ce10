#include "core/attention/staging.h"

#include "core/base/no_throw.h"

namespace firn {

Status Staging::decode(Timeline& timeline, const PageSet& set, std::uint32_t layer, std::vector<StagedFrame>& frames,
                       ThreadPool* threads) {
  if (frames.empty()) return {};
  FIRN_TRY(timeline.wait(read_));
  for (StagedFrame& frame : frames)
    for (BlockView& view : frame.views)
      if (view.k != 0) view = on_host(view);
  std::vector<DecodeJob> jobs;
  jobs.reserve(frames.size());
  for (const StagedFrame& frame : frames)
    jobs.push_back({.frame = frame.pin.bytes(),
                    .shape = extent_shape(set, frame.block_count),
                    .label = frame.label,
                    .layer = layer,
                    .layer_count = 1,
                    .views = std::span(frame.views).first(frame.block_count),
                    .status = {}});
  // Jobs of one codec together, in their order.
  for (std::size_t first = 0; first < jobs.size();) {
    std::size_t end = first + 1;
    while (end < jobs.size() && frames[end].codec == frames[first].codec) ++end;
    const std::span<DecodeJob> some = std::span(jobs).subspan(first, end - first);
    const Status status = no_throw([&] {
      frames[first].codec->decode(some, threads);
      return Status();
    });
    for (std::size_t i = first; i < end; ++i) frames[i].status = status.ok() ? jobs[i].status : status;
    first = end;
  }
  return {};
}

}  // namespace firn
