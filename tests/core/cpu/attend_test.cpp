// What attend computes: attention as double precision computes it, for every shape, from no byte that is not its own.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <numeric>

#include "firn/thread_pool.h"
#include "tests/core/cpu/attend_fixture.h"

namespace firn::testing {
namespace {

// Unit-variance inputs; both sides read the same rounded keys and values, so only f32 arithmetic differs.
constexpr double kTolerance = 2e-5;

struct AttendTest : ::testing::Test {
  ThreadPool threads{2};
  std::unique_ptr<Device> device = make_cpu_device(threads);

  void expect_close(const Attention& attention, const std::vector<Rows>& rows) {
    const double difference = largest_difference(attention.run(*device, rows), attention.reference(rows));
    EXPECT_LE(difference, kTolerance) << describe(rows.front().sequence->shape(), attention);
  }
};

TEST_F(AttendTest, DecodesLikeDoublePrecisionInEveryShape) {
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32})
    for (const std::uint32_t dim : {64u, 80u, 96u, 128u, 256u, 40u, 33u, 7u})
      for (const std::uint32_t group : {1u, 3u, 8u}) {
        const KvShape shape{dtype, 2, dim, dim};
        Sequence sequence(shape, 277, dim + group);
        expect_close({.query_heads = 2 * group}, {{&sequence, 276, 1}});
      }
}

TEST_F(AttendTest, AttendsChunksLikeDoublePrecisionForEveryGroupSize) {
  for (std::uint32_t group = 1; group <= 8; ++group) {
    const KvShape shape{Dtype::kF16, 2, 64, 64};
    Sequence sequence(shape, 300, group);
    expect_close({.query_heads = 2 * group}, {{&sequence, 283, 17}});
  }
}

TEST_F(AttendTest, KeysAndValuesMayDifferInWidthAndManyHeadsMayShareOneKey) {
  for (const auto& [head_dim, value_dim] : {std::pair{576u, 512u}, std::pair{64u, 128u}, std::pair{24u, 50u}}) {
    const KvShape shape{Dtype::kF16, 1, head_dim, value_dim};
    Sequence sequence(shape, 40, head_dim);
    expect_close({.query_heads = 128}, {{&sequence, 39, 1}});
    expect_close({.query_heads = 16}, {{&sequence, 20, 20}});
  }
}

TEST_F(AttendTest, WindowsAndSoftCapsHideAndBendWhatTheySay) {
  const KvShape shape{Dtype::kF16, 1, 64, 64};
  Sequence sequence(shape, 600, 5);
  for (const std::uint32_t window : {0u, 1u, 5u, 16u, 100u, 256u, 300u, 10000u})
    for (const float cap : {0.0f, 2.0f, 30.0f}) {
      expect_close({.query_heads = 2, .soft_cap = cap, .window = window}, {{&sequence, 599, 1}});
      expect_close({.query_heads = 2, .soft_cap = cap, .window = window}, {{&sequence, 500, 40}});
    }
}

TEST_F(AttendTest, OneCallTakesSequencesOfEveryLength) {
  const KvShape shape{Dtype::kF16, 3, 64, 64};
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<Rows> rows;
  for (const std::uint32_t tokens : {1u, 2u, 15u, 16u, 17u, 255u, 256u, 257u, 511u, 513u}) {
    sequences.push_back(std::make_unique<Sequence>(shape, tokens, tokens));
    const std::uint32_t chunk = std::min(tokens, tokens % 3 == 0 ? 40u : 1u);
    rows.push_back({sequences.back().get(), tokens - chunk, chunk});
  }
  for (const std::uint32_t wave : {1u, 2u, 100u}) expect_close({.query_heads = 9, .splits_a_wave = wave}, rows);
}

