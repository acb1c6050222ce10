// naive_llama.h: what the engine must compute, written for reading only: doubles, one token after the other, dense
// attention over everything. It shares the file reader and the number formats with the engine, and nothing else.
#pragma once

#include <span>
#include <vector>

#include "examples/llama/gguf.h"
#include "firn/key.h"

namespace firn::llama {

// The logits after the last token. Keys and values are rounded to f16, as the cache keeps them.
std::vector<double> naive_logits(const Gguf& file, std::span<const TokenId> tokens);

}  // namespace firn::llama
