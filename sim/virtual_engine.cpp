#include "sim/virtual_engine.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"

namespace firn::sim {

StepCost device_cost(const DeviceSpec& device, const ModelShape& model, std::uint64_t block_bytes, double ratio) {
  return [device, model, block_bytes, ratio](const StepWork& work) {
    const double rate = device.flops * device.prefill_efficiency;
    const double rows = static_cast<double>(work.rows);
    const double products =
        2 * (model.active_parameters * rows + model.head_parameters * static_cast<double>(work.ends)) / rate;
    const double attention = model.pair_flops() * work.pairs / rate;
    const double reads =
        (model.bytes_read(rows) + static_cast<double>(work.context) * static_cast<double>(model.token_bytes())) /
        (device.memory_bandwidth * device.decode_efficiency);
    const double link =
        static_cast<double>((work.cold_blocks + work.loaded_blocks) * block_bytes) / ratio / device.host_link;
    return std::max({products + attention, reads, link}) + sharing_seconds(device, model, rows) +
           device.step_overhead_s;
  };
}

StepCost MeasuredRates::cost() const {
  return [rates = *this](const StepWork& work) {
    FIRN_CHECK(!rates.step_s.empty());
    auto above =
        std::lower_bound(rates.step_s.begin(), rates.step_s.end(), std::pair<std::uint64_t, double>{work.rows, 0});
    const bool beyond = above == rates.step_s.end();  // no step is larger than the largest measured
    if (beyond) --above;
    double seconds = above->second;
    if (!beyond && above != rates.step_s.begin() && above->first != work.rows) {
      const auto below = above - 1;
      const double slope = (above->second - below->second) / static_cast<double>(above->first - below->first);
      seconds = below->second + slope * (static_cast<double>(work.rows) - static_cast<double>(below->first));
    }
    return seconds + rates.pair_s * work.pairs + rates.cold_block_s * static_cast<double>(work.cold_blocks) +
           rates.stored_frame_s * static_cast<double>(work.frames_stored);
  };
}

VirtualEngine::Sequence::Sequence(Manager& manager, const Begun& begun, std::span<const TokenId> tokens)
    : manager_(&manager),
      id_(begun.seq),
      match_(begun.match),
      tokens_(tokens.begin(), tokens.end()),
      committed_(begun.match.tokens) {}

VirtualEngine::Sequence::Sequence(Sequence&& other) noexcept
    : manager_(other.manager_),
      id_(std::exchange(other.id_, SeqId::kNone)),
      match_(other.match_),
      tokens_(std::move(other.tokens_)),
      committed_(other.committed_) {}

VirtualEngine::Sequence& VirtualEngine::Sequence::operator=(Sequence&& other) noexcept {
  std::swap(manager_, other.manager_);
  std::swap(id_, other.id_);
  std::swap(match_, other.match_);
  std::swap(tokens_, other.tokens_);
  std::swap(committed_, other.committed_);
  return *this;
}

VirtualEngine::Sequence::~Sequence() {
  if (id_ == SeqId::kNone) return;
  FIRN_CHECK(manager_->free(id_).ok());
}

Result<VirtualEngine::Sequence> VirtualEngine::begin(std::span<const TokenId> tokens) {
  FIRN_ASSIGN(const Begun begun, manager_.begin(tokens));
  Sequence sequence(manager_, begun, tokens);
  if (options_.one_step && begun.match.tokens_on_host != 0) {  // the example engine attends them where they are
    FIRN_TRY(manager_.prefetch(begun.seq).status());
    manager_.pump();
    for (const SlotId slot : manager_.block_table(begun.seq)) cold_blocks_ += slot == SlotId::kNone;
    loaded_blocks_ += begun.match.tokens_on_host / kBlockTokens;
  }
  return sequence;
}

void VirtualEngine::pump() { frames_stored_ += manager_.pump(); }

Status VirtualEngine::turn(std::span<Sequence* const> sequences) {
  do {
    FIRN_ASSIGN(const std::vector<Part> parts, plan(sequences));
    if (parts.empty()) return {};
    FIRN_TRY(step(parts));
  } while (!options_.one_step);
  return {};
}

// As the example engine plans: see examples/llama/engine.cpp.
Result<std::vector<VirtualEngine::Part>> VirtualEngine::plan(std::span<Sequence* const> sequences) {
  std::vector<Sequence*> waiting;
  std::vector<StepRequest> requests;
  for (Sequence* sequence : sequences) {
    const std::size_t pending = std::min(sequence->pending(), max_rows_);
    if (pending == 0) continue;
    waiting.push_back(sequence);
    requests.push_back({sequence->id(), static_cast<std::uint32_t>(pending)});
  }
  std::vector<Part> parts;
  if (requests.empty()) return parts;
  if (options_.one_step) return plan_lightly(waiting, requests);
  FIRN_ASSIGN(std::size_t left, rows_of_next_step(requests));
  for (std::size_t i = 0; i < waiting.size() && left > 0; ++i) {
    const std::size_t rows = std::min<std::size_t>(requests[i].new_tokens, left);
    const Status status = manager_.allocate(waiting[i]->id(), static_cast<std::uint32_t>(rows)).status();
    FIRN_TRY(status);
    parts.push_back({waiting[i], rows});
    left -= rows;
  }
  return parts;
}

// plan_step looks at every block of every sequence, which is nothing beside a real step and everything here: takes room
// at once, and asks only when there is none, and now and then for what is cold.
Result<std::vector<VirtualEngine::Part>> VirtualEngine::plan_lightly(const std::vector<Sequence*>& waiting,
                                                                     const std::vector<StepRequest>& requests) {
  constexpr std::uint64_t kLookEvery = 64;
  if (manager_.config().host.budget_bytes != 0 && counters_.steps % kLookEvery == 0) {
    FIRN_ASSIGN(const StepPlan seen, manager_.plan_step(requests));
    cold_blocks_ = seen.staging_bytes / layer_bytes();
  }
  std::vector<Part> parts;
  std::size_t left = max_rows_;
  for (std::size_t i = 0; i < waiting.size() && left > 0; ++i) {
    const auto rows = static_cast<std::uint32_t>(std::min<std::size_t>(requests[i].new_tokens, left));
    Status status = manager_.allocate(waiting[i]->id(), rows).status();
    if (status.code() == Code::kUnavailable) {
      FIRN_TRY(manager_.wait_room(waiting[i]->id(), rows));
      status = manager_.allocate(waiting[i]->id(), rows).status();
    }
    FIRN_TRY(status);
    parts.push_back({waiting[i], rows});
    left -= rows;
  }
  return parts;
}

// One layer's bytes of a block; all layers are read alike.
std::uint64_t VirtualEngine::layer_bytes() const {
  return manager_.model().block_bytes() / manager_.model().groups[0].layer_count;
}

Result<std::size_t> VirtualEngine::rows_of_next_step(std::span<const StepRequest> requests) {
  constexpr std::uint32_t kSmallStepRows = 64;  // as the example engine has it
  FIRN_ASSIGN(StepPlan step, manager_.plan_step(requests));
  const auto enough = std::min({requests[0].new_tokens, kSmallStepRows, step.chunk_limit_moved});
  if (step.chunk_limit < enough) {
    const Status waited = manager_.wait_room(requests[0].seq, enough);
    if (!waited.ok() && step.chunk_limit == 0) return waited;
    FIRN_ASSIGN(step, manager_.plan_step(requests));
  }
  if (step.chunk_limit == 0) return step.blocked;
  cold_blocks_ = step.staging_bytes / layer_bytes();
  return std::min<std::size_t>(step.chunk_limit, max_rows_);
}

Status VirtualEngine::step(std::span<const Part> parts) {
  StepWork work{.cold_blocks = cold_blocks_,
                .loaded_blocks = std::exchange(loaded_blocks_, 0),
                .frames_stored = std::exchange(frames_stored_, 0)};
  std::uint64_t prompt_rows = 0;
  for (const Part& part : parts) {
    const Sequence& sequence = *part.sequence;
    const double rows = static_cast<double>(part.rows), before = static_cast<double>(sequence.committed_);
    work.rows += part.rows;
    work.pairs += rows * before + rows * (rows + 1) / 2;
    const bool ends = part.rows == sequence.pending();
    work.ends += ends;
    if (part.rows == 1)
      work.context += sequence.committed_ + 1;
    else
      prompt_rows += part.rows;
  }
  const double seconds = options_.cost(work);
  clock_.move_on(seconds);
  counters_.busy_s += seconds;
  counters_.prefill_s += seconds * static_cast<double>(prompt_rows) / static_cast<double>(work.rows);
  counters_.tokens += work.rows;
  ++counters_.steps;
  for (const Part& part : parts) {
    Sequence& sequence = *part.sequence;
    FIRN_TRY(manager_.commit(sequence.id_, std::span(sequence.tokens_).subspan(sequence.committed_, part.rows)));
    sequence.committed_ += part.rows;
  }
  return {};
}

}  // namespace firn::sim