TEST_F(AttendTest, ReadsNothingBehindTheTokenCount) {
  // The same memory, declared shorter: NaN follow in the same block, in the blocks behind, and in the gaps between
  // rows.
  for (const Layout layout : {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kScattered})
    for (const std::uint32_t tokens : {1u, 3u, 16u, 37u, 255u, 257u}) {
      const KvShape shape{Dtype::kF16, 2, 64, 64};
      Sequence whole(shape, 320, 3, layout), part(shape, tokens, 3, layout);
      for (std::uint32_t t = tokens; t < whole.tokens(); ++t)
        for (std::uint32_t h = 0; h < 2; ++h) {
          std::memset(whole.key(t, h), 0xFF, 128);
          std::memset(whole.value(t, h), 0xFF, 128);
        }
      const Attention attention{.query_heads = 4};
      const std::uint32_t chunk = std::min(tokens, 12u);
      const std::vector<float> got = attention.run(*device, {{&whole, tokens - chunk, chunk}});
      EXPECT_TRUE(same_bits(got, attention.run(*device, {{&part, tokens - chunk, chunk}}))) << tokens << " tokens";
    }
}

TEST_F(AttendTest, AFutureInfinityOrNanDoesNotReachEarlierRows) {
  const KvShape shape{Dtype::kF16, 1, 64, 64};
  Sequence clean(shape, 60, 4), spoiled(shape, 60, 4);
  store(Dtype::kF16, INFINITY, spoiled.value(50, 0) + 6);
  store(Dtype::kF16, INFINITY, spoiled.key(51, 0) + 6);
  std::memset(spoiled.value(52, 0), 0xFF, 128);
  const Attention attention{.query_heads = 3};
  const std::vector<float> want = attention.run(*device, {{&clean, 20, 30}});
  std::vector<float> got = attention.run(*device, {{&spoiled, 20, 40}});
  got.resize(want.size());  // rows 20 to 49 see none of it, though their chunk reads the block
  EXPECT_TRUE(same_bits(got, want));
}

TEST_F(AttendTest, BlocksWithoutAnAddressTakeNoPart) {
  const KvShape shape{Dtype::kF16, 2, 64, 64};
  Sequence sequence(shape, 400, 6);
  // Blocks that a window of 100 hides from position 399 may be gone altogether.
  const Attention attention{.query_heads = 4, .window = 100};
  const std::vector<float> want = attention.run(*device, {{&sequence, 399, 1}});
  for (std::uint32_t block = 0; block < 300 / kBlockTokens; ++block) sequence.views()[block] = BlockView{};
  EXPECT_TRUE(same_bits(attention.run(*device, {{&sequence, 399, 1}}), want));
  // Those it does not hide count as if they were not there: here nothing else is, and nothing gives zeros.
  for (BlockView& view : sequence.views()) view = BlockView{};
  for (const std::uint32_t rows : {1u, 20u})
    for (const float value : attention.run(*device, {{&sequence, 399, rows}})) ASSERT_EQ(value, 0.0f);
}

// Every way that a batch can be cut and seen: the mass of each block as double precision has it, a whole row's as many
// as it has query heads, zero where nothing is seen, and the same bits whatever the waves; out does not notice.
TEST_F(AttendTest, TellsWhatEachBlockWasWorth) {
  const KvShape shape{Dtype::kF16, 2, 64, 64};
  Sequence longest(shape, 700, 21), shorter(shape, 300, 22), few(shape, 5, 23);
  const std::vector<Rows> rows{{&longest, 699, 1}, {&shorter, 280, 20}, {&few, 0, 5}, {&longest, 600, 3}};
  for (const std::uint32_t window : {0u, 100u, 300u})
    for (const float cap : {0.0f, 2.0f}) {
      const Attention attention{
          .query_heads = 6, .soft_cap = cap, .window = window, .skip_unseen_splits = true, .mass_blocks = 45};
      const std::vector<float> out = attention.run(*device, rows);
      const std::vector<float> mass = attention.mass;
      EXPECT_LE(largest_difference(mass, attention.mass_reference(rows)), kTolerance) << describe(shape, attention);
      for (std::size_t row = 0; row < mass.size() / 45; ++row)
        EXPECT_NEAR(std::accumulate(mass.begin() + row * 45, mass.begin() + (row + 1) * 45, 0.0), 6, 1e-4) << row;
      Attention other = attention;
      other.splits_a_wave = 1;
      other.run(*device, rows);
      EXPECT_TRUE(same_bits(other.mass, mass)) << "one split a wave";
      other = attention;
      other.mass_blocks = 0;
      EXPECT_TRUE(same_bits(other.run(*device, rows), out)) << "without mass";
      other = attention;
      other.run(*device, {{&shorter, 290, 1}});
      EXPECT_EQ(std::memcmp(other.mass.data(), mass.data() + 11 * 45, 45 * sizeof(float)), 0) << "a row alone";
    }
  // Blocks that are not there, and rows that see nothing.
  for (std::uint32_t block = 4; block < 30; ++block) longest.views()[block] = BlockView{};
  for (BlockView& view : few.views()) view = BlockView{};
  const Attention attention{.query_heads = 6, .mass_blocks = 50};
  attention.run(*device, rows);
  EXPECT_LE(largest_difference(attention.mass, attention.mass_reference(rows)), kTolerance);
  for (std::uint32_t block = 4; block < 30; ++block) EXPECT_EQ(attention.mass[block], 0.0f) << block;
  EXPECT_EQ(attention.mass[21 * 50], 0.0f) << "a row that sees nothing";
}

