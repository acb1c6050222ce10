// device_choice.cpp: the device that a configuration names.
#include <filesystem>

#include "firn/device.h"
#include "firn/vulkan.h"

namespace firn {
namespace {

// Opening every installed driver to learn that there is no GPU takes a process a tenth of a second and loads a compiler
// or two, so auto looks for a GPU's device file first.
bool may_have_gpu() {
  std::error_code error;
  for (const char* path : {"/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"})
    if (std::filesystem::exists(path, error)) return true;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/dri", error))
    if (entry.path().filename().string().starts_with("renderD")) return true;
  return false;
}

}  // namespace

Result<std::unique_ptr<Device>> make_device(const std::string& name, ThreadPool& threads) {
  if (name == "none") return make_null_device();
  if (name == "cpu" || (name == "auto" && !may_have_gpu())) return make_cpu_device(threads);
  Result<std::unique_ptr<VulkanDevice>> device = make_vulkan_device({.device = name});
  if (device.ok()) return std::unique_ptr<Device>(std::move(device).value());
  if (name == "auto") return make_cpu_device(threads);  // firn doctor says why
  return device.status().with_context("device " + name);
}

}  // namespace firn
