// attend on the vulkan device: within 1e-3 of double precision and of the cpu device, and bits that depend on a row and
// its tokens alone.
#include <cmath>
#include <functional>
#include <limits>

#include "tests/core/vk/vk_fixture.h"

namespace firn::vk::testing {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

// Rows asked of one sequence: tokens [position, position + rows).
struct Rows {
  std::uint32_t sequence, position, rows;
};

struct Case {
  KvShape shape;
  std::uint32_t query_heads;
  std::vector<std::uint32_t> tokens;  // of each sequence
  std::vector<Rows> rows;
  Layout layout = Layout::kHeadMajor;
  float soft_cap = 0;
  std::uint32_t window = 0;
  std::uint32_t wave_splits = ~0u;
  std::uint32_t absent = ~0u;     // this block of sequence 0 takes no part
  std::uint32_t mass_blocks = 0;  // not 0: attention mass is asked for
  // Of each token of sequence 0, its key and its value in head 0.
  std::function<void(std::uint32_t token, std::byte* key, std::byte* value)> spoil = {};
};

float query(const Case& c, const Rows& part, std::uint32_t row, std::uint32_t head, std::uint32_t d) {
  return unit_variance(1000 + part.sequence,
                       (std::uint64_t{part.position + row} * c.query_heads + head) * c.shape.head_dim + d);
}

// What both devices and the reference are asked.
class Attention {
 public:
  Attention(Device& device, const Case& c) : device_(device), case_(c), arena_(device, 24 * kMiB) {
    for (std::uint32_t s = 0; s < c.tokens.size(); ++s) {
      sequences_.push_back(place_blocks(arena_, c.shape, (c.tokens[s] + 15) / 16, c.layout));
      append_all(device, arena_, c.shape, sequences_[s], KvRows(c.shape, c.tokens[s], s + 1), c.tokens[s]);
      for (std::uint32_t t = 0; s == 0 && c.spoil && t < c.tokens[0]; ++t) {
        const BlockView& view = sequences_[0][t / kBlockTokens];
        c.spoil(t, arena_.host(view.k + t % kBlockTokens * view.token_stride),
                arena_.host(view.v + t % kBlockTokens * view.v_token_stride));
      }
      if (s == 0 && c.absent != ~0u) sequences_[s][c.absent].k = 0;
    }
  }

  // [row][query head][value_dim] of all rows.
  std::vector<float> run() {
    const KvShape& shape = case_.shape;
    AttendBatch batch{.shape = shape, .query_heads = case_.query_heads};
    batch.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    batch.soft_cap = case_.soft_cap;
    batch.window = case_.window;
    std::vector<float> q;
    std::vector<BlockView> views;
    std::vector<AttendItem> items;
    for (const Rows& part : case_.rows) {
      for (std::uint32_t r = 0; r < part.rows; ++r)
        for (std::uint32_t h = 0; h < case_.query_heads; ++h)
          for (std::uint32_t d = 0; d < shape.head_dim; ++d) q.push_back(query(case_, part, r, h, d));
      const std::uint32_t end = std::min(case_.tokens[part.sequence], part.position + part.rows);
      for (std::uint32_t split = 0; split < end; split += kSplitTokens)
        items.push_back({batch.row_count, part.rows, part.position, split, std::min(kSplitTokens, end - split),
                         static_cast<std::uint32_t>(views.size()) + split / kBlockTokens});
      views.insert(views.end(), sequences_[part.sequence].begin(), sequences_[part.sequence].end());
      batch.row_count += part.rows;
    }
    batch.row_count += 1;  // a row that no item touches
    q.resize(q.size() + case_.query_heads * shape.head_dim);
    batch.q = arena_.put(q);
    batch.views = views;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    batch.state =
        arena_.put(std::vector<float>(firn::Kernels::state_bytes(shape, case_.query_heads, batch.row_count) / 4, nan));
    const std::size_t out_count = std::size_t{batch.row_count} * case_.query_heads * shape.value_dim;
    batch.out = arena_.put(std::vector<float>(out_count, nan));
    if (case_.mass_blocks != 0) {
      batch.mass_blocks = case_.mass_blocks;
      batch.mass = arena_.put(std::vector<float>(std::size_t{batch.row_count} * case_.mass_blocks, nan));
      batch.mass_scratch = arena_.put(std::vector<float>(
          firn::Kernels::mass_bytes(case_.query_heads, batch.row_count, case_.mass_blocks) / 4, nan));
    }
    std::uint32_t splits = 1;
    for (const AttendItem& item : items) splits = std::max(splits, item.split / kSplitTokens + 1);
    const std::uint32_t wave = std::min(splits, case_.wave_splits);
    Result<Fence> fence = Fence{};
    for (std::uint32_t first = 0; first < splits; first += wave) {
      std::vector<AttendItem> some;
      for (const AttendItem& item : items)
        if (item.split / kSplitTokens >= first && item.split / kSplitTokens < first + wave) some.push_back(item);
      batch.items = some;
      batch.first = first == 0;
      batch.last = first + wave >= splits;
      batch.partials = arena_.put(std::vector<float>(firn::Kernels::partial_bytes(batch) / 4 + 1, nan));
      fence = device_.kernels().attend(batch);
      EXPECT_TRUE(fence.ok()) << fence.status().message();
    }
    wait(device_, fence);
    if (batch.mass != 0) mass = arena_.get<float>(batch.mass, std::size_t{batch.row_count} * case_.mass_blocks);
    return arena_.get<float>(batch.out, out_count);
  }
  std::vector<float> mass;  // [row][mass_blocks], if the case asks for it