TEST_F(AttendTest, RowsWithoutItemsGiveZeros) {
  std::vector<float> q(3 * 64, 1.0f), state(3 * 66, NAN), out(3 * 64, NAN);
  AttendBatch batch{.shape = {Dtype::kF16, 1, 64, 64}, .query_heads = 1, .scale = 1, .row_count = 3};
  batch.q = reinterpret_cast<DeviceAddress>(q.data());
  batch.state = reinterpret_cast<DeviceAddress>(state.data());
  batch.out = reinterpret_cast<DeviceAddress>(out.data());
  ASSERT_TRUE(device->kernels().attend(batch).ok());
  for (const float value : out) ASSERT_EQ(value, 0.0f);
}

TEST_F(AttendTest, LogitsFarApartNeitherOverflowNorVanish) {
  const KvShape shape{Dtype::kF32, 1, 64, 64};
  Sequence sequence(shape, 600, 8);
  for (std::uint32_t t = 0; t < 600; ++t)  // keys 40 times as long: logits of hundreds, the largest in another split
    for (std::uint32_t i = 0; i < 64; ++i)
      store(Dtype::kF32, 40 * load(Dtype::kF32, sequence.key(t, 0) + 4 * i), sequence.key(t, 0) + 4 * i);
  const Attention attention{.query_heads = 1};
  EXPECT_LE(
      largest_difference(attention.run(*device, {{&sequence, 560, 40}}), attention.reference({{&sequence, 560, 40}})),
      1e-3);
}

TEST_F(AttendTest, AnImpossibleBatchIsRefusedWithTheItemsNumber) {
  std::vector<float> q(64), out(64), state(66), partials(16 + 66);
  std::vector<std::byte> block(16 * 256);
  const auto address = [](auto& memory) { return reinterpret_cast<DeviceAddress>(memory.data()); };
  const BlockView view{address(block), address(block), 256, 128, 256, 128};
  const AttendItem good{0, 1, 15, 0, 16, 0};
  AttendBatch batch{.shape = {Dtype::kF16, 1, 64, 64}, .query_heads = 1, .scale = 1, .row_count = 1};
  batch.q = address(q);
  batch.out = address(out);
  batch.state = address(state);
  batch.partials = address(partials);
  batch.views = {&view, 1};
  const auto refusal = [&](AttendItem item) {
    const AttendItem items[2] = {good, item};
    batch.items = items;
    const Result<Fence> result = device->kernels().attend(batch);
    EXPECT_EQ(result.status().code(), Code::kInvalidArgument);
    EXPECT_NE(result.status().message().find("attend: item 1"), std::string::npos) << result.status().message();
    return result.status().message();
  };
  EXPECT_NE(refusal({1, 1, 15, 0, 16, 0}).find("rows"), std::string::npos);
  EXPECT_NE(refusal({0, 0, 15, 0, 16, 0}).find("rows"), std::string::npos);
  EXPECT_NE(refusal({0, 1, 15, 100, 16, 0}).find("split"), std::string::npos);
  EXPECT_NE(refusal({0, 1, 15, 0, 0, 0}).find("token_count"), std::string::npos);
  EXPECT_NE(refusal({0, 1, 300, 0, 257, 0}).find("token_count"), std::string::npos);
  EXPECT_NE(refusal({0, 1, 16, 0, 17, 0}).find("views"), std::string::npos);
  EXPECT_NE(refusal({0, 1, ~0u, 0, 16, 0}).find("position"), std::string::npos);

  const auto refused = [&](AttendBatch bad, const std::string& what) {
    const Result<Fence> result = device->kernels().attend(bad);
    EXPECT_EQ(result.status().code(), Code::kInvalidArgument);
    EXPECT_NE(result.status().message().find(what), std::string::npos) << result.status().message();
  };
  batch.items = {&good, 1};
  ASSERT_TRUE(device->kernels().attend(batch).ok());
  AttendBatch bad = batch;
  bad.shape.kv_heads = 2;
  refused(bad, "query_heads");
  bad = batch;
  bad.shape.head_dim = 0;
  refused(bad, "head_dim");
  bad = batch;
  bad.shape.value_dim = kMaxHeadDim + 1;
  refused(bad, "value_dim");
  bad = batch;
  bad.shape.dtype = Dtype{9};
  refused(bad, "dtype");
  bad = batch;
  bad.partials = 0;
  refused(bad, "partials");
  bad = batch;
  bad.out = 0;
  refused(bad, "out");
  bad = batch;
  bad.mass = address(out);
  bad.mass_blocks = 1;
  refused(bad, "mass_scratch");
  bad.mass_scratch = address(state);
  ASSERT_TRUE(device->kernels().attend(bad).ok());
  bad.mass_blocks = 0;
  refused(bad, "mass_blocks");
  bad.mass_blocks = ~0u;
  bad.query_heads = 2;
  refused(bad, "mass_blocks");
}

