// extent_coder.h: blocks in somebody's memory to frames and back. Cuts nothing and keeps nothing: it is told which
// blocks make an extent and where the frame is.
// Threads: any; immutable. Memory: a call allocates views and results, bounded by call_bytes().
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "firn/cold_cache.h"
#include "storage/codec/codec_table.h"

namespace firn::cold {

class ExtentCoder {
 public:
  struct Encode {
    std::uint32_t first = 0, count = 0;  // blocks of the run
    std::span<std::byte> room;           // bound() bytes
    // Results:
    Status status;
    FrameLabel label;
    FrameKey key;
    std::size_t bytes = 0;
    bool guarded = false;  // the lossy codec would have changed it more than it was measured to
  };
  struct Decode {
    std::span<const std::byte> frame;
    FrameLabel label;
    std::uint32_t block_count = 0;
    std::array<std::int64_t, kMaxExtentBlocks> target{};  // by place: block of the run, or -1: not wanted
    Status status;                                        // result
  };

  ExtentCoder(CodecTable codecs, std::vector<GroupSpec> groups, ColdNames names, std::vector<Region> regions,
              ThreadPool* threads)
      : codecs_(std::move(codecs)),
        groups_(std::move(groups)),
        names_(names),
        regions_(std::move(regions)),
        threads_(threads) {}

  const std::vector<GroupSpec>& groups() const { return groups_; }
  const CodecTable& codecs() const { return codecs_; }
  ExtentShape shape(GroupId group, std::uint32_t count) const;
  std::size_t bound(GroupId group, std::uint32_t count) const { return codecs_.bound(shape(group, count)); }
  // The frame that this extent would become, coded as usual.
  FrameLabel label(const Codec& codec, GroupId group, std::uint64_t position, std::span<const Key> keys,
                   Fidelity fidelity) const;
  FrameKey key(const Codec& codec, const FrameLabel& label, std::uint32_t count) const;
  // Every view lies in a region that the host reaches; kInvalidArgument names the first that does not.
  Status check_views(const ColdRun& run, std::size_t blocks) const;

  // Each result tells how it ended. The largest extents of all groups, coded as many at a time: charged by the caller.
  void encode(const ColdRun& run, std::span<Encode> extents) const;
  void decode(const ColdRun& run, std::span<Decode> extents) const;
  std::uint64_t call_bytes(std::uint32_t extents) const;

 private:
  BlockView host_view(const ColdRun& run, std::size_t layer, std::size_t block) const;

  CodecTable codecs_;
  std::vector<GroupSpec> groups_;
  ColdNames names_;
  std::vector<Region> regions_;
  ThreadPool* threads_;
};

}  // namespace firn::cold
