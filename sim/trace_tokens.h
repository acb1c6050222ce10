// trace_tokens.h: token ids for a trace that knows only names of blocks: equal names give equal tokens, other names
// others. A trace can be scaled down on the way, so that a small engine can run it: each of its blocks becomes a block
// of fewer tokens, and lengths shrink with it.
#pragma once

#include <algorithm>
#include <vector>

#include "firn/ids.h"
#include "firn/key.h"
#include "sim/name_table.h"
#include "sim/trace.h"

namespace firn::sim {

struct TokenMaker {
  std::uint32_t block_tokens = 512;  // the trace's
  std::uint32_t scaled_tokens = 0;   // what becomes of a block; 0: as it is
  TokenId first = 0;                 // smallest token
  std::uint32_t vocabulary = 1u << 30;

  std::uint32_t scaled() const { return scaled_tokens != 0 ? scaled_tokens : block_tokens; }
  std::uint32_t scale(std::uint32_t tokens) const {
    if (scaled_tokens == 0) return std::max(1u, tokens);
    const std::uint64_t many = std::uint64_t{tokens} * scaled_tokens;
    return std::max(1u, static_cast<std::uint32_t>((many + block_tokens - 1) / block_tokens));
  }
  TokenId token(std::uint64_t name, std::uint32_t at) const {
    return first + static_cast<TokenId>(mix_name(name * 0x1000003 + at) % vocabulary);
  }
  // number: of the request; what has no name belongs to it alone.
  std::vector<TokenId> prompt(const TraceRequest& request, std::uint64_t number) const {
    std::vector<TokenId> tokens(scale(request.input_tokens));
    for (std::uint32_t i = 0; i < tokens.size(); ++i) {
      const std::uint32_t block = i / scaled();
      tokens[i] = block < request.blocks.size() ? token(cache_name(request.blocks[block]), i % scaled())
                                                : token(own_name(number, 1), i);
    }
    return tokens;
  }
  TokenId output(std::uint64_t number, std::uint32_t at) const { return token(own_name(number, 2), at); }
};

}  // namespace firn::sim
