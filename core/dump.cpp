// dump.cpp: who holds what, as JSON. `firn dump` (cli/dump_command.cpp) reads it.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "core/manager_impl.h"

namespace firn {
namespace {

using Json = nlohmann::ordered_json;

struct View {
  const Retention& retention;
  const BlockPool& pool;
  const Namespaces& namespaces;
  std::uint64_t page_bytes = 0;
  std::int64_t now_ns = 0;

  // By tag: the name of a namespace is its owner's secret.
  std::string tag(std::uint16_t name_space) const { return fmt::format("{:016x}", namespaces[name_space].tag); }
};

// A dump is for people and their tools, and has an end: what is behind it is counted.
constexpr std::size_t kMaxDumped = 10'000;

void give(Json& all, const char* name, std::vector<Json> entries) {
  if (entries.size() > kMaxDumped) {
    all["left_out"][name] = entries.size() - kMaxDumped;
    entries.resize(kMaxDumped);
  }
  all[name] = std::move(entries);
}

std::vector<Json> leases_of(const View& view) {
  std::vector<Json> leases;
  for (const LeaseInfo& lease : view.retention.leases(view.page_bytes))
    leases.push_back({{"id", index(lease.id)},
                      {"owner", lease.owner},
                      {"blocks", lease.blocks},
                      {"bytes", lease.bytes},
                      {"held_ns", view.now_ns - lease.acquired.ns},
                      {"left_ns", lease.deadline.ns - view.now_ns}});
  return leases;
}

// What one call has pinned has one end, and looks like one thing.
std::vector<Json> pins_of(const View& view) {
  std::map<std::pair<std::int64_t, std::uint16_t>, std::uint64_t> pinned;
  for (const auto& [id, until_ns] : view.retention.pins()) ++pinned[{until_ns, view.pool.block(id).name_space}];
  std::vector<Json> pins;
  for (const auto& [pin, blocks] : pinned)
    pins.push_back({{"namespace", view.tag(pin.second)},
                    {"blocks", blocks},
                    {"bytes", blocks * view.page_bytes},
                    {"left_ns", pin.first - view.now_ns}});
  return pins;
}

std::vector<Json> families_of(const View& view) {
  std::map<std::uint64_t, Json> by_number;
  for (const auto& [number, blocks] : view.retention.families()) {
    std::uint64_t on_device = 0, held = 0;
    for (const BlockId id : blocks) {
      on_device += view.pool.block(id).slot != SlotId::kNone;
      held += view.pool.block(id).refs != 0 || view.retention.held(id);
    }
    by_number[number] = {{"id", number},
                         {"namespace", view.tag(view.pool.block(blocks.front()).name_space)},
                         {"blocks", blocks.size()},
                         {"bytes", blocks.size() * view.page_bytes},
                         {"on_device", on_device},
                         {"held", held}};
  }
  std::vector<Json> families;
  for (auto& [number, family] : by_number) families.push_back(std::move(family));
  return families;
}

}  // namespace

std::string ManagerImpl::dump() const {
  const Stats stats = this->stats();
  Lock lock(mutex_);
  catch_up();
  const Instant now = clock_();
  Json all;
  all["format"] = "firn-dump-1";
  all["now_ns"] = now.ns;
  all["model"] = model_.name;
  all["block_bytes"] = stats.block_bytes;
  all["slots"] = {{"total", stats.slots_total}, {"free", stats.slots_free}, {"cached", stats.slots_cached},
                  {"live", stats.slots_live},   {"cold", stats.slots_cold}, {"in_flight", stats.slots_in_flight}};
  all["host"] = {
      {"frames", stats.frames}, {"frame_bytes", stats.host_frame_bytes}, {"raw_bytes", stats.host_raw_bytes}};
  all["pinned"] = {{"blocks", stats.pinned_blocks},
                   {"bytes", stats.pinned_bytes},
                   {"budget_bytes", config_.retention.pin_budget_bytes}};
  const View view{*retention_, *pool_, namespaces_, layout_.page_bytes, now.ns};
  if (recorder_)
    all["trace_record"] = {{"file", recorder_->report().file},
                           {"lines", recorder_->report().lines},
                           {"lines_lost", recorder_->report().lost},
                           {"last_error", recorder_->report().last_error}};
  give(all, "leases", leases_of(view));
  give(all, "pins", pins_of(view));
  give(all, "families", families_of(view));
  std::vector<std::uint32_t> sequences_in(namespaces_.end());
  for (const auto& [number, seq] : sequences_) ++sequences_in[seq->name_space];
  std::vector<Json> spaces;
  for (std::uint32_t i = 0; i < namespaces_.end(); ++i) {
    const std::uint16_t id = static_cast<std::uint16_t>(i);
    if (!namespaces_.in_use(id)) continue;
    const Namespace& space = namespaces_[id];
    spaces.push_back({{"tag", view.tag(id)},
                      {"sequences", sequences_in[i]},
                      {"blocks", pool_->tally(id).blocks},
                      {"device_bytes", pool_->tally(id).slots * layout_.page_bytes},
                      {"host_bytes", space.host_bytes},
                      {"device_floor", space.quota.device_floor},
                      {"device_ceiling", space.quota.device_ceiling},
                      {"host_floor", space.quota.host_floor},
                      {"host_ceiling", space.quota.host_ceiling}});
  }
  give(all, "namespaces", std::move(spaces));
  std::map<std::uint64_t, Json> by_number;
  for (const auto& [number, seq] : sequences_)
    by_number[number] = {{"id", number},
                         {"namespace", view.tag(seq->name_space)},
                         {"tokens", seq->tokens.size()},
                         {"blocks", seq->block_count()},
                         {"preempted", seq->preempted}};
  std::vector<Json> sequences;
  for (auto& [number, sequence] : by_number) sequences.push_back(std::move(sequence));
  give(all, "sequences", std::move(sequences));
  all["queries"] = stats.prefix_cache_queries;
  all["hits"] = stats.prefix_cache_hits;
  for (std::size_t i = 1; i < stats.misses.size(); ++i)
    all["misses"][std::string(to_string(static_cast<MissReason>(i)))] = stats.misses[i];
  return all.dump(1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace firn
