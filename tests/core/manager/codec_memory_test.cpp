// Memory that runs out within a codec: operator new of this program fails the n-th time it is asked, for every n, while
// blocks are brought back from their frames. A frame is as good as before, no slot is lost, and the next call
// makes the scratch that this one could not have. No threads: which allocation is the n-th is then the same every time.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "core/base/no_throw.h"
#include "storage/codec/artefact.h"
#include "tests/core/manager/fixture.h"
#include "tests/failing_heap.h"

namespace firn::test {
namespace {

class CodecMemory : public testing::TestWithParam<const char*> {
 protected:
  static std::unique_ptr<Manager> make() {
    const ModelSpec model = small_model();
    Config config;
    config.device = "cpu";
    config.threads = 1;
    config.mover.worker = false;
    config.pool.budget_bytes = 24 * model.block_bytes() + (1u << 20);
    config.pool.max_step_tokens = 16;
    config.host.budget_bytes = 8u << 20;
    config.host.codec = GetParam();
    return make_manager(config, model);
  }
};

TEST_P(CodecMemory, MayRunOutWhileBlocksAreLoaded) {
  const Tokens tokens = distinct(100, 1);
  const auto manager = make();
  ASSERT_OK(manager->free(prompt(*manager, tokens)));
  ASSERT_OK(manager->wait_idle());
  const std::uint64_t frames = manager->stats().frames;
  ASSERT_NE(frames, 0u);
  for (std::uint64_t n = 1;; ++n) {
    ASSERT_LT(n, 10'000u);
    ASSERT_OK(manager->empty_pool(0xff).status());
    const auto begun = manager->begin(joined(tokens, {7}));
    ASSERT_OK(begun.status());
    ASSERT_OK(manager->prefetch(begun->seq).status());
    failed = false;
    fail_at = n;
    manager->pump();  // loads
    fail_at = 0;
    ASSERT_EQ(broken(*manager), "") << "loading, after allocation " << n;
    ASSERT_EQ(manager->stats().frames, frames) << "a frame is not to blame: allocation " << n;
    ASSERT_OK(manager->free(begun->seq));
    if (!failed) break;
  }
  EXPECT_NE(manager->stats().blocks_promoted, 0u);
}

INSTANTIATE_TEST_SUITE_P(Codecs, CodecMemory, testing::Values("raw", "lossless"),
                         [](const auto& one) { return std::string(one.param); });

// A library's JSON tree frees itself with the help of more memory, which ends the process.
TEST(ArtefactMemory, MayRunOutWhileOneIsRead) {
  for (const char* name : {"/kvtc_v1.artefact", "/firn_v1.artefact"}) {
    std::ifstream in(std::string(FIRN_TEST_GOLDEN) + name, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    ASSERT_FALSE(text.empty()) << name;
    for (std::uint64_t n = 1;; ++n) {
      ASSERT_LT(n, 100'000u);
      failed = false;
      fail_at = n;
      const Status status = no_throw([&] { return parse_artefact(std::as_bytes(std::span(text))).status(); });
      fail_at = 0;
      ASSERT_TRUE(status.ok() == !failed && (status.ok() || status.code() == Code::kNoSpace))
          << name << ", allocation " << n << ": " << status.message();
      if (!failed) break;
    }
  }
}

}  // namespace
}  // namespace firn::test