  std::vector<double> reference() {
    std::vector<double> out;
    for (const Rows& part : case_.rows)
      for (std::uint32_t r = 0; r < part.rows; ++r)
        for (std::uint32_t h = 0; h < case_.query_heads; ++h) add_reference(part, r, h, out);
    out.resize(out.size() + case_.query_heads * case_.shape.value_dim);
    return out;
  }
  // Attention mass by its definition.
  std::vector<double> mass_reference() {
    std::vector<double> out, unused;
    for (const Rows& part : case_.rows)
      for (std::uint32_t r = 0; r < part.rows; ++r) {
        std::vector<double> row(case_.mass_blocks);
        for (std::uint32_t h = 0; h < case_.query_heads; ++h) add_reference(part, r, h, unused, &row);
        out.insert(out.end(), row.begin(), row.end());
      }
    out.resize(out.size() + case_.mass_blocks);
    return out;
  }

 private:
  double element(DeviceAddress at) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, arena_.host(at), bytes_of(case_.shape.dtype));
    float value = 0;
    if (case_.shape.dtype == Dtype::kF16) {
      const int exponent = static_cast<int>(bits >> 10 & 31), mantissa = static_cast<int>(bits & 1023);
      const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25);
      return (bits & 0x8000) != 0 ? -magnitude : magnitude;
    }
    if (case_.shape.dtype == Dtype::kBf16) bits <<= 16;
    std::memcpy(&value, &bits, 4);
    return static_cast<double>(value);
  }

  void add_reference(const Rows& part, std::uint32_t row, std::uint32_t query_head, std::vector<double>& out,
                     std::vector<double>* mass_of_blocks = nullptr) {
    const KvShape& shape = case_.shape;
    const std::uint32_t head = query_head / (case_.query_heads / shape.kv_heads), size = bytes_of(shape.dtype);
    const std::uint32_t position = part.position + row, end = std::min(position + 1, case_.tokens[part.sequence]);
    const std::uint32_t begin = case_.window != 0 && position + 1 > case_.window ? position + 1 - case_.window : 0;
    std::vector<double> values(shape.value_dim), weights(case_.mass_blocks);
    double sum = 0;
    for (std::uint32_t t = begin; t < end; ++t) {
      const BlockView& view = sequences_[part.sequence][t / kBlockTokens];
      if (view.k == 0) continue;
      const std::uint64_t in_block = t % kBlockTokens;
      double dot = 0;
      for (std::uint32_t d = 0; d < shape.head_dim; ++d)
        dot += static_cast<double>(query(case_, part, row, query_head, d)) *
               element(view.k + in_block * view.token_stride + std::uint64_t{head} * view.head_stride + d * size);
      dot /= std::sqrt(shape.head_dim);
      if (case_.soft_cap != 0) dot = case_.soft_cap * std::tanh(dot / case_.soft_cap);
      const double weight = std::exp(dot);
      sum += weight;
      if (mass_of_blocks) weights[t / kBlockTokens] += weight;
      for (std::uint32_t d = 0; d < shape.value_dim; ++d)
        values[d] += weight * element(view.v + in_block * view.v_token_stride +
                                      std::uint64_t{head} * view.v_head_stride + d * size);
    }
    for (const double value : values) out.push_back(sum != 0 ? value / sum : 0);
    if (mass_of_blocks && sum != 0)
      for (std::uint32_t b = 0; b < case_.mass_blocks; ++b) (*mass_of_blocks)[b] += weights[b] / sum;
  }

  Device& device_;
  const Case& case_;
  Arena arena_;
  std::vector<std::vector<BlockView>> sequences_;
};

