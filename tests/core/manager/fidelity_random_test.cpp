// Fidelity under random operations, with bytes.
//
// Sequences that asked for exact context and sequences that did not share blocks in a pool that is far too small. What
// a block is said to be is held against what is in it: the naive model knows for each token what its sequence appended,
// what the lossy codec makes of that once, and whether anything inexact was attended when it was computed. Then, after
// every operation and for every block wherever its bytes are:
//   - a row is what was appended or what the codec makes of it once: nothing is coded twice, nothing is another's
//   - a block with a row that went through the codec is `coded` and not exact; one that says exact has none
//   - what was computed on inexact context says derived, also while its block is only half full
//   - what a sequence holds that asked for exact context is what was appended, bit for bit
//   - protect.tail: nothing that went through the codec is matched in the last window
// FIRN_TEST_SEED=n runs one seed alone, FIRN_TEST_STEPS=n so many operations of each.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <unordered_map>

#include "firn/thread_pool.h"
#include "tests/core/manager/hand_device.h"
#include "tests/core/manager/test_peer.h"
#include "tests/core/manager/toy_engine.h"
#include "tests/storage/calibration/toy_cache.h"

namespace firn::test {
namespace {

constexpr std::uint32_t kHeads = 2, kDim = 32, kRowBytes = kDim * 2;

struct Setting {
  const char* name;
  const char* codec;
  const char* mode = "strict";
  bool worker = false;
  const char* tail = "recompute";
  std::uint32_t sets = 1;       // 2: a group with a window too; 3: and another of full attention
  bool device_is_lost = false;  // now and then
};

ModelSpec model_of(const Setting& setting) {
  ModelSpec model = firn::test::toy_model(2);  // keys and values that the toy artefact was calibrated on
  model.groups[0].query_heads = kHeads;
  for (std::uint32_t more = 1; more < setting.sets; ++more) {
    model.groups.push_back(model.groups[0]);
    if (more != 1) continue;
    model.groups.back().kind = GroupKind::kSlidingWindow;
    model.groups.back().window = 40;
  }
  return model;
}

// By definition, to nearest and ties to even; of what is neither as large as 65504 nor so small that it has no
// exponent.
std::uint16_t to_f16(float value) {
  int exponent = 0;
  const auto magnitude = std::fabs(static_cast<double>(value));
  std::frexp(magnitude, &exponent);
  exponent = std::max(exponent, -13);
  // Eleven bits, the first of which is 1 unless the number is subnormal; rounding up to the next power carries over.
  const auto digits = static_cast<std::uint16_t>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  return static_cast<std::uint16_t>((value < 0 ? 0x8000 : 0) + ((exponent + 13) << 10) + digits);
}

// What a token is in memory, [layer][K, then V][head][element].
struct Rows {
  std::vector<std::byte> raw, once;  // as it was appended, and after the lossy codec has had it once
  std::vector<float> k, v;           // [layer][head][element]
};

// Of each prefix, by its hash. Made once, so that it does not matter where from.
class Corpus {
 public:
  Corpus(const ModelSpec& model, std::uint32_t layers, const Codec* lossy)
      : cache_(firn::test::toy_model(2)), model_(model), layers_(layers), lossy_(lossy) {}

  const Rows& rows(std::uint64_t prefix, std::uint32_t position) {
    const auto found = known_.find(prefix);
    if (found != known_.end()) return found->second;
    Rows made;
    for (std::uint32_t layer = 0; layer < layers_; layer += 2) {
      const ToyCache::Window window = cache_.window(position, 1);
      made.k.insert(made.k.end(), window.keys.begin(), window.keys.end());
      made.v.insert(made.v.end(), window.values.begin(), window.values.end());
    }
    for (std::uint32_t layer = 0; layer < layers_; ++layer)
      for (const std::vector<float>* tensor : {&made.k, &made.v})
        for (std::uint32_t i = 0; i < kHeads * kDim; ++i) {
          const std::uint16_t bits = to_f16((*tensor)[layer * kHeads * kDim + i]);
          made.raw.insert(made.raw.end(), reinterpret_cast<const std::byte*>(&bits),
                          reinterpret_cast<const std::byte*>(&bits) + 2);
        }
    made.once = lossy_ ? coded(made.raw, position) : made.raw;
    return known_.emplace(prefix, std::move(made)).first->second;
  }

  // Whether a token of a block in memory is these bytes.
  static bool same(const std::byte* block, std::uint32_t layers, std::uint32_t token, const std::byte* bytes) {
    for (std::uint32_t part = 0; part < layers * 2 * kHeads; ++part)
      if (std::memcmp(block + (part * kBlockTokens + token) * kRowBytes, bytes + part * kRowBytes, kRowBytes) != 0)
        return false;
    return true;
  }

