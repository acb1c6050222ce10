// text.h: numbers as people read them, and where this program keeps its files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "firn/status.h"

namespace firn::cli {

std::string human_bytes(std::uint64_t bytes);  // "22.9 GiB": for reading, not for parsing
std::string grouped(std::uint64_t number);     // "1,234,567"

// Breaks lines between words, so that none is longer than a screen of 80 columns is wide. Lines after the first of a
// paragraph begin with `indent`.
std::string wrapped(const std::string& text, const std::string& indent = "");

// FIRN_CACHE_DIR, else firn/ in XDG_CACHE_HOME, else in ~/.cache. ./run keeps downloads there.
std::string cache_folder();
// FIRN_SMOLLM2_GGUF, else the demo's model in the cache folder. It may not be there.
std::string demo_model_path();

// Where what is shipped with the program lies, in the order to look: FIRN_DATA_DIR alone where it is set; else
// ../share/firn beside the program, then where it was built to be installed.
std::vector<std::string> data_folders();
// The file of that name: as it is where it is there (or is nowhere); else the shipped one, which may be named without
// folder and ending: consumer-24gb, configs/consumer-24gb.yaml. kind: configs or traces.
std::string find_shipped(const std::string& name, const std::string& kind);

// A file, a pipe, or stdin as "-", read to its end. kInvalidArgument: it cannot be read, or has more than most bytes.
Result<std::string> read_whole(const std::string& path, std::size_t most);

}  // namespace firn::cli
