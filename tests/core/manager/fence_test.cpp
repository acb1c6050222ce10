// Fences that a caller hands in: whoever gave them out, whether they were given out at all, and whatever their kind.
#include <gtest/gtest.h>

#include <limits>

#include "firn/thread_pool.h"
#include "tests/core/manager/hand_device.h"
#include "tests/core/manager/toy_engine.h"

namespace firn::test {
namespace {

Config config_of(const char* device) {
  Config config;
  config.device = device;
  config.pool.budget_bytes = 2u << 20;
  config.pool.max_step_tokens = 32;
  config.mover.worker = false;
  return config;
}

// Every call that takes a fence refuses one of these, says which number of it is wrong, and changes nothing.
void expect_refused(Manager& manager, const Fence& fence, const std::string& says) {
  SCOPED_TRACE(says);
  const SeqId seq = prompt(manager, distinct(40, 7));
  const Slots before = table(manager, seq);
  const auto refused = [&](const char* call, const Status& status) {
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << call;
    EXPECT_NE(status.message().find(call), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("fence: " + says), std::string::npos) << status.message();
  };
  refused("free", manager.free(seq, fence));
  refused("preempt", manager.preempt(seq, fence));
  refused("wait_fence", manager.wait_fence(fence, 0));
  refused("fence_passed", manager.fence_passed(fence).status());
  EXPECT_FALSE(manager.device().timeline().passed(fence));
  EXPECT_EQ(manager.device().timeline().wait(fence, 0).code(), Code::kInvalidArgument);
  EXPECT_EQ(table(manager, seq), before);
  EXPECT_EQ(manager.token_count(seq), 40u);
  EXPECT_EQ(broken(manager), "");
  EXPECT_OK(manager.free(seq));
  EXPECT_EQ(manager.stats().sequences, 0u);
}

TEST(ForeignFences, ThatThisManagerDidNotGiveOutAreRefused) {
  for (const char* device : {"cpu", "none"}) {
    SCOPED_TRACE(device);
    const auto manager = make_manager(config_of(device)), other = make_manager(config_of(device));
    ASSERT_TRUE(manager && other);
    const auto last = [](Manager& of) { return of.device().timeline().last(); };
    EXPECT_OK(manager->wait_fence(last(*manager), 0));
    EXPECT_TRUE(manager->fence_passed(last(*manager)).value());
    EXPECT_TRUE(manager->fence_passed(Fence{}).value());
    expect_refused(*manager, last(*other), "timeline");
    Fence future = last(*manager);
    future.value += 1;
    expect_refused(*manager, future, "value");
    future.value = std::numeric_limits<std::uint64_t>::max();
    expect_refused(*manager, future, "value");
    expect_refused(*manager, {Fence::Kind::kTimeline, 0, 0}, "timeline");
    expect_refused(*manager, {Fence::Kind::kTimeline, ~std::uint64_t{0}, 1}, "timeline");
    expect_refused(*manager, {Fence::Kind::kExternal, last(*manager).handle, 0}, "this device cannot wait");
    expect_refused(*manager, {static_cast<Fence::Kind>(9), 1, 1}, "kind 9");
  }
}

// What the engine signals itself keeps slots as long as it says, on a device that can be asked.
TEST(ForeignFences, OfTheEngineKeepSlotsWhereTheDeviceKnowsThem) {
  ThreadPool threads(1);
  HandDevice device(threads);
  const auto manager = make_manager(config_of("cpu"), small_model(), {&threads, &device, {}});
  ASSERT_TRUE(manager);
  const Fence signalled{Fence::Kind::kExternal, HandDevice::kEngineTimeline, 3};
  const Fence unknown{Fence::Kind::kExternal, 98, 3};
  const SeqId seq = prompt(*manager, distinct(40, 7)), second = prompt(*manager, distinct(40, 900));
  EXPECT_EQ(manager->free(seq, unknown).code(), Code::kInvalidArgument);
  EXPECT_OK(manager->free(seq, signalled));
  EXPECT_OK(manager->preempt(second, signalled));
  EXPECT_EQ(manager->stats().slots_live, 6u) << "the engine reads them";
  EXPECT_FALSE(manager->fence_passed(signalled).value());
  EXPECT_EQ(manager->wait_fence(signalled, 1).code(), Code::kUnavailable);
  device.signal(3);
  EXPECT_TRUE(manager->fence_passed(signalled).value());
  EXPECT_OK(manager->wait_fence(signalled, 0));
  EXPECT_OK(manager->free(second));
  EXPECT_EQ(manager->stats().slots_live, 0u);
  EXPECT_EQ(broken(*manager), "");
}

TEST(ForeignFences, OfADeviceThatWasReplacedHavePassed) {
  ThreadPool threads(1);
  HandDevice device(threads);
  const auto manager = make_manager(config_of("cpu"), small_model(), {&threads, &device, {}});
  ASSERT_TRUE(manager);
  const Fence old = device.last();
  device.lose();
  EXPECT_TRUE(manager->fence_passed(old).value()) << "a lost device reads nothing";
  EXPECT_EQ(manager->wait_fence(old, 0).code(), Code::kIo);
  ASSERT_TRUE(manager->replace_device(nullptr).ok());
  EXPECT_OK(manager->wait_fence(old, 0));
  EXPECT_TRUE(manager->fence_passed(old).value());
  EXPECT_OK(manager->free(prompt(*manager, distinct(40, 7)), old));
}

}  // namespace
}  // namespace firn::test
