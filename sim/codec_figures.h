// codec_figures.h: what a codec was measured to do, out of the files that the measuring commands write.
#pragma once

#include <string>

#include "firn/status.h"

namespace firn::sim {

struct CodecFigures {
  double ratio = 1;        // raw bytes by frame bytes
  double bytes_per_s = 0;  // of raw bytes, decoded by one core
};
// codec: a name as host.codec has it, kvtc with its ratio: kvtc@16. The file: `firn eval --json` or the JSON of `./run
// bench`. kInvalidArgument says which codecs the file has.
Result<CodecFigures> load_codec_figures(const std::string& file, const std::string& codec);

}  // namespace firn::sim
