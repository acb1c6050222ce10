// host_codec.h: host.codec, host.value_codec and host.hadamard as q8 and q4 understand them.
#pragma once

#include "firn/codec.h"
#include "firn/config.h"

namespace firn {

// host.codec must be q8 or q4, and the configuration a valid one.
inline IntegerCoding integer_coding(const Config::Host& host) {
  const auto bits = [](const std::string& codec) { return codec == "q8" ? 8u : 4u; };
  return {.key_bits = bits(host.codec),
          .value_bits = bits(host.value_codec == "same" ? host.codec : host.value_codec),
          .mix_keys = host.hadamard == "both" || host.hadamard == "keys",
          .mix_values = host.hadamard == "both" || host.hadamard == "values"};
}

}  // namespace firn
