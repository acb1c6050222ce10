#include "cli/demo_second_device.h"

#include <gtest/gtest.h>

#include "cli/doctor_vulkan.h"

namespace firn::cli {
namespace {

TEST(SecondDevice, OnlyATieExcusesADifference) {
  const Answer first{"cpu", {5, 6, 7, 2}, {1.0, 0.5, 0.0004, 3.0}, 1};
  Answer second = first;
  SecondDevice result = compare_answers(first, second);
  EXPECT_TRUE(result.agrees());
  EXPECT_EQ(result.tokens_compared, 4u);
  EXPECT_FALSE(result.margin);
  second.tokens = {5, 6, 8, 9, 2};  // where the two likeliest are 0.0004 apart
  result = compare_answers(first, second);
  EXPECT_TRUE(result.agrees());
  EXPECT_EQ(result.tokens_equal, 2u);
  EXPECT_EQ(result.tokens_compared, 3u);
  EXPECT_EQ(result.margin, 0.0004);
  second.tokens = {5, 9, 7, 2};  // where they are 0.5 apart
  result = compare_answers(first, second);
  EXPECT_FALSE(result.agrees());
  EXPECT_EQ(result.margin, 0.5);
  second.tokens = {5, 6, 7};  // stopped early
  EXPECT_FALSE(compare_answers(first, second).agrees());
  second.tokens = {};
  EXPECT_FALSE(compare_answers(first, second).agrees());
}

TEST(DoctorVulkan, SaysForEveryDeviceWhatItIsForAndWhatItLacks) {
  VulkanReport card;
  card.name = "Example Card";
  card.type = "discrete";
  card.driver = "example 580.65";
  card.api_version = "1.4.312";
  card.uuid = "00ff";
  card.optional = {{"VK_EXT_memory_budget", true}, {"VK_EXT_external_memory_host", false}};
  card.host_memory = "staged: Example Card cannot import host memory; use a staging region";
  card.heaps = {{80ull << 30, 76ull << 30, 1ull << 30, true}, {64ull << 30, 0, 0, false}};
  card.limits = {{"max_allocation_bytes", 4ull << 30}, {"subgroup_threads", 32}};
  VulkanReport old = card;
  old.index = 1;
  old.name = "Old Card";
  old.missing = {"timelineSemaphore", "scalarBlockLayout"};
  old.optional.clear();
  old.heaps.clear();
  old.host_memory.clear();
  old.limits.clear();
  const std::vector<std::string> want{
      "0: Example Card (discrete), device auto or 0",
      "   driver example 580.65, Vulkan 1.4.312, uuid 00ff",
      "   uses VK_EXT_memory_budget",
      "   missing VK_EXT_external_memory_host: host memory is staged, not imported",
      "   host memory staged: Example Card cannot import host memory; use a staging region",
      "   heap 80.0 GiB device-local, budget 76.0 GiB, 1.0 GiB in use",
      "   heap 64.0 GiB host, the driver tells no budget",
      "   max_allocation_bytes 4.0 GiB, subgroup_threads 32",
      "1: Old Card (discrete), CANNOT BE USED",
      "   driver example 580.65, Vulkan 1.4.312, uuid 00ff",
      "   LACKS timelineSemaphore, scalarBlockLayout, which firn needs: update the driver, or use device cpu"};
  EXPECT_EQ(vulkan_lines(std::vector<VulkanReport>{card, old}), want);
  EXPECT_EQ(vulkan_lines(Status(Code::kUnavailable, "because")), std::vector<std::string>{"none: because"});
}

}  // namespace
}  // namespace firn::cli
