// capture.h: a Manager that tells what is appended to it and passes every call on: how calibration sees an engine's
// keys and values without the engine knowing. Any engine that calls append can be listened to like this.
#pragma once

#include <functional>
#include <utility>

#include "firn/forwarding.h"

namespace firn::llama {

class ListeningManager final : public ForwardingManager {
 public:
  using Listener =
      std::function<void(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v)>;
  using QueryListener = std::function<void(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress q)>;
  ListeningManager(Manager& manager, Listener listener, QueryListener queries = {})
      : ForwardingManager(manager), listener_(std::move(listener)), queries_(std::move(queries)) {}

  Result<Fence> append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) override {
    listener_(layer, rows, k, v);
    return ForwardingManager::append(layer, rows, k, v);
  }
  Result<Fence> attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params, DeviceAddress q,
                       DeviceAddress out) override {
    if (queries_) queries_(layer, rows, q);
    return ForwardingManager::attend(layer, rows, params, q, out);
  }

 private:
  Listener listener_;
  QueryListener queries_;
};

}  // namespace firn::llama
