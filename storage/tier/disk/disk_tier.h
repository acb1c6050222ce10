// disk_tier.h: frames in a directory. DiskTier::create is this over the machine's own files and clock.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "firn/disk_tier.h"
#include "storage/tier/disk/file_ops.h"

namespace firn::disk {

// files outlives the tier. now_ns: for deadlines and days; the steady clock.
Result<std::unique_ptr<DiskTier>> make_disk_tier(const DiskTierOptions& options, Ledger& ledger, FileOps& files,
                                                 std::function<std::int64_t()> now_ns);

}  // namespace firn::disk
