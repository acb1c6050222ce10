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
  ListeningManager(Manager& manager, Listener listener) : ForwardingManager(manager), listener_(std::move(listener)) {}

  Result<Fence> append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k, DeviceAddress v) override {
    listener_(layer, rows, k, v);
    return ForwardingManager::append(layer, rows, k, v);
  }

 private:
  Listener listener_;
};

}  // namespace firn::llama
