// session.cpp: keeps whole conversations by how likely they are to go on.
//
// A pass over a prompt (uses at ascending positions) makes one unit of every block it touches: they will be wanted
// again together, when the conversation goes on, or never. A unit's class is what can be known of it: how long the last
// pause was, and how much of the prompt was new. What most of a unit went on without is a class of its own. For each
// class, reuses and the time at risk are counted by age, in half octaves, on a few blocks of each unit, and go on being
// counted after their eviction, so that what we evict does not hide what would have come. From these come the reuses
// per second of keeping a unit of that class and age: the best ratio, over all horizons, of the reuses to be expected
// to the time to be spent (Gittins' index), because a class whose pause is typically 30 s is worth more at 25 s than at
// 60. The victim is the last block of the unit with the smallest ratio; of each class only the oldest unit is looked
// at. A block that others follow does not go before them: when a unit has shrunk to what others continue from, the rest
// is theirs. Blocks cost the same to compute again per byte, near enough, so cost does not enter; a tier of blocks with
// different sizes would divide by bytes. Nothing is trained: every number is counted from what this policy has seen.
// Where the clock stands still, all ages are equal, and it is tail-first LRU by class.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <deque>
#include <limits>
#include <unordered_map>

#include "policy/ranking.h"

namespace firn {
namespace {

constexpr std::uint32_t kNone = ~0u;
constexpr std::size_t kAges = 44;                          // half octaves of seconds from 1/4 s
constexpr std::uint32_t kLeftBehind = 32, kLeftTail = 33;  // classes of what a continuation did not touch
constexpr std::size_t kClasses = 34;
constexpr std::size_t kMostGhosts = 32768;
constexpr std::size_t kSamples = 4;  // blocks of a unit whose uses are counted, and its last one

double age_start(std::size_t age) { return age == 0 ? 0 : 0.25 * std::exp2(static_cast<double>(age - 1) / 2); }
std::size_t age_of(double seconds) {
  if (seconds < 0.25) return 0;
  return std::min(kAges - 1, static_cast<std::size_t>(1 + std::floor(2 * std::log2(seconds / 0.25))));
}

// What has been seen of each class by age, and what follows from it.
class Statistics {
 public:
  void reused(std::size_t c, double age, double w) { reuses_[c][age_of(age)] += w; }
  void at_risk(std::size_t c, double from, double to, double w) {
    for (std::size_t age = age_of(from); age < kAges && age_start(age) < to; ++age) {
      const double end = age + 1 < kAges ? age_start(age + 1) : std::numeric_limits<double>::infinity();
      time_[c][age] += w * (std::min(end, to) - std::max(age_start(age), from));
    }
  }
  void refresh() {
    std::array<double, kAges> all_reuses{}, all_time{};
    for (std::size_t c = 0; c < kClasses; ++c)
      for (std::size_t age = 0; age < kAges; ++age) {
        all_reuses[age] += reuses_[c][age];
        all_time[age] += time_[c][age];
      }
    for (std::size_t c = 0; c < kClasses; ++c) {
      std::array<double, kAges> rate{};
      for (std::size_t age = 0; age < kAges; ++age) {
        // Two reuses' worth of what all classes together say; and they begin with a rate that falls as age grows.
        const double middle = age_start(age) * 1.2 + 0.1;
        const double pooled = (all_reuses[age] + 0.05) / (all_time[age] + middle);
        rate[age] = (reuses_[c][age] + 2) / (time_[c][age] + 2 / pooled);
      }
      for (std::size_t age = 0; age < kAges; ++age) index_[c][age] = best_ratio(rate, age);
    }
  }
  double index(std::size_t c, double age) const { return index_[c][age_of(age)]; }

 private:
  static double best_ratio(const std::array<double, kAges>& rate, std::size_t from) {
    double alive = 1, hits = 0, spent = 0, best = 0;
    for (std::size_t age = from; age + 1 < kAges; ++age) {
      const double width = age_start(age + 1) - age_start(age);
      const double stays = std::exp(-rate[age] * width);
      hits += alive * (1 - stays);
      spent += alive * (1 - stays) / rate[age];
      alive *= stays;
      best = std::max(best, hits / spent);
    }
    return std::max(best, rate[from] * 1e-6);
  }
  std::array<std::array<double, kAges>, kClasses> reuses_{}, time_{}, index_{};
};

class SessionRanking final : public Ranking {
 public:
  explicit SessionRanking(std::uint32_t capacity) : blocks_(capacity) {
    classes_.fill({kNone, kNone});
    statistics_.refresh();
  }

