// identity_bytes.h: the canonical bytes of a ModelSpec that model_identity digests (docs/keys.md, section 2). Private:
// tests compare them with the page, so that a wrong digest shows which byte is wrong.
#pragma once

#include <cstdint>
#include <vector>

#include "firn/model.h"

namespace firn {
std::vector<std::uint8_t> identity_bytes(const ModelSpec& model);
}
