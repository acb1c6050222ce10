// calibration.h: the example engine's keys and values of text, as calibration wants them. `firn calibrate` and the
// demo's first use of kvtc share it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/session.h"
#include "storage/calibration/kv_dump.h"

namespace firn::cli {

// Hears each window's keys and values, [layer][token][width].
using OnWindow =
    std::function<Status(const KvWindow& window, const std::vector<float>& keys, const std::vector<float>& values)>;
// Runs the engine over the windows, each of window_tokens tokens.
Status capture(const LoadedModel& model, const std::vector<std::vector<TokenId>>& windows, std::uint32_t window_tokens,
               std::uint32_t threads, const OnWindow& on_window);

// Every fifth window takes no part in the basis.
constexpr bool is_held_out(std::size_t window) { return window % 5 == 4; }

// In an order that has nothing to do with the files they are from, the same every time: those that are held out are
// then of all kinds of text there are.
void shuffle_windows(std::vector<std::vector<TokenId>>& windows);

}  // namespace firn::cli
