// host_tier.h: frames in host memory. HostTier::create is this over the machine's own topology.
#pragma once

#include <memory>

#include "firn/tier.h"
#include "storage/tier/topology.h"

namespace firn {

// topology outlives the tier.
Result<std::unique_ptr<HostTier>> make_host_tier(const HostTierOptions& options, Ledger& ledger, Topology& topology);

}  // namespace firn