 private:
  // The codecs under test code each token by itself, so the others of its block do not matter.
  std::vector<std::byte> coded(const std::vector<std::byte>& raw, std::uint32_t position) const {
    const ExtentShape shape{.kv = model_.groups[0].kv, .layer_count = layers_, .block_count = 1};
    std::vector<std::byte> block(shape.raw_bytes());
    const std::uint32_t token = position % kBlockTokens;
    for (std::uint32_t part = 0; part < layers_ * 2 * kHeads; ++part)
      for (std::uint32_t t = 0; t < kBlockTokens; ++t)
        std::memcpy(block.data() + (part * kBlockTokens + t) * kRowBytes, raw.data() + part * kRowBytes, kRowBytes);
    std::vector<BlockView> views;
    for (std::uint32_t layer = 0; layer < layers_; ++layer) {
      const auto base = reinterpret_cast<DeviceAddress>(block.data()) + layer * 2 * kHeads * kBlockTokens * kRowBytes;
      views.push_back({.k = base,
                       .v = base + kHeads * kBlockTokens * kRowBytes,
                       .token_stride = kRowBytes,
                       .head_stride = kBlockTokens * kRowBytes,
                       .v_token_stride = kRowBytes,
                       .v_head_stride = kBlockTokens * kRowBytes});
    }
    std::vector<std::byte> room(lossy_->bound(shape) + 64);
    void* aligned = room.data();
    std::size_t space = room.size();
    std::align(64, lossy_->bound(shape), aligned, space);
    const FrameLabel label{
        .last_key = {}, .group = GroupId{0}, .first_position = position - token, .fidelity = Fidelity::kLossy};
    EncodeJob encode{.shape = shape,
                     .label = label,
                     .views = views,
                     .out = {static_cast<std::byte*>(aligned), lossy_->bound(shape)},
                     .bytes = 0,
                     .status = {}};
    lossy_->encode({&encode, 1}, nullptr);
    EXPECT_OK(encode.status);
    DecodeJob decode{.frame = std::span<const std::byte>(encode.out).first(encode.bytes),
                     .shape = shape,
                     .label = label,
                     .layer = 0,
                     .layer_count = layers_,
                     .views = views,
                     .status = {}};
    lossy_->decode({&decode, 1}, nullptr);
    EXPECT_OK(decode.status);
    std::vector<std::byte> out;
    for (std::uint32_t part = 0; part < layers_ * 2 * kHeads; ++part) {
      const std::byte* row = block.data() + (part * kBlockTokens + token) * kRowBytes;
      out.insert(out.end(), row, row + kRowBytes);
    }
    return out;
  }

  ToyCache cache_;
  ModelSpec model_;
  std::uint32_t layers_ = 0;
  const Codec* lossy_ = nullptr;
  std::unordered_map<std::uint64_t, Rows> known_;
};

class Trial {
 public:
  Trial(unsigned seed, const Setting& setting, const std::string& artefact) : setting_(setting), random_(seed) {
    const ModelSpec model = model_of(setting);
    Config config;
    config.device = "cpu";
    config.threads = 2;
    config.mode = setting.mode;
    config.protect.recent = 16 * (1 + pick(3));
    config.protect.sinks = pick(2) ? 4 : 20;
    config.protect.tail = setting.tail;
    config.partial_reuse = pick(2) != 0;
    config.pool.max_step_tokens = 32;
    config.pool.staging_bytes = kSplitTokens * model.groups[0].kv.token_bytes();
    const std::uint64_t blocks = setting.sets * (24 + pick(50));
    config.pool.budget_bytes = config.pool.staging_bytes + blocks * model.block_bytes() / setting.sets + (64u << 10);
    if (pick(2)) config.pool.max_budget_bytes = config.pool.budget_bytes + 30 * model.block_bytes();
    config.host.budget_bytes = (pick(4) == 0 ? 3u : 8u) << 20;
    config.host.codec = setting.codec;
    config.host.allow_unmeasured = true;
    config.host.huge_pages = false;
    if (config.host.codec == "kvtc") config.host.artefact = artefact, config.host.ratio = 8;
    config.mover.worker = setting.worker;
    config.mover.queue = 1 + pick(8);
    config.max_sequences = 16;
    config.eviction = std::array{"lru", "sieve", "s3fifo", "session"}[pick(4)];
    Manager::Environment environment{&threads_, nullptr, {}};
    device_.hide_pool = false;
    if (setting.device_is_lost) environment.device = &device_;
    manager_ = make_manager(config, model, environment);
    if (!manager_) return;
    inside_ = &ManagerTestPeer::of(*manager_);
    const std::uint32_t layers = manager_->layout().layer_count;
    corpus_.emplace(model, layers, ManagerTestPeer::lossy(*manager_));
    set_layers_ = manager_->layout().sets[0].layer_count;
    said_.resize(ManagerTestPeer::pool(*manager_).block_capacity());
    seen_.resize(ManagerTestPeer::frames(*manager_).capacity());
  }
  bool ready() const { return manager_ != nullptr; }

