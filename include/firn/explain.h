// explain.h: why a prompt's blocks are reused or not, one by one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "firn/codec.h"
#include "firn/events.h"
#include "firn/stats.h"

namespace firn {

struct BlockVerdict {
  Key key;  // zero for a last block that is not full
  MissReason reason = MissReason::kNone;
  TierSet tiers = 0;                     // of a hit
  Fidelity fidelity = Fidelity::kExact;  // of a hit
  bool shared = false;                   // of a hit: it is in the shared scope
  bool hit() const { return reason == MissReason::kNone; }
};

struct Explanation {
  std::vector<BlockVerdict> blocks;  // every block of the prompt, the last one included
  std::uint32_t first_miss = 0;      // index in blocks: where the prompt and what is here part
  // One line for people: what is reused, where it ends and why, and what would change that.
  std::string text;
};

}  // namespace firn