// Leaves the choice of instruction set as it was.
struct UseTarget {
  explicit UseTarget(std::int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~UseTarget() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

TEST_F(AttendTest, EveryInstructionSetAgreesAndThoseThatFuseAgreeBitByBit) {
  const std::int64_t here = hwy::SupportedTargets();
  std::vector<std::pair<const char*, std::int64_t>> targets;
  for (const auto& [name, target] : {std::pair<const char*, std::int64_t>{"SSE4", HWY_SSE4},
                                     {"AVX2", HWY_AVX2},
                                     {"AVX3", HWY_AVX3},
                                     {"SCALAR", HWY_SCALAR},
                                     {"EMU128", HWY_EMU128},
                                     {"NEON", HWY_NEON}})
    if ((here & target) != 0 || target == HWY_SCALAR) targets.emplace_back(name, target);
  ASSERT_GE(targets.size(), 1u);
  std::vector<float> fused;
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32})
    for (const std::uint32_t dim : {64u, 72u, 128u}) {
      const KvShape shape{dtype, 2, dim, dim};
      Sequence sequence(shape, 300, dim);
      const Attention attention{.query_heads = 6, .soft_cap = 20, .window = 290};
      const std::vector<Rows> rows{{&sequence, 299, 1}, {&sequence, 270, 30}};
      const std::vector<double> want = attention.reference(rows);
      fused.clear();
      for (const auto& [name, target] : targets) {
        const UseTarget use(target);
        const std::vector<float> got = attention.run(*device, rows);
        EXPECT_LE(largest_difference(got, want), kTolerance) << name << ", " << describe(shape, attention);
        if (target != HWY_AVX2 && target != HWY_AVX3) continue;
        if (fused.empty()) fused = got;
        EXPECT_TRUE(same_bits(got, fused)) << name << ", " << describe(shape, attention);
      }
    }
}

