// probe_job.cpp: answers for names of which nothing can be said yet. It waits for stores under way that bring them,
// then asks the tiers below for frames that the cache does not know, which another process, or an earlier one, may have
// put there. A frame can only be asked for by its whole name, so the extents asked for are those that store() would cut
// of the same run.
#include <algorithm>
#include <mutex>

#include "core/cold/names.h"
#include "core/cold/ticket_job.h"

namespace firn::cold {
namespace {

class ProbeJob final : public TicketJob {
 public:
  ProbeJob(Rooms& rooms, Ticket ticket, const ColdQuery& query)
      : TicketJob(rooms, ticket, query.keys.size()), query_(query), answers_(std::make_shared<Answers>()) {}

  bool ready() override {
    if (!asked_) return arrived();
    look_after(rooms_);
    std::lock_guard lock(answers_->mutex);
    return answers_->left == 0;
  }

  bool step() override {
    if (!asked_) {
      ask();
      asked_ = true;
      tend(rooms_);
      return false;
    }
    answer();
    return end();
  }

 private:
  struct Probe {
    FrameStore::NewFrame frame;
    std::optional<Level> level;
  };
  // Told by whoever polls, perhaps after the job has ended.
  struct Answers {
    std::mutex mutex;
    std::vector<Probe> probes;
    std::vector<bool> failed;
    std::size_t left = 0;
  };

  // No store under way brings any of the names.
  bool arrived() {
    const Lock lock = rooms_.frames.lock();
    for (; arrived_ < query_.keys.size(); ++arrived_) {
      const Key& key = query_.keys[arrived_];
      if (rooms_.frames.pending(lock, query_.kind, key, rooms_.frames.look(lock, query_.kind, key, query_.least)))
        return false;
    }
    return true;
  }

  bool unknown(const Lock& lock, const Key& key) const {
    const ColdFound found = rooms_.frames.look(lock, query_.kind, key, query_.least);
    return found.answer == ColdAnswer::kMiss && found.miss != ColdMiss::kErased &&
           found.miss != ColdMiss::kLoadFailed && found.miss != ColdMiss::kFidelity && found.miss != ColdMiss::kUnbound;
  }

  void ask() {
    std::vector<Probe>& probes = answers_->probes;
    if (rooms_.frames.probes()) {
      const Lock lock = rooms_.frames.lock();
      const auto count = static_cast<std::uint32_t>(query_.keys.size());
      for (std::uint32_t i = 0, end = 0; i < count; i = end) {
        end = i + 1;
        if (query_.kind == ColdKind::kBlock)
          while (end < count && (query_.first_position / kBlockTokens + end) % kMaxExtentBlocks != 0) ++end;
        const std::span<const Key> keys = query_.keys.subspan(i, end - i);
        if (!std::all_of(keys.begin(), keys.end(), [&](const Key& key) { return unknown(lock, key); })) continue;
        probes.push_back({facts(i, keys), std::nullopt});
      }
    }
    answers_->failed.resize(probes.size());
    answers_->left = probes.size();
    for (std::size_t i = 0, count = probes.size(); i < count; ++i)
      rooms_.frames.probe(probes[i].frame.key, [answers = answers_, i](std::optional<Level> level, std::uint64_t bytes,
                                                                       const Status& status) {
        std::lock_guard lock(answers->mutex);
        answers->probes[i].level = level;
        answers->probes[i].frame.bytes = bytes;
        answers->failed[i] = !status.ok();
        --answers->left;
      });
  }

  FrameStore::NewFrame facts(std::uint32_t first, std::span<const Key> keys) const {
    FrameStore::NewFrame frame;
    frame.kind = query_.kind;
    frame.block_count = static_cast<std::uint8_t>(keys.size());
    std::copy(keys.begin(), keys.end(), frame.names.begin());
    frame.facts.key_hash = policy_name(keys.front());
    if (query_.kind == ColdKind::kState) {
      frame.key = state_key(keys.front());
      return frame;
    }
    const Codec& codec = rooms_.coder.codecs().usual();
    const std::uint64_t position = query_.first_position + std::uint64_t{first} * kBlockTokens;
    frame.label = rooms_.coder.label(codec, query_.group, position, keys, Fidelity::kExact);
    frame.key = rooms_.coder.key(codec, frame.label, static_cast<std::uint32_t>(keys.size()));
    frame.raw_bytes = rooms_.coder.shape(query_.group, static_cast<std::uint32_t>(keys.size())).raw_bytes();
    frame.facts.position = static_cast<std::uint32_t>(position);
    frame.facts.tokens = static_cast<std::uint32_t>(keys.size()) * kBlockTokens;
    return frame;
  }

  void answer() {
    Lock lock = rooms_.frames.lock();
    bool failed = false;
    {
      std::lock_guard answers(answers_->mutex);
      for (std::size_t i = 0; i < answers_->probes.size(); ++i) {
        failed = failed || answers_->failed[i];
        if (const Probe& probe = answers_->probes[i]; probe.level && probe.frame.bytes != 0)
          rooms_.frames.adopt(lock, *probe.level, probe.frame);
      }
    }
    for (std::size_t i = 0; i < query_.keys.size(); ++i) {
      const ColdFound found = rooms_.frames.look(lock, query_.kind, query_.keys[i], query_.least);
      const bool hit = found.answer == ColdAnswer::kHit;
      ColdMiss miss = found.miss;
      if (!hit && failed && miss == ColdMiss::kNeverStored) miss = ColdMiss::kUnavailable;
      decide(i, {.found = hit, .miss = miss, .tier = found.tier, .fidelity = found.fidelity, .bytes = found.bytes});
    }
  }

  const ColdQuery query_;
  const std::shared_ptr<Answers> answers_;
  std::size_t arrived_ = 0;  // names before it are
  bool asked_ = false;
};

}  // namespace

std::unique_ptr<Mover::Job> make_probe_job(Rooms& rooms, Ticket ticket, const ColdQuery& query) {
  return std::make_unique<ProbeJob>(rooms, ticket, query);
}

}  // namespace firn::cold
