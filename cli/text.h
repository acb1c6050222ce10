// text.h: numbers as people read them, and where this program keeps its files.
#pragma once

#include <cstdint>
#include <string>

namespace firn::cli {

std::string human_bytes(std::uint64_t bytes);  // "22.9 GiB": for reading, not for parsing
std::string grouped(std::uint64_t number);     // "1,234,567"

// FIRN_CACHE_DIR, else firn/ in XDG_CACHE_HOME, else in ~/.cache. ./run keeps downloads there.
std::string cache_folder();
// FIRN_SMOLLM2_GGUF, else the demo's model in the cache folder. It may not be there.
std::string demo_model_path();

}  // namespace firn::cli
