#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tests/device/test_device.h"

#ifdef FIRN_HAS_VULKAN
#include "core/vk/vulkan_device.h"
#endif

namespace firn::test {
namespace {

std::string wanted;
std::unique_ptr<Device> made;
std::mutex mutex;
std::vector<std::string> messages;

Result<std::unique_ptr<Device>> make() {
#ifdef FIRN_HAS_VULKAN
  vk::Hooks hooks;
  hooks.validation = true;
  hooks.check_hazards = true;
  hooks.hide_host_memory = true;
  hooks.on_message = [](const std::string& message) {
    std::lock_guard lock(mutex);
    messages.push_back(message);
  };
  FIRN_ASSIGN(std::unique_ptr<vk::VulkanDeviceImpl> device, vk::VulkanDeviceImpl::create({.device = wanted}, hooks));
  return std::unique_ptr<Device>(std::move(device));
#else
  return Status(Code::kUnavailable, "this build has no Vulkan");
#endif
}

class Watch : public ::testing::Environment {
 public:
  void SetUp() override {
    if (wanted.empty()) return;
    Result<std::unique_ptr<Device>> device = make();
    ASSERT_TRUE(device.ok()) << device.status().message();
    made = std::move(device).value();
  }
  void TearDown() override {
    made.reset();
    for (const std::string& message : messages) ADD_FAILURE() << message;
  }
};

}  // namespace

Device* test_device() { return made.get(); }

}  // namespace firn::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const char* device = std::getenv("FIRN_TEST_DEVICE")) firn::test::wanted = device;
  for (int i = 1; i + 1 < argc; ++i)
    if (std::string_view(argv[i]) == "--device") firn::test::wanted = argv[i + 1];
  ::testing::AddGlobalTestEnvironment(new firn::test::Watch);
  return RUN_ALL_TESTS();
}