  void insert(std::uint32_t id, const BlockFacts& facts, bool returning, Instant now) override {
    Block& block = blocks_[id];
    block.name = facts.key_hash;
    block.position = facts.position;
    begin_or_go_on(id, facts.position, now);
    const std::uint32_t parent = index(facts.parent);
    last_parent_ = parent;
    block.parent = parent < blocks_.size() && blocks_[parent].unit != kNone && blocks_[parent].position < facts.position
                       ? parent
                       : kNone;
    if (block.parent != kNone) {
      ++blocks_[parent].children;
      blocks_[parent].some_child = id;
    }
    if (returning) {
      note_use(block, now);
    } else {
      ++pass_new_;
      if (facts.key_hash != 0) ghost_use(facts.key_hash, now);
    }
    join(id);
  }
  void touch(std::uint32_t id, Instant now) override {
    Block& block = blocks_[id];
    begin_or_go_on(id, block.position, now);
    note_use(block, now);
    const std::uint32_t old = block.unit;
    if (old != unit_ && (touched_.empty() || touched_.back() != old)) touched_.push_back(old);
    if (old != unit_) ++units_[old].taken;
    leave(id);
    join(id);
  }
  void remove(std::uint32_t id, bool) override {
    leave(id);
    Block& block = blocks_[id];
    if (block.parent != kNone && blocks_[block.parent].children > 0 && --blocks_[block.parent].children == 0) {
      const std::uint32_t above = blocks_[block.parent].unit;
      if (above != kNone && above != unit_ && !units_[above].listed) list_oldest(above);
    }
    block.parent = kNone;
    block.children = 0;
    block.some_child = kNone;
  }
  void pick(Picker& picker) override {
    ++pick_number_;
    std::vector<std::uint32_t> aside;  // listed units that have nothing more to give this time
    while (picker.wants_more()) {
      if (worst_pass_ != passes_ || worst_ == kNone || !units_[worst_].listed) worst_ = worst_unit();
      worst_pass_ = passes_;
      const std::uint32_t unit = worst_;
      if (unit == kNone) break;
      pick_from(unit, picker);
      if (!picker.wants_more() || unit == unit_) break;
      if (!units_[unit].listed) continue;
      unlist(unit);
      aside.push_back(unit);
    }
    for (std::size_t i = aside.size(); i-- > 0;) list_oldest(aside[i]);
    if (picker.found() == 0) pick_any(picker);  // vetoes stand before everything we would like
  }
  std::unique_ptr<Ranking> clone() const override { return std::make_unique<SessionRanking>(*this); }

 private:
  struct Block {
    std::uint64_t name = 0;
    std::uint32_t unit = kNone, previous = kNone, next = kNone;  // towards the head, towards the tail
    std::uint32_t parent = kNone, some_child = kNone, children = 0;
    std::uint32_t children_picked = 0, pick_number = 0;  // by the pick of that number
    std::uint32_t position = 0;
  };
  struct Unit {
    std::uint32_t head = kNone, tail = kNone, size = 0;
    std::uint32_t older = kNone, younger = kNone;  // of its class
    std::int64_t used_ns = 0;
    std::uint32_t group = 0;
    bool live = false, listed = false;
    std::uint32_t taken = 0;
    std::array<std::uint64_t, kSamples + 1> samples{};
  };
  struct Class {
    std::uint32_t oldest, youngest;
  };
  struct Ghost {  // every unit of the past, evicted or not, until it is used or too old
    std::int64_t used_ns = 0, counted_ns = 0;
    std::uint32_t group = 0;
    float weight = 1;  // of what is counted; 0: a unit's last block, until the rest of it has moved on
  };

  static double seconds(std::int64_t ns) { return static_cast<double>(ns) / 1e9; }

