// dump.cpp: who holds what, as JSON. `firn dump` (cli/dump_command.cpp) reads it.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/json_text.h"
#include "core/manager_impl.h"

namespace firn {
namespace {

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

class Lists {
 public:
  explicit Lists(JsonText& out) : out_(out) {}
  void begin(const char* name) {
    out_.key(name_ = name);
    out_.begin_array();
    count_ = 0;
  }
  bool next() {  // an entry is written
    if (count_++ >= kMaxDumped) return false;
    out_.begin_object();
    return true;
  }
  void end() {
    out_.end_array();
    if (count_ > kMaxDumped) left_out_.emplace_back(name_, count_ - kMaxDumped);
  }
  const std::vector<std::pair<const char*, std::size_t>>& left_out() const { return left_out_; }

 private:
  JsonText& out_;
  const char* name_ = "";
  std::size_t count_ = 0;
  std::vector<std::pair<const char*, std::size_t>> left_out_;
};

void write_leases(const View& view, JsonText& out, Lists& lists) {
  lists.begin("leases");
  for (const LeaseInfo& lease : view.retention.leases(view.page_bytes)) {
    if (!lists.next()) continue;
    out.field("id", index(lease.id));
    out.field("owner", lease.owner);
    out.field("blocks", lease.blocks);
    out.field("bytes", lease.bytes);
    out.field("held_ns", view.now_ns - lease.acquired.ns);
    out.field("left_ns", lease.deadline.ns - view.now_ns);
    out.end_object();
  }
  lists.end();
}

// What one call has pinned has one end, and looks like one thing.
void write_pins(const View& view, JsonText& out, Lists& lists) {
  std::map<std::pair<std::int64_t, std::uint16_t>, std::uint64_t> pinned;
  for (const auto& [id, until_ns] : view.retention.pins()) ++pinned[{until_ns, view.pool.block(id).name_space}];
  lists.begin("pins");
  for (const auto& [pin, blocks] : pinned) {
    if (!lists.next()) continue;
    out.field("namespace", view.tag(pin.second));
    out.field("blocks", blocks);
    out.field("bytes", blocks * view.page_bytes);
    out.field("left_ns", pin.first - view.now_ns);
    out.end_object();
  }
  lists.end();
}

void write_families(const View& view, JsonText& out, Lists& lists) {
  auto families = view.retention.families();
  std::sort(families.begin(), families.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  lists.begin("families");
  for (const auto& [number, blocks] : families) {
    std::uint64_t on_device = 0, held = 0;
    for (const BlockId id : blocks) {
      on_device += view.pool.block(id).slot != SlotId::kNone;
      held += view.pool.block(id).refs != 0 || view.retention.held(id);
    }
    if (!lists.next()) continue;
    out.field("id", number);
    out.field("namespace", view.tag(view.pool.block(blocks.front()).name_space));
    out.field("blocks", blocks.size());
    out.field("bytes", blocks.size() * view.page_bytes);
    out.field("on_device", on_device);
    out.field("held", held);
    out.end_object();
  }
  lists.end();
}

}  // namespace

std::string ManagerImpl::dump() const {
  const Stats stats = this->stats();
  Lock lock(mutex_);
  catch_up();
  const Instant now = clock_();
  JsonText out;
  Lists lists(out);
  const auto object = [&](const char* name, std::initializer_list<std::pair<const char*, std::uint64_t>> fields) {
    out.key(name);
    out.begin_object();
    for (const auto& [field, number] : fields) out.field(field, number);
    out.end_object();
  };
  out.begin_object();
  out.field("format", "firn-dump-1");
  out.field("now_ns", now.ns);
  out.field("model", model_.name);
  out.field("block_bytes", stats.block_bytes);
  object("slots", {{"total", stats.slots_total},
                   {"free", stats.slots_free},
                   {"cached", stats.slots_cached},
                   {"live", stats.slots_live},
                   {"cold", stats.slots_cold},
                   {"in_flight", stats.slots_in_flight}});
  object("host",
         {{"frames", stats.frames}, {"frame_bytes", stats.host_frame_bytes}, {"raw_bytes", stats.host_raw_bytes}});
  object("pinned", {{"blocks", stats.pinned_blocks},
                    {"bytes", stats.pinned_bytes},
                    {"budget_bytes", config_.retention.pin_budget_bytes}});
  if (recorder_) {
    const TraceRecorder::Report& report = recorder_->report();
    out.key("trace_record");
    out.begin_object();
    out.field("file", report.file);
    out.field("lines", report.lines);
    out.field("lines_lost", report.lost);
    out.field("last_error", report.last_error);
    out.end_object();
  }
  const View view{*retention_, *pool_, namespaces_, layout_.page_bytes, now.ns};
  write_leases(view, out, lists);
  write_pins(view, out, lists);
  write_families(view, out, lists);
  std::vector<std::uint32_t> sequences_in(namespaces_.end());
  for (const auto& [number, seq] : sequences_) ++sequences_in[seq->name_space];
  lists.begin("namespaces");
  for (std::uint32_t i = 0; i < namespaces_.end(); ++i) {
    const std::uint16_t id = static_cast<std::uint16_t>(i);
    if (!namespaces_.in_use(id) || !lists.next()) continue;
    const Namespace& space = namespaces_[id];
    out.field("tag", view.tag(id));
    out.field("sequences", sequences_in[i]);
    out.field("blocks", pool_->tally(id).blocks);
    out.field("device_bytes", pool_->tally(id).slots * layout_.page_bytes);
    out.field("host_bytes", space.host_bytes);
    out.field("device_floor", space.quota.device_floor);
    out.field("device_ceiling", space.quota.device_ceiling);
    out.field("host_floor", space.quota.host_floor);
    out.field("host_ceiling", space.quota.host_ceiling);
    out.end_object();
  }
  lists.end();
  std::vector<const Sequence*> by_number;
  for (const auto& [number, seq] : sequences_) by_number.push_back(seq.get());
  std::sort(by_number.begin(), by_number.end(),
            [](const Sequence* a, const Sequence* b) { return index(a->id) < index(b->id); });
  lists.begin("sequences");
  for (const Sequence* seq : by_number) {
    if (!lists.next()) continue;
    out.field("id", index(seq->id));
    out.field("namespace", view.tag(seq->name_space));
    out.field("tokens", seq->tokens.size());
    out.field("blocks", seq->block_count());
    out.field("preempted", seq->preempted);
    out.end_object();
  }
  lists.end();
  if (!lists.left_out().empty()) {
    out.key("left_out");
    out.begin_object();
    for (const auto& [name, count] : lists.left_out()) out.field(name, count);
    out.end_object();
  }
  out.field("queries", stats.prefix_cache_queries);
  out.field("hits", stats.prefix_cache_hits);
  out.key("misses");
  out.begin_object();
  for (std::size_t i = 1; i < stats.misses.size(); ++i)
    out.field(to_string(static_cast<MissReason>(i)), stats.misses[i]);
  out.end_object();
  out.end_object();
  return out.take();
}

}  // namespace firn
