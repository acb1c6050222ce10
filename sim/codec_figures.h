// codec_figures.h: what a codec was measured to do: out of the table that is shipped (configs/codecs), or out of the
// files that the measuring commands write.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "firn/status.h"

namespace firn::sim {

struct CodecFigures {
  double ratio = 1;        // raw bytes by frame bytes
  double bytes_per_s = 0;  // of raw bytes, decoded by one core
  std::string name = {};
  double encode_bytes_per_s = 0;  // 0: not measured
  // Against the exact run: mean and p99 of the divergence, and how often the likeliest token is the same. None: not
  // measured.
  std::optional<double> kld = {}, kld_p99 = {}, top1 = {};
  std::string text = {};  // measured on, where that is not what the table says of all
};
// codec: its name (core/config/codec_name.h), such as kvtc@16. The file: `firn eval --json` or the JSON of `./run
// bench`. kInvalidArgument says which codecs the file has.
Result<CodecFigures> load_codec_figures(const std::string& file, const std::string& codec);

struct CodecTable {
  std::string source;  // the file
  std::string model, text, commit;
  std::vector<CodecFigures> codecs;
  // By its name, as core/config/codec_name.h makes it. Keys and values apart (q8/q4): of both together. With less of
  // the Hadamard transform (q4-plain): of the same codec, its quality unknown. kInvalidArgument says which there are.
  Result<CodecFigures> find(const std::string& codec) const;
  std::string origin() const;  // in a few words: of which model, at which commit, from which file
};
// kInvalidArgument names line and key. source stands for the file in messages.
Result<CodecTable> parse_codec_table(const std::string& text, const std::string& source);

}  // namespace firn::sim