  void begin_or_go_on(std::uint32_t id, std::uint32_t position, Instant now) {
    // Downwards: a library frees a sequence from its tail, so each block is the parent of the one before it.
    const bool down = unit_ != kNone && last_parent_ == id && (down_ || units_[unit_].size == 1);
    if (down) {
      down_ = true;
    } else if (unit_ == kNone || down_ || position <= position_) {
      end_pass();
      unit_ = new_unit();
      units_[unit_].used_ns = now.ns;
      pass_start_ = now.ns;
      down_ = false;
    }
    position_ = position;
    now_ns_ = now.ns;
    if (++since_sweep_ >= 20000 || passes_ - swept_pass_ >= 64) sweep();
  }

  std::uint32_t new_unit() {
    std::uint32_t unit;
    if (!free_units_.empty()) {
      unit = free_units_.back();
      free_units_.pop_back();
      units_[unit] = {};
    } else {
      unit = static_cast<std::uint32_t>(units_.size());
      units_.emplace_back();
    }
    units_[unit].live = true;
    return unit;
  }

  // A block is used again: the deepest one says which turn this is and how long the pause was.
  void note_use(const Block& block, Instant now) {
    const Unit* old = block.unit != kNone ? &units_[block.unit] : nullptr;
    if (old != nullptr && block.unit != unit_) {
      if (!down_) pass_new_ = 0;
    }
    if (block.name != 0) ghost_use(block.name, now);
  }
  void ghost_use(std::uint64_t name, Instant now) {
    const auto it = ghosts_.find(name);
    if (it == ghosts_.end()) return;
    Ghost& ghost = it->second;
    if (ghost.used_ns == pass_start_ && pass_start_ != 0) return;
    count_time(ghost);
    statistics_.reused(ghost.group, seconds(now.ns - ghost.used_ns), ghost.weight);
    pass_gap_ns_ = now.ns - ghost.used_ns;
    if (!down_) pass_new_ = 0;
    ghosts_.erase(it);
  }

  void join(std::uint32_t id) {
    Unit& unit = units_[unit_];
    Block& block = blocks_[id];
    block.unit = unit_;
    if (down_) {
      block.previous = kNone;
      block.next = unit.head;
      (unit.head != kNone ? blocks_[unit.head].previous : unit.tail) = id;
      if (unit.head != kNone && blocks_[unit.head].parent == kNone) {
        blocks_[unit.head].parent = id;
        block.some_child = unit.head;
        ++block.children;
      }
      unit.head = id;
    } else {
      block.previous = unit.tail;
      block.next = kNone;
      (unit.tail != kNone ? blocks_[unit.tail].next : unit.head) = id;
      unit.tail = id;
    }
    ++unit.size;
    pass_names_.push_back(block.name);
  }
  void leave(std::uint32_t id) {
    Block& block = blocks_[id];
    Unit& unit = units_[block.unit];
    (block.previous != kNone ? blocks_[block.previous].next : unit.head) = block.next;
    (block.next != kNone ? blocks_[block.next].previous : unit.tail) = block.previous;
    --unit.size;
    if (unit.size == 0 && block.unit != unit_) drop_unit(block.unit);
    block.unit = kNone;
  }
  void drop_unit(std::uint32_t at) {
    Unit& unit = units_[at];
    if (unit.listed) unlist(at);
    unit.live = false;
    free_units_.push_back(at);
  }
  void list(std::uint32_t at) {
    Unit& unit = units_[at];
    Class& group = classes_[unit.group];
    unit.older = group.youngest;
    unit.younger = kNone;
    (group.youngest != kNone ? units_[group.youngest].younger : group.oldest) = at;
    group.youngest = at;
    unit.listed = true;
  }
  void list_oldest(std::uint32_t at) {
    Unit& unit = units_[at];
    Class& group = classes_[unit.group];
    unit.younger = group.oldest;
    unit.older = kNone;
    (group.oldest != kNone ? units_[group.oldest].older : group.youngest) = at;
    group.oldest = at;
    unit.listed = true;
  }
  void unlist(std::uint32_t at) {
    Unit& unit = units_[at];
    Class& group = classes_[unit.group];
    (unit.older != kNone ? units_[unit.older].younger : group.oldest) = unit.younger;
    (unit.younger != kNone ? units_[unit.younger].older : group.youngest) = unit.older;
    unit.listed = false;
  }