  void step() {
    const std::uint32_t what = pick(100);
    if (what < 16) {
      begin();
    } else if (what < 64) {
      advance();
    } else if (what < 68) {
      fork();
    } else if (what < 76) {
      rewind();
    } else if (what < 80) {
      free();
    } else if (what < 84) {
      preempt_or_resume();
    } else if (what < 89) {
      prefetch();
    } else if (what < 95) {
      log("pump");
      manager_->pump(1 + pick(4));
    } else if (what < 97) {
      resize();
    } else if (what < 99) {
      settle();
      log("empty_pool");
      EXPECT_TRUE(manager_->empty_pool(0xff).ok());
    } else if (pick(4) == 0) {
      log("damage: {} frames", ManagerTestPeer::damage_frames(*manager_, 1 + pick(40)));
      ++damaged_;
    } else if (setting_.device_is_lost && pick(4) == 0) {
      lose_device();
    }
  }

  // Everything, against what is known.
  void check() {
    if (setting_.worker) settle();
    Lock lock(ManagerTestPeer::mutex(*manager_));
    const BlockPool& pool = ManagerTestPeer::pool(*manager_);
    for (std::uint32_t i = 0; i < pool.block_capacity(); ++i) {
      const Block& block = pool.block(BlockId{i});
      const Said& said = said_[i];
      if (!block.in_use || block.lost || said.generation != pool.generation(BlockId{i}) || said.count == 0) continue;
      const Mask once = rows_coded(BlockId{i}, /*from_frame=*/block.slot == SlotId::kNone);
      const auto name = [&] {
        return fmt::format("block {} ({} tokens, {}{}{}{})", i, said.count, to_string(block.fidelity),
                           block.coded ? ", coded" : "", block.slot == SlotId::kNone ? ", cold" : "",
                           block.refs == 0 ? ", cached" : "");
      };
      if (once.none()) {
        ++exact_seen_;
      } else {
        ++coded_seen_;
        EXPECT_TRUE(block.coded && block.fidelity != Fidelity::kExact) << name() << ": rows " << once.to_string();
      }
      const Mask derived = said.derived & first_bits(said.count);
      EXPECT_TRUE(derived.none() || block.fidelity == Fidelity::kDerived) << name();
      if (block.slot != SlotId::kNone && block.frame != FrameId::kNone && block.full())
        rows_coded(BlockId{i}, /*from_frame=*/true);  // what is in the frame is this block's too
    }
    for (const auto& [id, seq] : seqs_) {
      if (seq.least != Fidelity::kExact || seq.preempted) continue;
      const Sequence& held = ManagerTestPeer::sequence(*manager_, seq.id);
      for (std::size_t b = 0; b < held.block_count(); ++b)
        for (const Table& table : held.tables) {
          if (table.blocks[b] == BlockId::kNone) continue;
          const Block& block = pool.block(table.blocks[b]);
          EXPECT_FALSE(block.fidelity != Fidelity::kExact || block.coded)
              << "exact sequence " << id << " holds block " << index(table.blocks[b]) << ", "
              << to_string(block.fidelity);
        }
    }
  }

  void verify() { EXPECT_EQ(broken(*manager_), ""); }
  std::uint64_t coded_seen() const { return coded_seen_; }
  std::uint64_t exact_seen() const { return exact_seen_; }
  std::uint64_t derived_seen() const { return derived_seen_; }
  Stats stats() const { return manager_->stats(); }
  std::string last_operations() const {
    std::string text;
    for (const std::string& line : log_) text += "\n  " + line;
    return text;
  }

 private:
  struct Mask : std::bitset<kBlockTokens> {
    using std::bitset<kBlockTokens>::bitset;
    Mask(const std::bitset<kBlockTokens>& bits) : std::bitset<kBlockTokens>(bits) {}
  };
  static Mask first_bits(std::uint32_t count) { return Mask((1ull << count) - 1); }