template <class A, class B>
double largest_difference(const std::vector<A>& a, const std::vector<B>& b) {
  double largest = a.size() == b.size() ? 0 : std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    largest = std::isnan(difference) ? std::numeric_limits<double>::infinity() : std::max(largest, difference);
  }
  return largest;
}

class Attend : public VulkanTest {
 protected:
  void SetUp() override { device = make(strict_hooks()); }
  void TearDown() override {
    device.reset();
    VulkanTest::TearDown();
  }
  void expect_right(const Case& c) {
    ASSERT_TRUE(device);
    SCOPED_TRACE(fmt_shape(c.shape, c.layout));
    Attention ours(*device, c), theirs(*cpu, c);
    const std::vector<float> got = ours.run();
    EXPECT_LT(largest_difference(got, ours.reference()), 1e-3) << "double precision";
    EXPECT_LT(largest_difference(got, theirs.run()), 1e-3) << "the cpu device";
  }
  std::vector<float> run(const Case& c, const Hooks& hooks) {
    const auto other = make(hooks);
    if (!other) return {};
    return Attention(*other, c).run();
  }
  ThreadPool threads{1};
  std::unique_ptr<Device> cpu = make_cpu_device(threads);
  std::unique_ptr<VulkanDeviceImpl> device;
};

TEST_F(Attend, DecodesOneTokenOfEveryHeadSize) {
  for (const std::uint32_t dim : {64u, 80u, 96u, 128u, 256u, 40u})
    expect_right({{Dtype::kF16, 2, dim, dim}, 6, {300, 17}, {{0, 299, 1}, {1, 16, 1}}});
}

TEST_F(Attend, TakesEveryTypeLayoutAndOddSizes) {
  expect_right({{Dtype::kBf16, 2, 64, 48}, 4, {70}, {{0, 69, 1}}, Layout::kTokenMajor});
  expect_right({{Dtype::kF32, 2, 24, 36}, 2, {70}, {{0, 69, 1}}, Layout::kTokenMajor});
  expect_right({{Dtype::kF16, 2, 66, 34}, 2, {70}, {{0, 69, 1}}, Layout::kTokenMajor});
  expect_right({{Dtype::kF16, 1, 9, 7}, 3, {70}, {{0, 69, 1}}, Layout::kScattered});
  expect_right({{Dtype::kF32, 1, 9, 7}, 1, {40}, {{0, 39, 1}}, Layout::kScattered});
}

TEST_F(Attend, PrefillsInChunksBesideDecodingSequences) {
  expect_right({{Dtype::kF16, 2, 64, 64}, 6, {290, 520, 33}, {{0, 250, 40}, {1, 519, 1}, {2, 0, 33}}});
  expect_right({{Dtype::kF16, 1, 128, 128}, 4, {270}, {{0, 262, 8}}});
}

TEST_F(Attend, SeesAWindowAndCapsLogits) {
  Case c{{Dtype::kF16, 2, 64, 64}, 4, {600}, {{0, 598, 2}, {0, 560, 20}}};
  c.window = 100;
  expect_right(c);
  c.window = 300;
  c.soft_cap = 2.0f;
  expect_right(c);
}

TEST_F(Attend, LeavesOutBlocksThatTakeNoPart) {
  Case c{{Dtype::kF16, 2, 64, 64}, 4, {100}, {{0, 99, 1}, {0, 80, 20}}};
  c.absent = 2;
  expect_right(c);
}

