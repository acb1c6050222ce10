// codec_name.h: what a codec is called with all that sets its quality: lossless, q8, q8/q4 (keys/values), q4-plain (no
// Hadamard transform; -keys, -values: of these alone), kvtc@16, firn@24. The one grammar of evaluation, of measured
// figures and of whoever looks them up.
#pragma once

#include <string>
#include <string_view>

#include "firn/config.h"

namespace firn {

std::string codec_name(const Config::Host& host);
// Sets codec, value_codec, hadamard and ratio; nothing else is looked at. kInvalidArgument says what is no name.
Status set_codec(std::string_view name, Config::Host& host);

}  // namespace firn
