// faulty_manager.h: a Manager that passes every call on, and loses blocks when told to.
#pragma once

#include "firn/forwarding.h"

namespace firn::llama {

class FaultyManager final : public ForwardingManager {
 public:
  explicit FaultyManager(Manager& real) : ForwardingManager(real) {}

  // The attend call after `calls` more finds the blocks from `usable` tokens on lost, of every sequence.
  void lose_after(int calls, std::uint32_t usable) {
    countdown_ = calls;
    usable_ = usable;
  }
  int losses() const { return losses_; }

  Result<Fence> attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params, DeviceAddress q,
                       DeviceAddress out) override {
    if (countdown_ >= 0 && countdown_-- == 0) {
      lost_ = true;
      ++losses_;
      return Status(Code::kCorrupt, "a frame did not decode");
    }
    return ForwardingManager::attend(layer, rows, params, q, out);
  }
  std::uint32_t usable_tokens(SeqId seq) const override {
    return lost_ ? std::min(usable_, ForwardingManager::usable_tokens(seq)) : ForwardingManager::usable_tokens(seq);
  }
  Status rewind(SeqId seq, std::uint32_t n) override {
    lost_ = false;
    return ForwardingManager::rewind(seq, n);
  }

 private:
  int countdown_ = -1, losses_ = 0;
  std::uint32_t usable_ = 0;
  bool lost_ = false;
};

}  // namespace firn::llama