  struct Seq {
    SeqId id = SeqId::kNone;
    Tokens tokens, wanted;
    std::vector<std::uint64_t> prefixes;  // of tokens
    std::vector<bool> derived;            // of tokens
    Fidelity least = Fidelity::kDerived;
    bool preempted = false;
  };
  // What was put into a block, whoever did it.
  struct Said {
    std::uint32_t generation = 0, count = 0, position = 0;
    std::array<const Rows*, kBlockTokens> rows{};
    Mask derived;
  };
  struct SeenFrame {
    std::uint32_t generation = 0;
    bool readable = false;
    std::array<Mask, kMaxExtentBlocks> once;
  };

  std::uint32_t pick(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  template <class... Args>
  void log(fmt::format_string<Args...> text, Args&&... args) {
    log_.push_back(fmt::format(text, std::forward<Args>(args)...));
    if (log_.size() > 30) log_.pop_front();
  }
  int any() {
    auto it = seqs_.begin();
    std::advance(it, pick(static_cast<std::uint32_t>(seqs_.size())));
    return it->first;
  }

  // Which of a block's rows have been through the codec. Every row must be something that was said of it.
  Mask rows_coded(BlockId id, bool from_frame) {
    const Block& block = ManagerTestPeer::pool(*manager_).block(id);
    const Said& said = said_[index(id)];
    if (!from_frame) {
      if (block.in_flight != 0) return {};  // perhaps it is being rewritten
      return classify(said, ManagerTestPeer::slot_bytes(*manager_, block.slot), index(block.page_set), "its slot");
    }
    const Frame& frame = ManagerTestPeer::frames(*manager_).frame(block.frame);
    SeenFrame& seen = seen_[index(block.frame)];
    if (seen.generation != frame.generation) {
      seen = {.generation = frame.generation, .readable = false, .once = {}};
      const std::vector<std::byte> bytes = ManagerTestPeer::decoded(*manager_, block.frame);
      seen.readable = !bytes.empty();
      EXPECT_TRUE(seen.readable || damaged_ != 0) << "frame " << index(block.frame) << " does not decode";
      for (std::uint8_t i = 0; i < frame.block_count && seen.readable; ++i)
        if (frame.blocks[i] != BlockId::kNone)
          seen.once[i] = classify(said_[index(frame.blocks[i])], bytes.data() + i * manager_->layout().page_bytes,
                                  index(frame.page_set), "its frame");
    }
    return seen.once[block.frame_index];
  }

  Mask classify(const Said& said, const std::byte* block, std::uint32_t set, const char* where) {
    Mask once;
    const std::size_t size = set_layers_ * 2 * kHeads * kRowBytes;
    for (std::uint32_t t = 0; t < said.count; ++t) {
      if (Corpus::same(block, set_layers_, t, said.rows[t]->raw.data() + set * size)) continue;
      once[t] = true;
      EXPECT_TRUE(Corpus::same(block, set_layers_, t, said.rows[t]->once.data() + set * size))
          << "token " << said.position + t << ": what is in " << where
          << " is neither what was appended nor what the codec makes of that once";
    }
    return once;
  }

  Tokens make_prompt() {
    if (pick(3) == 0 && !seqs_.empty()) {
      const Seq& other = seqs_.at(any());
      Tokens tokens = first_of(other.tokens, pick(static_cast<std::uint32_t>(other.tokens.size()) + 1));
      for (std::uint32_t i = 1 + pick(60); i > 0; --i) tokens.push_back(static_cast<TokenId>(pick(3)));
      return tokens;
    }
    Tokens tokens = distinct(1 + pick(pick(3) == 0 ? 120 : 420), static_cast<TokenId>(10'000 * pick(3)));
    if (pick(3) == 0)
      for (std::uint32_t i = pick(30); i > 0; --i) tokens.push_back(static_cast<TokenId>(pick(3)));
    return tokens;
  }

  void begin() {
    if (seqs_.size() >= 4) return;
    Seq seq;
    seq.wanted = make_prompt();
    seq.least = std::array{Fidelity::kExact, Fidelity::kExact, Fidelity::kLossy, Fidelity::kDerived,
                           Fidelity::kDerived}[pick(5)];
    BeginOptions options;
    options.min_fidelity = seq.least;
    options.read_cache = pick(10) != 0;
    const Result<Begun> begun = manager_->begin(seq.wanted, options);
    if (!begun.ok()) return answered(begun.status());
    const int id = next_++;
    log("begin {} ({}): {} tokens, {} found, {} partly, {} reused", id, to_string(seq.least), seq.wanted.size(),
        begun->match.tokens_found, begun->match.tokens_partial, begun->match.tokens);
    seq.id = begun->seq;
    took(seq, begun->match, seq.wanted);
    seqs_[id] = std::move(seq);
  }

  // What a sequence has been given, and whether it may have it.
  void took(Seq& seq, const PrefixMatch& match, const Tokens& tokens) {
    seq.tokens = first_of(tokens, match.tokens);
    seq.prefixes = prefix_hashes(seq.tokens);
    seq.derived.assign(match.tokens, false);
    if (setting_.worker) settle();
    Lock lock(ManagerTestPeer::mutex(*manager_));
    const Sequence& held = ManagerTestPeer::sequence(*manager_, seq.id);
    const Config& config = manager_->config();
    const std::uint32_t sinks = (config.protect.sinks + kBlockTokens - 1) / kBlockTokens;
    const std::uint32_t window =
        (match.tokens_found - std::min(match.tokens_found, config.protect.recent)) / kBlockTokens;
    for (std::uint32_t b = 0; b < held.block_count(); ++b)
      for (const Table& table : held.tables) {
        const BlockId id = table.blocks[b];
        if (id == BlockId::kNone) continue;
        const Block& block = ManagerTestPeer::pool(*manager_).block(id);
        const Said& said = said_[index(id)];
        ASSERT_EQ(said.generation, ManagerTestPeer::pool(*manager_).generation(id))
            << "nobody filled block " << index(id);
        const Mask once = rows_coded(id, block.slot == SlotId::kNone);
        for (std::uint32_t t = 0; t < kBlockTokens && b * kBlockTokens + t < match.tokens; ++t) {
          ASSERT_EQ(said.rows[t], &corpus_->rows(seq.prefixes[b * kBlockTokens + t], b * kBlockTokens + t))
              << "block " << b << " has other tokens";
          if (said.derived[t]) seq.derived[b * kBlockTokens + t] = true;
          EXPECT_FALSE(seq.least == Fidelity::kExact && (once[t] || said.derived[t]))
              << "block " << b << ", given as exact";
          EXPECT_FALSE(seq.least == Fidelity::kLossy && said.derived[t]) << "block " << b << ", given as not derived";
          EXPECT_FALSE(std::string(setting_.tail) == "recompute" && once[t] && b >= std::max(window, sinks))
              << "block " << b << " of the matched window has been through the codec";
        }
      }
  }

  // The blocks of a sequence's table, so that copies are seen.
  std::vector<std::vector<BlockId>> held_blocks(SeqId id) {
    Lock lock(ManagerTestPeer::mutex(*manager_));
    std::vector<std::vector<BlockId>> tables;
    for (const Table& table : ManagerTestPeer::sequence(*manager_, id).tables) tables.push_back(table.blocks);
    return tables;
  }

  void advance() {
    if (seqs_.empty()) return;
    const int id = any();
    for (std::uint32_t steps = 1 + pick(6); steps > 0 && seqs_.contains(id); --steps)
      if (!advance(id)) return;
  }
  bool advance(int id) {
    Seq& seq = seqs_.at(id);
    if (seq.preempted) return false;
    const auto from = static_cast<std::uint32_t>(seq.tokens.size());
    // Most of the time a prompt goes on.
    const bool prompt = from < seq.wanted.size() && pick(4) != 0;
    const std::uint32_t count = prompt ? 32 : 1 + pick(pick(2) ? 3 : 32);
    const auto before = held_blocks(seq.id);
    Result<std::vector<CopyOrder>> allocated = manager_->allocate(seq.id, count);
    if (allocated.status().code() == Code::kUnavailable) {
      const Status room = manager_->wait_room(seq.id, count);
      if (room.ok()) allocated = manager_->allocate(seq.id, count);
    }
    log("advance {}: {} tokens from {}{}", id, count, from, allocated.ok() ? "" : ": " + allocated.status().message());
    if (!allocated.ok()) {
      answered(allocated.status());
      if (allocated.status().code() == Code::kCorrupt) {
        rewind(id, manager_->usable_tokens(seq.id));
      } else if (seqs_.size() > 1 || pick(4) == 0) {
        free(any());
      }
      return false;
    }
    copied(seq, before);
    Tokens tokens = seq.tokens;
    while (tokens.size() < from + count)
      tokens.push_back(tokens.size() < seq.wanted.size() ? seq.wanted[tokens.size()]
                                                         : static_cast<TokenId>(pick(40) ? 7 : pick(3)));
    const std::vector<std::uint64_t> prefixes = prefix_hashes(tokens);
    const StepRows rows{seq.id, 0, count, from};
    k_.resize(count * kHeads * kDim), v_.resize(k_.size()), q_.assign(k_.size(), 0.25f), out_.resize(k_.size());
    const auto at = [](std::vector<float>& values) { return reinterpret_cast<DeviceAddress>(values.data()); };
    for (std::uint32_t layer = 0; layer < manager_->layout().layer_count; ++layer) {
      for (std::uint32_t i = 0; i < count; ++i) {
        const Rows& row = corpus_->rows(prefixes[from + i], from + i);
        std::copy_n(row.k.begin() + layer * kHeads * kDim, kHeads * kDim, k_.begin() + i * kHeads * kDim);
        std::copy_n(row.v.begin() + layer * kHeads * kDim, kHeads * kDim, v_.begin() + i * kHeads * kDim);
      }
      const Result<Fence> appended = manager_->append(layer, {&rows, 1}, at(k_), at(v_));
      const Result<Fence> attended =
          appended.ok() ? manager_->attend(layer, {&rows, 1}, {.query_heads = kHeads, .scale = 0.1f}, at(q_), at(out_))
                        : appended;
      if (!attended.ok()) {
        log("  attend: {}", attended.status().message());
        answered(attended.status());
        if (attended.status().code() == Code::kCorrupt) rewind(id, manager_->usable_tokens(seq.id));
        return false;
      }
    }
    const bool derived = attends_inexact(seq);
    const auto into = held_blocks(seq.id);  // before windows slide
    const Status committed = manager_->commit(seq.id, std::span(tokens).subspan(from));
    answered(committed);
    if (!committed.ok()) return false;
    seq.tokens = std::move(tokens);
    seq.prefixes = prefixes;
    seq.derived.resize(seq.tokens.size(), derived);
    derived_seen_ += derived;
    say(seq, from, into);
    return true;
  }

  // Anything before its next token that is not what the model computed on exact context.
  bool attends_inexact(const Seq& seq) {
    if (std::find(seq.derived.begin(), seq.derived.end(), true) != seq.derived.end()) return true;
    Lock lock(ManagerTestPeer::mutex(*manager_));
    const Sequence& held = ManagerTestPeer::sequence(*manager_, seq.id);
    for (std::uint32_t b = 0; b * kBlockTokens < seq.tokens.size(); ++b) {
      const BlockId id = held.tables[0].blocks[b];
      if (id == BlockId::kNone) continue;
      if (rows_coded(id, ManagerTestPeer::pool(*manager_).block(id).slot == SlotId::kNone).any()) return true;
    }
    return false;
  }

  // Copies of the block that a sequence goes on in have what was in it.
  void copied(const Seq& seq, const std::vector<std::vector<BlockId>>& before) {
    Lock lock(ManagerTestPeer::mutex(*manager_));
    const BlockPool& pool = ManagerTestPeer::pool(*manager_);
    const std::size_t tail = seq.tokens.size() / kBlockTokens, kept = seq.tokens.size() % kBlockTokens;
    const Sequence& held = ManagerTestPeer::sequence(*manager_, seq.id);
    for (std::size_t s = 0; s < held.tables.size(); ++s) {
      const std::vector<BlockId>& blocks = held.tables[s].blocks;
      for (std::size_t b = 0; b < blocks.size(); ++b) {
        if (blocks[b] == BlockId::kNone) continue;
        if (b < before[s].size() && before[s][b] == blocks[b]) {
          // It is going to write over what another has rewound behind.
          if (b != tail) continue;
          ASSERT_GE(said_[index(blocks[b])].count, kept) << "block " << index(blocks[b]);
          said_[index(blocks[b])].count = static_cast<std::uint32_t>(kept);
          continue;
        }
        Said& said = said_[index(blocks[b])];
        said = {.generation = pool.generation(blocks[b]),
                .count = 0,
                .position = static_cast<std::uint32_t>(b) * kBlockTokens,
                .rows = {},
                .derived = {}};
        if (b != tail || b >= before[s].size()) continue;
        const Said& old = said_[index(before[s][b])];
        said.count = static_cast<std::uint32_t>(kept);
        said.rows = old.rows;
        said.derived = old.derived & first_bits(said.count);
      }
    }
  }

  // Tokens from `from` on were computed by this sequence, into these blocks.
  void say(const Seq& seq, std::uint32_t from, const std::vector<std::vector<BlockId>>& into) {
    for (const std::vector<BlockId>& blocks : into)
      for (std::uint32_t t = from; t < seq.tokens.size(); ++t) {
        const BlockId id = blocks[t / kBlockTokens];
        if (id == BlockId::kNone) continue;
        Said& said = said_[index(id)];
        said.rows[t % kBlockTokens] = &corpus_->rows(seq.prefixes[t], t);
        said.derived[t % kBlockTokens] = seq.derived[t];
        said.count = t % kBlockTokens + 1;
      }
  }

  void fork() {
    if (seqs_.empty() || seqs_.size() >= 5) return;
    const int id = any();
    if (seqs_.at(id).preempted) return;
    const Result<SeqId> child = manager_->fork(seqs_.at(id).id);
    if (!child.ok()) return answered(child.status());
    const int forked = next_++;
    log("fork {} into {}", id, forked);
    Seq seq = seqs_.at(id);
    seq.id = *child;
    seqs_[forked] = std::move(seq);
  }

  void rewind() {
    if (seqs_.empty()) return;
    const int id = any();
    const auto size = static_cast<std::uint32_t>(seqs_.at(id).tokens.size());
    rewind(id, pick(3) ? size - std::min(size, pick(40)) : pick(size + 1));
  }
  void rewind(int id, std::uint32_t n) {
    Seq& seq = seqs_.at(id);
    if (seq.preempted) return;
    n = std::min(n, manager_->usable_tokens(seq.id));
    const Status status = manager_->rewind(seq.id, n);
    log("rewind {} from {} to {}{}", id, seq.tokens.size(), n, status.ok() ? "" : ": " + status.message());
    if (!status.ok()) return answered(status);
    seq.tokens.resize(n);
    seq.prefixes.resize(n);
    seq.derived.resize(n);
    if (pick(2)) seq.wanted.clear();
    if (n % kBlockTokens == 0) return;
    Lock lock(ManagerTestPeer::mutex(*manager_));
    for (const Table& table : ManagerTestPeer::sequence(*manager_, seq.id).tables) {
      const BlockId tail = table.blocks[n / kBlockTokens];
      // Nobody else sees what follows, and the sequence will write over it.
      if (tail != BlockId::kNone && ManagerTestPeer::pool(*manager_).block(tail).refs == 1)
        said_[index(tail)].count = n % kBlockTokens;
    }
  }

  void free() {
    if (!seqs_.empty()) free(any());
  }
  void free(int id) {
    log("free {}", id);
    EXPECT_OK(manager_->free(seqs_.at(id).id));
    seqs_.erase(id);
  }

  void preempt_or_resume() {
    if (seqs_.empty()) return;
    const int id = any();
    Seq& seq = seqs_.at(id);
    if (!seq.preempted) {
      log("preempt {}", id);
      const Status status = manager_->preempt(seq.id);
      if (!status.ok()) return answered(status);
      seq.preempted = true;
      return;
    }
    const Result<PrefixMatch> match = manager_->resume(seq.id);
    if (!match.ok()) return answered(match.status());
    log("resume {}: {} of {} tokens", id, match->tokens, seq.tokens.size());
    seq.preempted = false;
    const Tokens tokens = seq.tokens;
    took(seq, *match, tokens);
  }

  void prefetch() {
    if (seqs_.empty()) return;
    const int id = any();
    if (seqs_.at(id).preempted) return;
    const Result<Ticket> ticket = manager_->prefetch(seqs_.at(id).id);
    if (!ticket.ok()) return answered(ticket.status());
    log("prefetch {}", id);
    if (pick(4) == 0) {
      EXPECT_OK(manager_->cancel(*ticket));
    } else if (pick(2)) {
      answered(manager_->wait(*ticket));
    }
  }

  void settle() { EXPECT_OK(manager_->wait_idle()); }

  void resize() {
    const Config& config = manager_->config();
    if (config.pool.max_budget_bytes == 0) return;
    const std::uint64_t most = config.pool.max_budget_bytes, step = manager_->layout().page_bytes;
    const std::uint64_t budget = most - pick(40) * step;
    const Result<PoolResize> done = manager_->resize_pool(budget);
    log("resize_pool: {}", done.ok() ? fmt::format("{} slots", done->slots) : done.status().message());
    if (!done.ok() && done.status().code() != Code::kInvalidArgument) answered(done.status());
  }

  void lose_device() {
    if (lost_) return;
    lost_ = true;
    device_.lose();
    const Result<DeviceLoss> loss = manager_->replace_device(nullptr);
    ASSERT_TRUE(loss.ok()) << loss.status().message();
    log("replace_device: {} blocks kept, {} lost, {} sequences cut", loss->blocks_kept, loss->blocks_lost,
        loss->sequences_cut);
    std::vector<int> ids;
    for (const auto& [id, seq] : seqs_) ids.push_back(id);
    for (const int id : ids) rewind(id, ~0u);
  }

  // Full, busy and lost are answers.
  void answered(const Status& status) {
    EXPECT_TRUE(status.ok() || status.code() == Code::kNoSpace || status.code() == Code::kUnavailable ||
                status.code() == Code::kCorrupt)
        << to_string(status.code()) << ": " << status.message();
  }

  Setting setting_;
  std::mt19937_64 random_;
  ThreadPool threads_{2};
  HandDevice device_{threads_};
  std::unique_ptr<Manager> manager_;
  ManagerImpl* inside_ = nullptr;
  std::optional<Corpus> corpus_;
  std::uint32_t set_layers_ = 0;
  std::vector<Said> said_;       // by block
  std::vector<SeenFrame> seen_;  // by frame
  std::map<int, Seq> seqs_;
  int next_ = 0;
  std::uint32_t damaged_ = 0;
  bool lost_ = false;
  std::uint64_t coded_seen_ = 0, exact_seen_ = 0, derived_seen_ = 0;
  std::vector<float> k_, v_, q_, out_;
  std::deque<std::string> log_;
};

#if defined(__SANITIZE_THREAD__)
constexpr int kSteps = 150;
#elif defined(__SANITIZE_ADDRESS__)
constexpr int kSteps = 250;
#else
constexpr int kSteps = 300;
#endif
constexpr unsigned kSeeds = 3;

std::string artefact_file() {
  static const std::string path = [] {
    Artefact artefact = toy_artefact(firn::test::toy_model(2), {8});
    artefact.plans[0].report.measured = true;
    artefact.plans[0].report.measured_tokens = 512;
    const std::vector<std::byte> bytes = write_artefact(artefact);
    std::string to = FIRN_BINARY_DIR "/fidelity_random_test.safetensors";
    std::ofstream(to, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return to;
  }();
  return path;
}

class Fidelities : public testing::TestWithParam<Setting> {};

TEST_P(Fidelities, AreWhatIsInTheBlocks) {
  const char *only = std::getenv("FIRN_TEST_SEED"), *steps = std::getenv("FIRN_TEST_STEPS"),
             *seeds = std::getenv("FIRN_TEST_SEEDS");
  const unsigned long most = steps != nullptr ? std::strtoul(steps, nullptr, 10) : kSteps;
  const unsigned long count = seeds != nullptr ? std::strtoul(seeds, nullptr, 10) : kSeeds;
  const std::string artefact = std::string(GetParam().codec) == "kvtc" ? artefact_file() : "";
  std::uint64_t coded = 0, exact = 0, derived = 0, lossy_frames = 0, evicted = 0, copies = 0;
  for (unsigned seed = 1; seed <= count; ++seed) {
    if (only != nullptr && seed != std::strtoul(only, nullptr, 10)) continue;
    Trial trial(seed, GetParam(), artefact);
    ASSERT_TRUE(trial.ready());
    for (unsigned long step = 0; step < most; ++step) {
      trial.step();
      if (!GetParam().worker || step % 8 == 0) trial.check();
      if (step % 16 == 0) trial.verify();
      ASSERT_FALSE(testing::Test::HasFailure())
          << "FIRN_TEST_SEED=" << seed << ", step " << step << ", the last operations:" << trial.last_operations();
    }
    const Stats stats = trial.stats();
    coded += trial.coded_seen(), exact += trial.exact_seen(), derived += trial.derived_seen();
    lossy_frames += stats.frames_lossy, evicted += stats.evictions_with_copy, copies += stats.copy_on_writes;
  }
  if (only != nullptr) return;
  // What the run has to have done, or it proves little.
  EXPECT_GT(exact, most);
  EXPECT_GT(evicted, most / 10);
  EXPECT_GT(copies, most / 40);
  if (std::string(GetParam().codec) == "lossless" || std::string(GetParam().codec) == "raw") return;
  EXPECT_GT(lossy_frames, most / 40);
  EXPECT_GT(coded, most);
  EXPECT_GT(derived, most / 20);
}
INSTANTIATE_TEST_SUITE_P(
    Settings, Fidelities,
    testing::Values(Setting{"strict_q4", "q4"}, Setting{"strict_q8_worker", "q8", "strict", true},
                    Setting{"strict_q4_accept", "q4", "strict", false, "accept"}, Setting{"strict_kvtc", "kvtc"},
                    Setting{"strict_q8_device_lost", "q8", "strict", false, "recompute", 1, true},
                    Setting{"opportunistic_q4", "q4", "opportunistic"},
                    Setting{"opportunistic_q8_worker", "q8", "opportunistic", true},
                    Setting{"opportunistic_q4_accept", "q4", "opportunistic", false, "accept"},
                    Setting{"opportunistic_kvtc", "kvtc", "opportunistic"},
                    Setting{"opportunistic_q4_device_lost", "q4", "opportunistic", false, "recompute", 1, true},
                    Setting{"lossless_two_sets", "lossless", "strict", false, "recompute", 2},
                    Setting{"raw_three_sets_worker", "raw", "strict", true, "recompute", 3}),
    [](const auto& setting) { return std::string(setting.param.name); });

}  // namespace
}  // namespace firn::test
