// The manager on a device whose pool the host does not reach, and on one whose pool it does: the same bytes and the
// same attention as on the cpu device, under validation, whatever moves where.
#include <cmath>
#include <map>

#include "firn/manager.h"
#include "tests/core/manager/fixture.h"
#include "tests/core/vk/vk_fixture.h"

namespace firn::vk::testing {
namespace {

using test::Tokens;

constexpr std::uint32_t kLayers = 2, kHeads = 2, kQueryHeads = 4, kDim = 32;

ModelSpec toy_model() {
  ModelSpec model = test::small_model(kLayers, kHeads, kDim);
  model.groups[0].query_heads = kQueryHeads;
  return model;
}

// An engine whose keys, values and queries are a hash of the prefix; its buffers are the device's.
class Engine {
 public:
  explicit Engine(Manager& manager) : manager_(manager), arena_(manager.device(), 1u << 20) {
    q_ = arena_.take(kRows * kQueryHeads * kDim * 4);
    k_ = arena_.take(kRows * kHeads * kDim * 4);
    v_ = arena_.take(kRows * kHeads * kDim * 4);
    out_ = arena_.take(kRows * kQueryHeads * kDim * 4);
  }

  Status compute(SeqId seq, const Tokens& tokens, std::uint32_t from) {
    for (std::uint32_t at = from; at < tokens.size();) {
      const std::uint32_t count =
          std::min({kRows, manager_.config().pool.max_step_tokens, static_cast<std::uint32_t>(tokens.size()) - at});
      auto room = manager_.allocate(seq, count);
      if (room.status().code() == Code::kUnavailable) {
        FIRN_TRY(manager_.wait_room(seq, count));
        room = manager_.allocate(seq, count);
      }
      FIRN_TRY(room.status());
      for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
        fill(k_, tokens, at, count, kHeads * kDim, layer * 3 + 1);
        fill(v_, tokens, at, count, kHeads * kDim, layer * 3 + 2);
        const StepRows rows{seq, 0, count, at};
        FIRN_ASSIGN(const Fence fence, manager_.append(layer, {&rows, 1}, k_, v_));
        FIRN_TRY(manager_.device().timeline().wait(fence));  // the buffers are used again
      }
      FIRN_TRY(manager_.commit(seq, std::span(tokens).subspan(at, count)));
      at += count;
    }
    return {};
  }