// What is no number goes through as in the formula: softmax with the maximum taken off, then the weighted sum.
TEST_F(AttendTest, InfinitiesAndNansGiveWhatTheFormulaGives) {
  using Spoil = void (*)(Sequence&, Dtype, std::uint32_t bytes);
  static constexpr auto set_key = [](Sequence& s, Dtype dtype, std::uint32_t t, double x) {
    store(dtype, x, s.key(t, 0));
  };
  const std::vector<std::pair<const char*, Spoil>> spoils{
      {"255 poisoned leading tokens",
       [](Sequence& s, Dtype, std::uint32_t bytes) {
         for (std::uint32_t t = 0; t < 255; ++t)
           std::memset(s.key(t, 0), 0xFF, bytes), std::memset(s.value(t, 0), 0xFF, bytes);
       }},
      {"a poisoned split",
       [](Sequence& s, Dtype, std::uint32_t bytes) {
         for (std::uint32_t t = 256; t < 512; ++t) std::memset(s.key(t, 0), 0xFF, bytes);
       }},
      {"one NaN among the keys",
       [](Sequence& s, Dtype, std::uint32_t bytes) { std::memset(s.key(300, 0), 0xFF, bytes); }},
      {"the last key is NaN", [](Sequence& s, Dtype, std::uint32_t bytes) { std::memset(s.key(599, 0), 0xFF, bytes); }},
      {"the first key is NaN", [](Sequence& s, Dtype, std::uint32_t bytes) { std::memset(s.key(0, 0), 0xFF, bytes); }},
      {"one value is NaN",
       [](Sequence& s, Dtype, std::uint32_t bytes) { std::memset(s.value(20, 0), 0xFF, bytes / 2); }},
      {"one score is infinite", [](Sequence& s, Dtype dtype, std::uint32_t) { set_key(s, dtype, 100, INFINITY); }},
      {"scores of a split are infinite",
       [](Sequence& s, Dtype dtype, std::uint32_t) {
         for (std::uint32_t t = 0; t < 256; ++t) set_key(s, dtype, t, INFINITY);
       }},
      {"scores of two splits are infinite",
       [](Sequence& s, Dtype dtype, std::uint32_t) {
         for (std::uint32_t t = 0; t < 512; ++t) set_key(s, dtype, t, -INFINITY);
       }},
      {"all scores are infinite",
       [](Sequence& s, Dtype dtype, std::uint32_t) {
         for (std::uint32_t t = 0; t < 600; ++t) set_key(s, dtype, t, INFINITY);
       }},
      {"an infinite value", [](Sequence& s, Dtype dtype, std::uint32_t) { store(dtype, INFINITY, s.value(570, 0)); }},
      {"two infinite values",
       [](Sequence& s, Dtype dtype, std::uint32_t) {
         store(dtype, INFINITY, s.value(570, 0)), store(dtype, -INFINITY, s.value(10, 0));
       }},
      {"an infinite value whose weight may be zero",
       [](Sequence& s, Dtype dtype, std::uint32_t) {
         set_key(s, dtype, 30, INFINITY), store(dtype, INFINITY, s.value(30, 0));
       }},
      {"infinite values of a split whose weights may all be zero",
       [](Sequence& s, Dtype dtype, std::uint32_t) {
         for (std::uint32_t t = 0; t < 256; ++t) set_key(s, dtype, t, INFINITY);
         store(dtype, INFINITY, s.value(9, 0));
       }},
  };
  const std::int64_t here = hwy::SupportedTargets();
  std::vector<std::int64_t> targets{HWY_SCALAR};
  for (const std::int64_t target : {HWY_SSE4, HWY_AVX2, HWY_AVX3, HWY_NEON})
    if ((here & target) != 0) targets.push_back(target);
  std::size_t broken = 0, whole = 0;
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32})
    for (const std::uint32_t dim : {64u, 72u})
      for (const auto& [name, spoil] : spoils) {
        const KvShape shape{dtype, 1, dim, dim};
        Sequence sequence(shape, 600, dim);
        spoil(sequence, dtype, dim * bytes_of(dtype));
        const std::vector<Rows> rows{{&sequence, 599, 1}, {&sequence, 560, 40}, {&sequence, 20, 3}};
        for (const Attention& attention :
             std::vector<Attention>{{.query_heads = 2},
                                    {.query_heads = 2, .soft_cap = 3},
                                    {.query_heads = 2, .window = 290, .splits_a_wave = 1}}) {
          const std::vector<double> want = attention.reference(rows);
          for (const std::int64_t target : targets) {
            const UseTarget use(target);
            const std::vector<float> got = attention.run(*device, rows);
            for (std::size_t i = 0; i < got.size(); ++i) {
              const auto value = static_cast<double>(got[i]);
              const bool same = std::isnan(want[i])   ? std::isnan(value)
                                : std::isinf(want[i]) ? value == want[i]
                                                      : std::fabs(value - want[i]) < 2e-3;
              ASSERT_TRUE(same) << name << ", " << describe(shape, attention) << ", target " << target << ": element "
                                << i << " is " << value << ", not " << want[i];
              ++(std::isfinite(want[i]) ? whole : broken);
            }
          }
        }
      }
  EXPECT_GT(broken, 10000u);
  EXPECT_GT(whole, 10000u);
}

}  // namespace
}  // namespace firn::testing