// As the cpu device has it, which is held against the formula: tests/core/cpu/attend_test.cpp.
TEST_F(Attend, InfinitiesAndNansGiveWhatTheFormulaGives) {
  ASSERT_TRUE(device);
  const std::uint16_t infinity = 0x7C00, less = 0xFC00;  // of f16
  const auto set = [](std::byte* at, std::uint16_t bits) { std::memcpy(at, &bits, 2); };
  const std::vector<decltype(Case::spoil)> spoils{
      [](std::uint32_t t, std::byte* k, std::byte* v) {
        if (t < 255) std::memset(k, 0xFF, 128), std::memset(v, 0xFF, 128);
      },
      [](std::uint32_t t, std::byte* k, std::byte*) { std::memset(k, t / 256 == 1 ? 0xFF : 0x11, 128); },
      [](std::uint32_t t, std::byte* k, std::byte*) { t == 300 ? void(std::memset(k, 0xFF, 128)) : void(); },
      [](std::uint32_t t, std::byte*, std::byte* v) { t == 20 ? void(std::memset(v, 0xFF, 64)) : void(); },
      [&](std::uint32_t t, std::byte* k, std::byte*) { t == 100 ? set(k, infinity) : void(); },
      [&](std::uint32_t t, std::byte* k, std::byte*) { t < 256 ? set(k, infinity) : void(); },
      [&](std::uint32_t t, std::byte* k, std::byte*) { t < 512 ? set(k, less) : void(); },
      [&](std::uint32_t, std::byte* k, std::byte*) { set(k, infinity); },
      [&](std::uint32_t t, std::byte*, std::byte* v) { t == 570 ? set(v, infinity) : void(); },
      [&](std::uint32_t t, std::byte* k, std::byte* v) { t == 30 ? set(k, infinity), set(v, infinity) : void(); },
      [&](std::uint32_t t, std::byte* k, std::byte* v) {
        if (t < 256) set(k, infinity);
        if (t == 9) set(v, infinity);
      },
  };
  for (std::size_t s = 0; s < spoils.size(); ++s)
    for (const float cap : {0.0f, 3.0f}) {
      Case c{{Dtype::kF16, 1, 64, 64}, 2, {600}, {{0, 599, 1}, {0, 560, 40}, {0, 20, 3}}};
      c.soft_cap = cap;
      c.spoil = spoils[s];
      Attention ours(*device, c), theirs(*cpu, c);
      const std::vector<float> got = ours.run(), want = theirs.run();
      ASSERT_EQ(got.size(), want.size());
      for (std::size_t i = 0; i < got.size(); ++i) {
        const bool same = std::isnan(want[i])   ? std::isnan(got[i])
                          : std::isinf(want[i]) ? got[i] == want[i]
                                                : std::fabs(got[i] - want[i]) < 1e-3f;
        ASSERT_TRUE(same) << "case " << s << ", cap " << cap << ": element " << i << " is " << got[i] << ", not "
                          << want[i];
      }
    }
}

// Against the promise in device.h: not on other rows, their number, waves, or the shape of workgroups.
TEST_F(Attend, GivesARowTheSameBitsWhateverIsAttendedBesideIt) {
  ASSERT_TRUE(device);
  const KvShape shape{Dtype::kF16, 2, 64, 64};
  const Case many{shape, 6, {700, 300}, {{0, 680, 20}, {1, 299, 1}}};
  const std::vector<float> all = Attention(*device, many).run();
  const std::size_t row = 6 * 64;
  for (const std::uint32_t r : {0u, 7u, 19u}) {
    const Case one{shape, 6, {700, 300}, {{0, 680 + r, 1}}};
    const std::vector<float> alone = Attention(*device, one).run();
    EXPECT_EQ(std::memcmp(alone.data(), all.data() + r * row, row * 4), 0) << "row " << r << " alone";
  }
  for (const std::uint32_t splits : {1u, 2u}) {
    Case waves = many;
    waves.wave_splits = splits;
    const std::vector<float> some = Attention(*device, waves).run();
    EXPECT_EQ(std::memcmp(some.data(), all.data(), all.size() * 4), 0) << splits << " splits a wave";
  }
  for (const std::uint32_t pairs : {1u, 3u}) {
    Hooks hooks = strict_hooks();
    hooks.pairs = pairs;
    const std::vector<float> other = run(many, hooks);
    ASSERT_EQ(other.size(), all.size());
    EXPECT_EQ(std::memcmp(other.data(), all.data(), all.size() * 4), 0) << pairs << " pairs a workgroup";
  }
  Hooks pieces = strict_hooks();
  pieces.submission_bytes = 1;  // every split is a submission of its own
  const std::vector<float> cut = run(many, pieces);
  ASSERT_EQ(cut.size(), all.size());
  EXPECT_EQ(std::memcmp(cut.data(), all.data(), all.size() * 4), 0) << "cut into many submissions";
}