  // [layer][row][query head][dim]
  Result<std::vector<float>> attend(SeqId seq, const Tokens& tokens, std::uint32_t from, std::uint32_t count) {
    std::vector<float> all;
    for (std::uint32_t layer = 0; layer < kLayers; ++layer) {
      fill(q_, tokens, from, count, kQueryHeads * kDim, layer * 3);
      const StepRows rows{seq, 0, count, from};
      FIRN_ASSIGN(const Fence fence, manager_.attend(layer, {&rows, 1}, {kQueryHeads, 0.3f, 0}, q_, out_));
      FIRN_TRY(manager_.device().timeline().wait(fence));
      const std::vector<float> out = arena_.get<float>(out_, std::size_t{count} * kQueryHeads * kDim);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }

 private:
  static constexpr std::uint32_t kRows = 64;
  void fill(DeviceAddress to, const Tokens& tokens, std::uint32_t from, std::uint32_t count, std::uint32_t width,
            std::uint64_t part) {
    std::uint64_t hash = 1;
    auto* floats = reinterpret_cast<float*>(arena_.host(to));
    for (std::uint32_t t = 0; t < from + count; ++t) {
      hash = (hash ^ static_cast<std::uint64_t>(tokens[t])) * 0x9E3779B97F4A7C15u;
      if (t < from) continue;
      for (std::uint32_t i = 0; i < width; ++i) floats[(t - from) * width + i] = unit_variance(hash + part, i);
    }
  }
  Manager& manager_;
  Arena arena_;
  DeviceAddress q_ = 0, k_ = 0, v_ = 0, out_ = 0;
};

Config tiered_config() {
  const ModelSpec model = toy_model();
  Config config;
  config.device = "cpu";  // the environment brings the device
  config.threads = 1;
  config.protect.recent = 32;
  config.pool.max_step_tokens = 32;
  config.pool.staging_bytes = kSplitTokens * model.groups[0].kv.token_bytes();
  config.pool.budget_bytes = config.pool.staging_bytes + (24 + kMaxExtentBlocks) * model.block_bytes() + (64u << 10);
  config.host.budget_bytes = 8u << 20;
  config.host.huge_pages = false;
  config.mover.worker = false;
  return config;
}

struct Place {
  const char* name;
  bool hidden, worker;
};

class ManagerOnVulkan : public VulkanTest, public ::testing::WithParamInterface<Place> {};

TEST_P(ManagerOnVulkan, KeepsEveryByteAndAttendsAsTheCpuDoes) {
  Hooks hooks = strict_hooks();
  hooks.hide_host_memory = GetParam().hidden;
  const auto device = make(hooks);
  ASSERT_TRUE(device);
  ThreadPool threads(2);
  Config config = tiered_config();
  config.mover.worker = GetParam().worker;
  Config flat_config = tiered_config();
  flat_config.pool.budget_bytes = 64u << 20;
  flat_config.host.budget_bytes = 0;
  const auto manager =
      test::make_manager(config, toy_model(), {.threads = &threads, .device = device.get(), .clock = {}});
  const auto flat = test::make_manager(flat_config, toy_model());
  ASSERT_TRUE(manager && flat);
  EXPECT_EQ(manager->ledger().spent(Budget::kDevice) <= config.pool.budget_bytes, true);
  Engine engine(*manager), flat_engine(*flat);

  std::vector<Tokens> prompts{test::distinct(700, 1), test::distinct(90, 5000)};
  prompts.push_back(test::joined(test::first_of(prompts[0], 300), test::distinct(60, 9000)));  // shares a prefix
  for (const Tokens& tokens : prompts) {
    const auto begun = manager->begin(tokens), flat_begun = flat->begin(tokens);
    ASSERT_TRUE(begun.ok() && flat_begun.ok());
    ASSERT_OK(engine.compute(begun->seq, tokens, begun->match.tokens));
    ASSERT_OK(flat_engine.compute(flat_begun->seq, tokens, flat_begun->match.tokens));
    const auto length = static_cast<std::uint32_t>(tokens.size());
    for (const std::uint32_t rows : {1u, 5u, 20u}) {
      const auto got = engine.attend(begun->seq, tokens, length - rows, rows);
      const auto want = flat_engine.attend(flat_begun->seq, tokens, length - rows, rows);
      ASSERT_TRUE(got.ok()) << got.status().message();
      ASSERT_TRUE(want.ok()) << want.status().message();
      ASSERT_EQ(got->size(), want->size());
      for (std::size_t i = 0; i < got->size(); ++i)
        ASSERT_NEAR((*got)[i], (*want)[i], 1e-3) << length << " tokens, " << rows << " rows, " << i;
    }
    // A fork that writes into the shared tail: its copy happens on the device.
    const auto twin = manager->fork(begun->seq);
    ASSERT_TRUE(twin.ok());
    ASSERT_OK(engine.compute(*twin, test::joined(tokens, test::distinct(3, 70'000)), length));
    ASSERT_OK(manager->free(*twin, manager->device().timeline().last()));

    // Raw bytes of whatever is resident.
    const std::vector<SlotId> here = manager->block_table(begun->seq), there = flat->block_table(flat_begun->seq);
    std::uint32_t compared = 0;
    for (std::size_t i = 0; i < tokens.size() / kBlockTokens; ++i) {
      if (here[i] == SlotId::kNone) continue;
      const auto ours = manager->hash_slot(here[i]), theirs = flat->hash_slot(there[i]);
      ASSERT_TRUE(ours.ok()) << ours.status().message();
      ASSERT_EQ(*ours, *theirs) << "block " << i;
      ++compared;
    }
    EXPECT_GT(compared, 2u);
    ASSERT_OK(manager->free(begun->seq, manager->device().timeline().last()));
    ASSERT_OK(flat->free(flat_begun->seq));
    EXPECT_EQ(test::broken(*manager), "");
  }
  EXPECT_GT(manager->stats().blocks_staged, 0u) << "the pool was meant to be too small";

  // Everything leaves, the pool is poisoned, and comes back from frames bit by bit.
  ASSERT_OK(manager->wait_idle());
  ASSERT_TRUE(manager->empty_pool(0x5A).ok());
  const Tokens& tokens = prompts[1];
  const auto begun = manager->begin(tokens), flat_begun = flat->begin(tokens);
  ASSERT_TRUE(begun.ok() && flat_begun.ok());
  EXPECT_GE(begun->match.tokens_on_host, 64u);
  const auto ticket = manager->prefetch(begun->seq);
  ASSERT_TRUE(ticket.ok());
  ASSERT_OK(manager->wait(*ticket));
  const std::vector<SlotId> here = manager->block_table(begun->seq), there = flat->block_table(flat_begun->seq);
  std::uint32_t promoted = 0;
  for (std::size_t i = 0; i < begun->match.tokens / kBlockTokens; ++i) {
    if (here[i] == SlotId::kNone) continue;
    const auto ours = manager->hash_slot(here[i]), theirs = flat->hash_slot(there[i]);
    ASSERT_TRUE(ours.ok() && theirs.ok());
    ASSERT_EQ(*ours, *theirs) << "restored block " << i;
    ++promoted;
  }
  EXPECT_GE(promoted, 4u);
  ASSERT_OK(manager->free(begun->seq));
  EXPECT_EQ(test::broken(*manager), "");
}
INSTANTIATE_TEST_SUITE_P(Places, ManagerOnVulkan,
                         ::testing::Values(Place{"hidden_pump", true, false}, Place{"hidden_worker", true, true},
                                           Place{"unified_worker", false, true}),
                         [](const auto& place) { return std::string(place.param.name); });

// Arenas of the host tier that the device has proved it can reach: it moves stored blocks itself, and what comes back
// is what staging brings. The budgets do not notice, for memory is imported that was charged already.
TEST_F(VulkanTest, ImportedArenasAndStagedOnesHoldTheSameBytes) {
  Config config = tiered_config();
  config.host.codec = "raw";
  config.protect.sinks = 0;
  const Tokens tokens = test::distinct(520, 1);
  std::vector<std::uint64_t> hashes[2];
  std::vector<float> attended[2];
  std::uint64_t spent[2] = {};
  for (const bool off : {false, true}) {
    if (off) setenv("FIRN_VULKAN_WITHOUT", "VK_EXT_external_memory_host", 1);
    const auto device = make(strict_hooks());
    unsetenv("FIRN_VULKAN_WITHOUT");
    ASSERT_TRUE(device);
    if (!off && device->report().host_memory != "imported") GTEST_SKIP() << device->report().host_memory;
    EXPECT_EQ(device->report().host_memory.substr(0, 8), off ? "staged: " : "imported");
    const std::uint64_t before = device->memory().region_bytes();
    {
      const auto manager =
          test::make_manager(config, toy_model(), {.threads = nullptr, .device = device.get(), .clock = {}});
      ASSERT_TRUE(manager);
      const std::uint64_t imported = manager->stats().host_imported_bytes;
      EXPECT_EQ(imported > (6u << 20), !off) << imported;
      EXPECT_LE(imported, config.host.budget_bytes);
      Engine engine(*manager);
      const auto begun = manager->begin(tokens);
      ASSERT_TRUE(begun.ok());
      ASSERT_OK(engine.compute(begun->seq, tokens, 0));
      ASSERT_OK(manager->free(begun->seq, manager->device().timeline().last()));
      ASSERT_OK(manager->wait_idle());
      ASSERT_TRUE(manager->empty_pool(0x5A).ok());
      const std::uint64_t stored = manager->stats().blocks_direct;
      EXPECT_EQ(stored, off ? 0 : 32u);
      const auto again = manager->begin(tokens);
      ASSERT_TRUE(again.ok());
      ASSERT_EQ(again->match.tokens_on_host, 512u);
      const auto ticket = manager->prefetch(again->seq);
      ASSERT_TRUE(ticket.ok());
      ASSERT_OK(manager->wait(*ticket));
      EXPECT_EQ(manager->stats().blocks_direct > stored, !off);
      EXPECT_EQ(manager->stats().blocks_direct - stored, off ? 0 : manager->stats().blocks_promoted);
      for (const SlotId slot : manager->block_table(again->seq))
        if (slot != SlotId::kNone) hashes[off].push_back(*manager->hash_slot(slot));
      ASSERT_OK(engine.compute(again->seq, tokens, 512));
      const auto out = engine.attend(again->seq, tokens, 515, 5);
      ASSERT_TRUE(out.ok()) << out.status().message();
      attended[off] = *out;
      spent[off] = manager->ledger().spent(Budget::kHost) + manager->ledger().spent(Budget::kDevice);
      EXPECT_EQ(test::broken(*manager), "");
      ASSERT_OK(manager->free(again->seq, manager->device().timeline().last()));
    }
    EXPECT_EQ(device->memory().region_bytes(), before) << "imports went back";
  }
  EXPECT_GT(hashes[0].size(), 16u);
  EXPECT_EQ(hashes[0], hashes[1]);
  EXPECT_EQ(attended[0], attended[1]);
  EXPECT_EQ(spent[0], spent[1]);
}

// The configuration names the device, and says what it has become.
TEST_F(VulkanTest, ManagerTakesTheDeviceThatTheConfigurationNames) {
  Config config = tiered_config();
  config.device = "lavapipe";
  const auto manager = test::make_manager(config, toy_model());
  ASSERT_TRUE(manager);
  EXPECT_NE(manager->device().memory().info().name.find("llvmpipe"), std::string::npos);
  config.device = "no such card";
  const auto none = Manager::create(config, toy_model());
  EXPECT_EQ(none.status().code(), Code::kUnavailable);
  EXPECT_NE(none.status().message().find("llvmpipe"), std::string::npos) << none.status().message();
}

// A pool that the device refuses in one piece is taken in halves; one that it cannot give is refused with its reason.
TEST_F(VulkanTest, ChunksAreHalvedWhenTheDeviceRefusesThem) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  Config config = tiered_config();
  config.host.budget_bytes = 0;
  config.pool.budget_bytes = 96u << 20;
  // Workspace comes first, then the one chunk that holds the whole pool.
  device->memory().fail_allocation(2);
  const auto manager = Manager::create(config, toy_model(), {.threads = nullptr, .device = device.get(), .clock = {}});
  ASSERT_TRUE(manager.ok()) << manager.status().message();
  EXPECT_GT((*manager)->stats().pool_bytes, 90u << 20);

  Hooks small = strict_hooks();
  small.heap_bytes = 48u << 20;
  const auto little = make(small);
  ASSERT_TRUE(little);
  const auto refused = Manager::create(config, toy_model(), {.threads = nullptr, .device = little.get(), .clock = {}});
  EXPECT_EQ(refused.status().code(), Code::kNoSpace) << refused.status().message();
  EXPECT_EQ(little->memory().region_bytes(), 0u) << "nothing stays behind";
}

// Device lost in the middle: a clear error, nothing hangs, everything can be torn down.
TEST_F(VulkanTest, ALostDeviceFailsClearlyAndHangsNobody) {
  Hooks hooks = strict_hooks();
  const auto device = make(hooks);
  ASSERT_TRUE(device);
  Config config = tiered_config();
  config.mover.worker = true;
  config.protect.sinks = 0;  // they have no frame while a sequence lives
  const auto manager =
      test::make_manager(config, toy_model(), {.threads = nullptr, .device = device.get(), .clock = {}});
  ASSERT_TRUE(manager);
  {
    Engine engine(*manager);
    const Tokens tokens = test::distinct(200, 1);
    const auto begun = manager->begin(tokens);
    ASSERT_TRUE(begun.ok());
    ASSERT_OK(engine.compute(begun->seq, tokens, 0));
    device->context().lose();
    const auto out = engine.attend(begun->seq, tokens, 199, 1);
    EXPECT_EQ(out.status().code(), Code::kIo);
    EXPECT_NE(out.status().message().find("create the manager anew"), std::string::npos) << out.status().message();
    const Status idle = manager->wait_idle();
    EXPECT_TRUE(idle.ok() || idle.code() == Code::kIo) << idle.message();
  }
  EXPECT_TRUE(device->lost());
  const auto loss = manager->replace_device();
  ASSERT_TRUE(loss.ok()) << loss.status().message();
  EXPECT_EQ(device->memory().region_bytes(), 0u);
  EXPECT_EQ(manager->device().memory().info().name, "cpu");
  // The same sequence on the cpu device: what had a frame is read from it, the rest is computed again.
  Engine engine(*manager);
  const std::uint32_t left = manager->usable_tokens(SeqId{1});
  EXPECT_EQ(left > 0, loss->blocks_kept > 0);
  ASSERT_OK(manager->rewind(SeqId{1}, left));
  const Tokens tokens = test::distinct(200, 1);
  ASSERT_OK(engine.compute(SeqId{1}, tokens, left));
  const auto flat = test::make_manager(config, toy_model());
  Engine flat_engine(*flat);
  const auto flat_begun = flat->begin(tokens);
  ASSERT_TRUE(flat_begun.ok());
  ASSERT_OK(flat_engine.compute(flat_begun->seq, tokens, 0));
  const auto got = engine.attend(SeqId{1}, tokens, 195, 5), want = flat_engine.attend(flat_begun->seq, tokens, 195, 5);
  ASSERT_TRUE(got.ok() && want.ok()) << got.status().message();
  EXPECT_EQ(*got, *want);
  EXPECT_EQ(test::broken(*manager), "");
}

}  // namespace
}  // namespace firn::vk::testing