  void end_pass() {
    if (unit_ == kNone) return;
    for (const std::uint32_t old : touched_) leave_behind(old);
    touched_.clear();
    Unit& unit = units_[unit_];
    unit.group = group_of_pass();
    if (down_) std::reverse(pass_names_.begin(), pass_names_.end());
    watch_samples(unit);
    last_parent_ = kNone;
    down_ = false;
    pass_names_.clear();
    if (unit.size == 0)
      drop_unit(unit_);
    else
      list(unit_);
    unit_ = kNone;
    pass_new_ = 0;
    pass_gap_ns_ = -1;
    ++passes_;
  }
  // Which blocks of the ending pass are watched for their next use: some on the way, one before the last (the last,
  // partly filled one is never used again by a conversation that goes on), and that last one, without weight.
  void watch_samples(Unit& unit) {
    const std::size_t n = pass_names_.size();
    if (n == 0) return;
    const std::size_t deepest = n > 1 ? n - 2 : 0;
    std::array<std::size_t, kSamples> places{};
    std::size_t count = 0;
    for (std::size_t k = 1; k <= kSamples; ++k) {
      const std::size_t at = k == kSamples ? deepest : std::min(deepest, n * k / kSamples);
      if ((count == 0 || places[count - 1] != at) && pass_names_[at] != 0) places[count++] = at;
    }
    for (std::size_t i = 0; i < count; ++i) unit.samples[i] = watch(places[i], unit, 1.0f / static_cast<float>(count));
    if (n > 1 && pass_names_[n - 1] != 0) unit.samples[kSamples] = watch(n - 1, unit, 0);
    trim_ghosts();
  }
  std::uint64_t watch(std::size_t place, const Unit& unit, float weight) {
    const std::uint64_t name = pass_names_[place];
    ghosts_[name] = {unit.used_ns, unit.used_ns, unit.group, weight};
    ghost_order_.push_back({name, unit.used_ns});
    return name;
  }
  // Most of a unit went on without this rest: an older branch, or a block that was not full.
  void leave_behind(std::uint32_t at) {
    Unit& unit = units_[at];
    if (!unit.live || unit.size == 0 || !unit.listed) return;
    if (unit.taken <= unit.size || unit.group >= kLeftBehind) {
      unit.taken = 0;
      return;
    }
    unlist(at);
    unit.group = unit.size == 1 ? kLeftTail : kLeftBehind;
    list(at);
    for (const std::uint64_t name : unit.samples) {
      const auto it = ghosts_.find(name);
      if (it == ghosts_.end() || it->second.used_ns != unit.used_ns) continue;
      count_time(it->second);
      it->second.group = unit.group;
      if (it->second.weight == 0 && unit.group == kLeftTail) it->second.weight = 1;
    }
  }
  // Counts a ghost's time up to now under its class.
  void count_time(Ghost& ghost) {
    if (now_ns_ <= ghost.counted_ns) return;
    statistics_.at_risk(ghost.group, seconds(ghost.counted_ns - ghost.used_ns), seconds(now_ns_ - ghost.used_ns),
                        ghost.weight);
    ghost.counted_ns = now_ns_;
  }
  // The class of the pass that ends: its last pause, and how much of its prompt is new, in octaves of blocks.
  std::uint32_t group_of_pass() const {
    std::uint32_t pause = 0;
    if (pass_gap_ns_ >= 0) {
      const double gap = seconds(pass_gap_ns_);
      pause = gap < 16 ? 1 : gap < 64 ? 2 : 3;
    }
    return pause * 8 + std::min(7u, static_cast<std::uint32_t>(std::bit_width(pass_new_)));
  }
  void trim_ghosts() {
    while (ghost_order_.size() > kMostGhosts) {
      const auto [name, used] = ghost_order_.front();
      ghost_order_.pop_front();
      const auto it = ghosts_.find(name);
      if (it == ghosts_.end() || it->second.used_ns != used) continue;
      count_time(it->second);
      ghosts_.erase(it);
    }
  }
  void sweep() {
    for (auto& [name, ghost] : ghosts_) count_time(ghost);
    statistics_.refresh();
    swept_pass_ = passes_;
    since_sweep_ = 0;
  }

