// The core promise: a row's bits depend on the row and its tokens, and on nothing else.
#include <gtest/gtest.h>

#include "firn/thread_pool.h"
#include "tests/core/cpu/attend_fixture.h"

namespace firn::testing {
namespace {

struct Case {
  KvShape shape;
  Attention attention;
  std::uint32_t tokens;
};

// Every type with every kind of width; windows that begin inside blocks, on them, and reach over splits.
std::vector<Case> cases() {
  std::vector<Case> all;
  std::uint32_t n = 0;
  constexpr std::uint32_t kWindows[] = {0, 37, 0, 256, 0, 300};
  constexpr std::uint32_t kGroups[] = {1, 3, 4, 2, 5, 8};
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBf16, Dtype::kF32})
    for (const std::uint32_t dim : {64u, 128u, 80u, 40u, 9u, 256u}) {
      const std::uint32_t kv_heads = n % 3 + 1, value_dim = n % 4 == 3 ? dim + 8 : dim;
      Case c{{dtype, kv_heads, dim, value_dim}, {.query_heads = kv_heads * kGroups[n % 6]}, n % 2 == 0 ? 530u : 290u};
      c.attention.window = kWindows[(n / 2) % 6];
      c.attention.soft_cap = n % 5 == 0 ? 15.0f : 0.0f;
      all.push_back(c);
      ++n;
    }
  return all;
}

struct Invariance : ::testing::Test {
  ThreadPool one{1}, two{2}, three{3};
  std::unique_ptr<Device> devices[3] = {make_cpu_device(one), make_cpu_device(two), make_cpu_device(three)};

  // Each row in a call of its own, on one thread, all splits in one wave: what every other way must equal.
  std::vector<float> alone(const Attention& attention, Sequence& sequence, std::uint32_t begin, std::uint32_t end) {
    std::vector<float> out;
    for (std::uint32_t p = begin; p < end; ++p) {
      const std::vector<float> row = attention.run(*devices[0], {{&sequence, p, 1}});
      out.insert(out.end(), row.begin(), row.end());
    }
    return out;
  }
};

// That these bits are also the right ones is attend_test's claim.
TEST_F(Invariance, ARowAloneEqualsItselfInChunksOfEverySize) {
  constexpr std::uint32_t kRows = 30;
  for (const Case& c : cases()) {
    Sequence sequence(c.shape, c.tokens, 1);
    const std::uint32_t begin = c.tokens - kRows;
    const std::vector<float> want = alone(c.attention, sequence, begin, c.tokens);
    for (const std::uint32_t chunk : {2u, 7u, 8u, 9u, 23u, kRows}) {
      std::vector<float> got;
      for (std::uint32_t p = begin; p < c.tokens; p += chunk) {
        const std::vector<float> rows =
            c.attention.run(*devices[chunk % 3], {{&sequence, p, std::min(chunk, c.tokens - p)}});
        got.insert(got.end(), rows.begin(), rows.end());
      }
      EXPECT_TRUE(same_bits(got, want)) << "chunks of " << chunk << ": " << describe(c.shape, c.attention);
    }
  }
}

TEST_F(Invariance, AChunkOf256RowsEqualsItsRowsAlone) {
  const KvShape shape{Dtype::kF16, 1, 64, 64};
  Sequence sequence(shape, 700, 2);
  for (const std::uint32_t window : {0u, 100u}) {
    const Attention attention{.query_heads = 3, .window = window};
    const std::vector<float> want = alone(attention, sequence, 400, 656);
    EXPECT_TRUE(same_bits(attention.run(*devices[1], {{&sequence, 400, 256}}), want)) << "window " << window;
  }
}

TEST_F(Invariance, WavesThreadsPlacementAndNeighboursChangeNoBit) {
  for (const Case& c : cases()) {
    Sequence plain(c.shape, c.tokens, 1), other(c.shape, 300, 9);
    for (const std::uint32_t rows : {1u, 12u}) {
      const std::uint32_t p = c.tokens - rows;
      const std::vector<float> want = c.attention.run(*devices[0], {{&plain, p, rows}});
      for (const Layout layout : {Layout::kTokenMajor, Layout::kHeadMajor, Layout::kScattered}) {
        Sequence placed(c.shape, c.tokens, 1, layout);
        for (const std::uint32_t wave : {1u, 2u, 99u}) {
          Attention attention = c.attention;
          attention.splits_a_wave = wave;
          attention.skip_unseen_splits = wave == 2;
          Device& device =
              *devices[(static_cast<std::uint32_t>(layout) + wave) % 3];  // each layout and wave meets each
          std::vector<float> got = attention.run(device, {{&other, 299, 1}, {&placed, p, rows}, {&other, 250, 11}});
          got.erase(got.begin(), got.begin() + std::size_t{c.attention.query_heads} * c.shape.value_dim);
          got.resize(want.size());
          ASSERT_TRUE(same_bits(got, want)) << "layout " << static_cast<int>(layout) << ", waves of " << wave << ", "
                                            << rows << " rows: " << describe(c.shape, c.attention);
        }
      }
    }
  }
}

TEST_F(Invariance, RepeatedRunsAreEqual) {
  const KvShape shape{Dtype::kF16, 3, 64, 64};
  Sequence sequence(shape, 600, 3);
  const Attention attention{.query_heads = 9};
  const std::vector<float> want = attention.run(*devices[0], {{&sequence, 540, 60}, {&sequence, 599, 1}});
  for (int i = 0; i < 20; ++i)
    EXPECT_TRUE(same_bits(attention.run(*devices[i % 3], {{&sequence, 540, 60}, {&sequence, 599, 1}}), want));
}

}  // namespace
}  // namespace firn::testing