// As on the cpu device: by double precision, rows that sum to their query heads, bits that no cutting changes.
TEST_F(Attend, TellsWhatEachBlockWasWorth) {
  ASSERT_TRUE(device);
  Case c{{Dtype::kF16, 2, 64, 64}, 6, {600, 290, 5}, {{0, 599, 1}, {1, 270, 20}, {2, 0, 5}, {0, 560, 3}}};
  c.mass_blocks = 41;
  for (const std::uint32_t window : {0u, 100u, 300u}) {
    SCOPED_TRACE(window);
    c.window = window;
    c.soft_cap = window == 300 ? 2.0f : 0.0f;
    Attention ours(*device, c), theirs(*cpu, c);
    const std::vector<float> out = ours.run();
    theirs.run();
    EXPECT_LT(largest_difference(ours.mass, ours.mass_reference()), 1e-3) << "double precision";
    EXPECT_LT(largest_difference(ours.mass, theirs.mass), 1e-3) << "the cpu device";
    for (std::size_t row = 0; row < 30; ++row) {  // the last one is a row that no item touches
      double sum = 0;
      for (std::uint32_t b = 0; b < 41; ++b) sum += static_cast<double>(ours.mass[row * 41 + b]);
      EXPECT_NEAR(sum, row < 29 ? 6 : 0, 1e-4) << "row " << row;
    }
    Case other = c;
    other.wave_splits = 1;
    Attention waves(*device, other);
    waves.run();
    EXPECT_EQ(std::memcmp(waves.mass.data(), ours.mass.data(), ours.mass.size() * 4), 0) << "one split a wave";
    other = c;
    other.mass_blocks = 0;
    const std::vector<float> without = Attention(*device, other).run();
    EXPECT_EQ(std::memcmp(without.data(), out.data(), out.size() * 4), 0) << "without mass";
  }
  c.absent = 2;
  Attention ours(*device, c);
  ours.run();
  EXPECT_LT(largest_difference(ours.mass, ours.mass_reference()), 1e-3) << "a block that takes no part";
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    Hooks hooks = strict_hooks();
    hooks.ordering = seed == 0 ? Ordering::kEverything : Ordering::kShuffle;
    hooks.seed = seed;
    hooks.pairs = seed == 0 ? 3 : 0;
    hooks.submission_bytes = seed == 1 ? 1 : 0;
    const auto other = make(hooks);
    ASSERT_TRUE(other);
    Attention shuffled(*other, c);
    shuffled.run();
    EXPECT_EQ(std::memcmp(shuffled.mass.data(), ours.mass.data(), ours.mass.size() * 4), 0) << "seed " << seed;
  }
}

// Lanes that share a key row stand for what a subgroup would be: the shapes that real GPUs use run here too.
TEST_F(Attend, WorksWithEveryShapeOfWorkgroup) {
  const Case c{{Dtype::kF16, 2, 128, 128}, 8, {300}, {{0, 299, 1}, {0, 280, 10}}};
  const std::vector<double> want = Attention(*cpu, c).reference();
  for (const auto& [wide, lanes] : {std::pair{128u, 8u}, {64u, 4u}, {128u, 16u}, {32u, 2u}}) {
    Hooks hooks = strict_hooks();
    hooks.threads = wide;
    hooks.lanes = lanes;
    EXPECT_LT(largest_difference(run(c, hooks), want), 1e-3) << wide << " threads, " << lanes << " lanes";
  }
}

// A barrier too many, or independent work in another order, changes nothing: no barrier and no range is missing.
TEST_F(Attend, DoesNotDependOnTheOrderOfIndependentWork) {
  ASSERT_TRUE(device);
  Case c{{Dtype::kF16, 1, 64, 64}, 2, {600, 40}, {{0, 599, 1}, {0, 560, 10}, {1, 39, 1}}};
  c.wave_splits = 1;
  const std::vector<float> plain = Attention(*device, c).run();
  for (const Ordering ordering : {Ordering::kEverything, Ordering::kShuffle})
    for (std::uint64_t seed = 1; seed <= (ordering == Ordering::kShuffle ? 6u : 1u); ++seed) {
      Hooks hooks = strict_hooks();
      hooks.ordering = ordering;
      hooks.seed = seed;
      const std::vector<float> other = run(c, hooks);
      ASSERT_EQ(other.size(), plain.size());
      EXPECT_EQ(std::memcmp(other.data(), plain.data(), plain.size() * 4), 0) << "seed " << seed;
    }
}

}  // namespace
}  // namespace firn::vk::testing