  std::uint32_t worst_unit() {
    std::uint32_t worst = kNone;
    double least = std::numeric_limits<double>::infinity();
    for (const Class& group : classes_) {
      if (group.oldest == kNone) continue;
      const Unit& unit = units_[group.oldest];
      const double index = statistics_.index(unit.group, seconds(now_ns_ - unit.used_ns));
      if (index < least || (index == least && unit.used_ns < units_[worst].used_ns)) {
        least = index;
        worst = group.oldest;
      }
    }
    if (worst == kNone && unit_ != kNone && units_[unit_].size > 0) worst = unit_;
    return worst;
  }
  // Its blocks from the tail on, as far as nobody else continues from them.
  void pick_from(std::uint32_t at, Picker& picker) {
    for (std::uint32_t id = units_[at].tail; id != kNone && picker.wants_more(); id = blocks_[id].previous) {
      const Block& block = blocks_[id];
      const std::uint32_t going = block.pick_number == pick_number_ ? block.children_picked : 0;
      if (block.children > going && at != unit_) {
        if (id == units_[at].tail && going == 0) hand_over(at);
        return;
      }
      if (!picker.offer(id)) continue;
      if (block.parent == kNone) continue;
      Block& parent = blocks_[block.parent];
      if (parent.pick_number != pick_number_) parent.children_picked = 0;
      parent.pick_number = pick_number_;
      ++parent.children_picked;
    }
  }
  // What is left of a unit is the beginning of others: it goes to one that continues it.
  void hand_over(std::uint32_t at) {
    const std::uint32_t child = blocks_[units_[at].tail].some_child;
    std::uint32_t to = child != kNone && blocks_[child].parent == units_[at].tail ? blocks_[child].unit : kNone;
    if (to == kNone || to == at) {
      unlist(at);  // until the last of its children has gone: remove() lists it again
      return;
    }
    Unit& from = units_[at];
    Unit& into = units_[to];
    for (std::uint32_t id = from.head; id != kNone; id = blocks_[id].next) blocks_[id].unit = to;
    blocks_[from.tail].next = into.head;
    if (into.head != kNone)
      blocks_[into.head].previous = from.tail;
    else
      into.tail = from.tail;
    into.head = from.head;
    into.size += from.size;
    from.head = from.tail = kNone;
    from.size = 0;
    drop_unit(at);
  }
  void pick_any(Picker& picker) {
    for (std::uint32_t id = 0; id < blocks_.size() && picker.wants_more(); ++id)
      if (blocks_[id].unit != kNone) picker.offer(id);
  }

  std::vector<Block> blocks_;
  std::vector<Unit> units_;
  std::vector<std::uint32_t> free_units_;
  std::array<Class, kClasses> classes_{};
  Statistics statistics_;
  std::unordered_map<std::uint64_t, Ghost> ghosts_;
  struct Place {
    std::uint64_t name;
    std::int64_t used;
  };
  std::deque<Place> ghost_order_;
  std::uint32_t worst_ = kNone;
  std::uint64_t worst_pass_ = 0;
  std::uint32_t pick_number_ = 0;
  bool down_ = false;                  // the pass goes from tail to head
  std::uint32_t last_parent_ = kNone;  // of the block inserted last
  std::uint32_t unit_ = kNone, position_ = 0, pass_new_ = 0;
  std::int64_t pass_gap_ns_ = -1, now_ns_ = 0, pass_start_ = 0;
  std::vector<std::uint64_t> pass_names_;
  std::vector<std::uint32_t> touched_;
  std::uint64_t passes_ = 0, swept_pass_ = 0, since_sweep_ = 0;
};

}  // namespace

std::unique_ptr<Ranking> make_session_ranking(std::uint32_t capacity) {
  return std::make_unique<SessionRanking>(capacity);
}

}  // namespace firn
