#include "core/vk/context.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/base/check.h"

namespace firn::vk {
namespace {

constexpr std::uint64_t kMaxRegion = 1u << 30;  // larger allocations fragment, and some drivers refuse them

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string hex(const std::uint8_t* bytes, std::size_t count) {
  std::string text;
  for (std::size_t i = 0; i < count; ++i) text += fmt::format("{:02x}", bytes[i]);
  return text;
}

std::string type_name(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
      return "discrete";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
      return "integrated";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
      return "virtual";
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
      return "software";
    default:
      return "other";
  }
}

int rank(const VulkanReport& report) {
  constexpr const char* kOrder[] = {"discrete", "integrated", "virtual", "other"};
  for (int i = 0; i < 4; ++i)
    if (report.type == kOrder[i]) return i;
  return 4;
}

constexpr const char* kOptional[] = {VK_EXT_MEMORY_BUDGET_EXTENSION_NAME, VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME,
                                     VK_KHR_EXTERNAL_MEMORY_FD_EXTENSION_NAME,
                                     VK_KHR_EXTERNAL_SEMAPHORE_FD_EXTENSION_NAME};

// The off switch: FIRN_VULKAN_WITHOUT is a list of optional extensions, by commas, that are done without.
std::vector<std::string> unwanted() {
  const char* list = std::getenv("FIRN_VULKAN_WITHOUT");
  std::vector<std::string> names;
  std::string name;
  for (const char c : std::string(list ? list : "") + ",") {
    if (c != ',') {
      name += c;
    } else if (!name.empty()) {
      names.push_back(std::exchange(name, ""));
    }
  }
  return names;
}

Status check_unwanted() {
  for (const std::string& name : unwanted())
    if (std::find(std::begin(kOptional), std::end(kOptional), name) == std::end(kOptional))
      return Status(Code::kInvalidArgument,
                    fmt::format("FIRN_VULKAN_WITHOUT: {} is not one of {}", name, fmt::join(kOptional, ", ")));
  return {};
}

std::vector<std::string> extensions_of(const InstanceApi& api, VkPhysicalDevice device) {
  std::uint32_t count = 0;
  std::vector<VkExtensionProperties> properties;
  if (api.EnumerateDeviceExtensionProperties(device, nullptr, &count, nullptr) != VK_SUCCESS) return {};
  properties.resize(count);
  if (api.EnumerateDeviceExtensionProperties(device, nullptr, &count, properties.data()) < 0) return {};
  std::vector<std::string> names;
  for (std::uint32_t i = 0; i < count; ++i) names.emplace_back(properties[i].extensionName);
  for (const std::string& off : unwanted()) std::erase(names, off);
  return names;
}

bool has(const std::vector<std::string>& names, const char* name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The device features that firn asks about, chained.
struct Features {
  VkPhysicalDeviceSynchronization2Features synchronization2{
      VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SYNCHRONIZATION_2_FEATURES, nullptr, VK_FALSE};
  VkPhysicalDeviceVulkan12Features vulkan12{};
  VkPhysicalDeviceFeatures2 core{};
  Features() {
    vulkan12.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES;
    vulkan12.pNext = &synchronization2;
    core.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    core.pNext = &vulkan12;
  }
  Features(const Features&) = delete;
  Features& operator=(const Features&) = delete;
};

VKAPI_ATTR VkBool32 VKAPI_CALL on_debug_message(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                                                const VkDebugUtilsMessengerCallbackDataEXT* data, void* user) {
  static_cast<const Context*>(user)->complain(data->pMessage);
  return VK_FALSE;
}

VkDebugUtilsMessengerCreateInfoEXT messenger_info(Context* context) {
  VkDebugUtilsMessengerCreateInfoEXT info{};
  info.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT;
  info.messageSeverity =
      VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
  info.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT;
  info.pfnUserCallback = on_debug_message;
  info.pUserData = context;
  return info;
}

Status no_device_status() {
  return Status(Code::kUnavailable,
                "a Vulkan driver is installed but has no device: is the GPU there, visible to this container with its "
                "graphics capability, and its kernel driver loaded? vulkaninfo tells more; else use device cpu");
}

}  // namespace

Status Context::lost_status() {
  return Status(Code::kIo,
                "the Vulkan device was lost (a reset, a removed card or a driver fault); what was in its memory is "
                "gone: go on with Manager::replace_device(), or create the manager anew, on this device or on cpu");
}

Status Context::check(VkResult result, const char* what) {
  if (result >= 0) return {};
  if (result == VK_ERROR_DEVICE_LOST) {
    lose();
    return lost_status();
  }
  const bool full = result == VK_ERROR_OUT_OF_DEVICE_MEMORY || result == VK_ERROR_OUT_OF_HOST_MEMORY;
  return Status(full ? Code::kNoSpace : Code::kIo,
                fmt::format("{} of {} failed with {}", what, report.name, to_string(result)));
}

Status Context::open_instance() {
  FIRN_TRY(check_unwanted());
  FIRN_ASSIGN(global_, open_loader(hooks.library));
  std::uint32_t version = VK_API_VERSION_1_0;
  if (global_.EnumerateInstanceVersion) global_.EnumerateInstanceVersion(&version);
  if (version < VK_API_VERSION_1_2)
    return Status(Code::kUnavailable, fmt::format("{} is older than Vulkan 1.2; update it", hooks.library));
  VkApplicationInfo application{};
  application.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO;
  application.pApplicationName = "firn";
  application.apiVersion = VK_API_VERSION_1_3;
  VkInstanceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO;
  info.pApplicationInfo = &application;
  const char* layer = "VK_LAYER_KHRONOS_validation";
  const char* extensions[] = {VK_EXT_DEBUG_UTILS_EXTENSION_NAME, VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME};
  const VkValidationFeatureEnableEXT enable = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
  VkDebugUtilsMessengerCreateInfoEXT messenger = messenger_info(this);
  VkValidationFeaturesEXT validation{};
  validation.sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT;
  validation.enabledValidationFeatureCount = 1;
  validation.pEnabledValidationFeatures = &enable;
  if (hooks.validation) {
    info.enabledLayerCount = 1;
    info.ppEnabledLayerNames = &layer;
    info.enabledExtensionCount = 2;
    info.ppEnabledExtensionNames = extensions;
    validation.pNext = &messenger;  // hears of what instance creation and destruction do
    info.pNext = &validation;
  }
  const VkResult result = global_.CreateInstance(&info, nullptr, &instance);
  if (result == VK_ERROR_INCOMPATIBLE_DRIVER)
    return Status(Code::kUnavailable,
                  "no Vulkan driver is installed: install the GPU's (Debian: mesa-vulkan-drivers or "
                  "nvidia-vulkan-icd) and check VK_DRIVER_FILES, or use device cpu");
  if (result == VK_ERROR_LAYER_NOT_PRESENT)
    return Status(Code::kUnavailable,
                  "the Khronos validation layer is not installed (Debian: vulkan-validationlayers)");
  FIRN_TRY(check(result, "vkCreateInstance"));
  FIRN_ASSIGN(instance_api, load_instance(global_.GetInstanceProcAddr, instance));
  if (hooks.validation && instance_api.CreateDebugUtilsMessengerEXT)
    FIRN_TRY(check(instance_api.CreateDebugUtilsMessengerEXT(instance, &messenger, nullptr, &messenger_),
                   "vkCreateDebugUtilsMessengerEXT"));
  return {};
}

Result<std::vector<VkPhysicalDevice>> Context::enumerate() const {
  std::uint32_t count = 0;
  if (instance_api.EnumeratePhysicalDevices(instance, &count, nullptr) < 0 || count == 0) return no_device_status();
  std::vector<VkPhysicalDevice> devices(count);
  if (instance_api.EnumeratePhysicalDevices(instance, &count, devices.data()) < 0) return no_device_status();
  devices.resize(count);
  return devices;
}

VulkanReport Context::describe(VkPhysicalDevice candidate, std::uint32_t index) const {
  VkPhysicalDeviceMaintenance3Properties maintenance3{};
  maintenance3.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES;
  VkPhysicalDeviceDriverProperties driver{};
  driver.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES;
  driver.pNext = &maintenance3;
  VkPhysicalDeviceIDProperties id{};
  id.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES;
  id.pNext = &driver;
  VkPhysicalDeviceSubgroupProperties subgroup{};
  subgroup.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES;
  subgroup.pNext = &id;
  VkPhysicalDeviceProperties2 properties{};
  properties.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
  properties.pNext = &subgroup;
  instance_api.GetPhysicalDeviceProperties2(candidate, &properties);
  const VkPhysicalDeviceProperties& core = properties.properties;

  VulkanReport out;
  out.index = index;
  out.name = core.deviceName;
  out.uuid = hex(id.deviceUUID, VK_UUID_SIZE);
  out.type = type_name(core.deviceType);
  out.software = core.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
  out.driver = fmt::format("{} {}", driver.driverName, driver.driverInfo);
  out.api_version = fmt::format("{}.{}.{}", VK_API_VERSION_MAJOR(core.apiVersion),
                                VK_API_VERSION_MINOR(core.apiVersion), VK_API_VERSION_PATCH(core.apiVersion));
  const VkPhysicalDeviceLimits& l = core.limits;
  out.limits = {{"max_allocation_bytes", maintenance3.maxMemoryAllocationSize},
                {"max_storage_range", l.maxStorageBufferRange},
                {"max_allocations", l.maxMemoryAllocationCount},
                {"shared_bytes", l.maxComputeSharedMemorySize},
                {"workgroup_threads", l.maxComputeWorkGroupInvocations},
                {"workgroups_x", l.maxComputeWorkGroupCount[0]},
                {"push_constant_bytes", l.maxPushConstantsSize},
                {"subgroup_threads", subgroup.subgroupSize},
                {"atom_bytes", l.nonCoherentAtomSize}};

  const std::vector<std::string> extensions = extensions_of(instance_api, candidate);
  const auto need = [&](const char* name, bool there) {
    if (!there || hooks.missing_feature == name) out.missing.emplace_back(name);
  };
  const bool vulkan12 = core.apiVersion >= VK_API_VERSION_1_2;
  need("Vulkan 1.2", vulkan12);
  if (vulkan12) {
    const bool sync = core.apiVersion >= VK_API_VERSION_1_3 || has(extensions, VK_KHR_SYNCHRONIZATION_2_EXTENSION_NAME);
    Features features;
    if (!sync) features.vulkan12.pNext = nullptr;
    instance_api.GetPhysicalDeviceFeatures2(candidate, &features.core);
    need("bufferDeviceAddress", features.vulkan12.bufferDeviceAddress);
    need("timelineSemaphore", features.vulkan12.timelineSemaphore);
    need("scalarBlockLayout", features.vulkan12.scalarBlockLayout);
    need("synchronization2", sync && features.synchronization2.synchronization2);
  }
  std::uint32_t family_count = 0;
  instance_api.GetPhysicalDeviceQueueFamilyProperties(candidate, &family_count, nullptr);
  std::vector<VkQueueFamilyProperties> families(family_count);
  instance_api.GetPhysicalDeviceQueueFamilyProperties(candidate, &family_count, families.data());
  need("a compute queue", std::any_of(families.begin(), families.end(), [](const VkQueueFamilyProperties& one) {
         return (one.queueFlags & VK_QUEUE_COMPUTE_BIT) != 0;
       }));
  for (const char* name : kOptional) out.optional.emplace_back(name, has(extensions, name));

  VkPhysicalDeviceMemoryBudgetPropertiesEXT budget{};
  budget.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT;
  VkPhysicalDeviceMemoryProperties2 heaps{};
  heaps.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2;
  if (has(extensions, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME)) heaps.pNext = &budget;
  instance_api.GetPhysicalDeviceMemoryProperties2(candidate, &heaps);
  for (std::uint32_t i = 0; i < heaps.memoryProperties.memoryHeapCount; ++i) {
    const VkMemoryHeap& heap = heaps.memoryProperties.memoryHeaps[i];
    out.heaps.push_back(
        {heap.size, budget.heapBudget[i], budget.heapUsage[i], (heap.flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0});
  }
  return out;
}

Result<std::vector<VulkanReport>> Context::reports(const Hooks& hooks) {
  Context context;
  context.hooks = hooks;
  FIRN_TRY(context.open_instance());
  FIRN_ASSIGN(const std::vector<VkPhysicalDevice> devices, context.enumerate());
  std::vector<VulkanReport> out;
  for (std::uint32_t i = 0; i < devices.size(); ++i) out.push_back(context.describe(devices[i], i));
  return out;
}

// The device that was asked for, and no other: a second best would only be noticed by its speed.
Status Context::choose(const std::string& wanted) {
  FIRN_ASSIGN(const std::vector<VkPhysicalDevice> devices, enumerate());
  std::vector<VulkanReport> all;
  std::string names;
  for (std::uint32_t i = 0; i < devices.size(); ++i) {
    all.push_back(describe(devices[i], i));
    names += fmt::format("{}{}: {} ({})", i == 0 ? "" : ", ", i, all[i].name, all[i].type);
  }
  const std::string name = lower(wanted);
  std::string plain = name;
  plain.erase(std::remove(plain.begin(), plain.end(), '-'), plain.end());
  const bool is_index = !name.empty() && name.size() < 4 &&
                        std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isdigit(c); });
  std::vector<std::uint32_t> found;
  for (std::uint32_t i = 0; i < all.size(); ++i) {
    const bool match = name == "auto"       ? !all[i].software && all[i].usable()
                       : name == "lavapipe" ? all[i].software
                       : is_index           ? std::to_string(i) == name
                                  : all[i].uuid == plain || lower(all[i].name).find(name) != std::string::npos;
    if (match) found.push_back(i);
  }
  if (found.empty() && name == "auto")
    return Status(Code::kUnavailable,
                  fmt::format("no GPU that firn can use; there is {}. Software devices are taken only when asked for: "
                              "device lavapipe",
                              names));
  if (found.empty())
    return Status(Code::kUnavailable, fmt::format("no Vulkan device \"{}\"; there is {}", wanted, names));
  std::stable_sort(found.begin(), found.end(),
                   [&](std::uint32_t a, std::uint32_t b) { return rank(all[a]) < rank(all[b]); });
  const bool same =
      std::all_of(found.begin(), found.end(), [&](std::uint32_t i) { return all[i].uuid == all[found[0]].uuid; });
  if (found.size() > 1 && name != "auto" && name != "lavapipe" && !same)
    return Status(Code::kInvalidArgument,
                  fmt::format("device \"{}\" may be several; write the index: {}", wanted, names));
  report = all[found[0]];
  if (!report.usable())
    return Status(Code::kUnavailable,
                  fmt::format("{} lacks {}, which firn needs; update the driver ({}), or use device cpu", report.name,
                              fmt::format("{}", report.missing[0]), report.driver));
  physical = devices[found[0]];
  return {};
}

Status Context::open_device(const VulkanOptions& options) {
  std::uint32_t count = 0;
  instance_api.GetPhysicalDeviceQueueFamilyProperties(physical, &count, nullptr);
  std::vector<VkQueueFamilyProperties> families(count);
  instance_api.GetPhysicalDeviceQueueFamilyProperties(physical, &count, families.data());
  // A family that draws nothing is not disturbed by a desktop.
  family = count;
  for (std::uint32_t i = 0; i < count; ++i) {
    if ((families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) == 0) continue;
    if (family == count || (families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT) == 0) family = i;
    if ((families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT) == 0) break;
  }
  const float priority = 1;
  VkDeviceQueueCreateInfo queue_info{};
  queue_info.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO;
  queue_info.queueFamilyIndex = family;
  queue_info.queueCount = 1;
  queue_info.pQueuePriorities = &priority;
  const std::vector<std::string> available = extensions_of(instance_api, physical);
  std::vector<const char*> names;
  const auto enable = [&](const char* name) {
    if (!has(available, name)) return false;
    names.push_back(name);
    return true;
  };
  enable(VK_KHR_SYNCHRONIZATION_2_EXTENSION_NAME);
  has_budget = enable(VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
  limits.import_alignment = enable(VK_EXT_EXTERNAL_MEMORY_HOST_EXTENSION_NAME) ? kPageBytes : 0;
  if (options.exportable) exports = enable(VK_KHR_EXTERNAL_MEMORY_FD_EXTENSION_NAME);
  exports_timeline = exports && enable(VK_KHR_EXTERNAL_SEMAPHORE_FD_EXTENSION_NAME);
  if (options.exportable && !exports)
    return Status(Code::kUnavailable, report.name + " cannot export file descriptors; do without exportable");
  Features features;
  features.vulkan12.bufferDeviceAddress = VK_TRUE;
  features.vulkan12.timelineSemaphore = VK_TRUE;
  features.vulkan12.scalarBlockLayout = VK_TRUE;
  features.synchronization2.synchronization2 = VK_TRUE;
  VkDeviceCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO;
  info.pNext = &features.core;
  info.queueCreateInfoCount = 1;
  info.pQueueCreateInfos = &queue_info;
  info.enabledExtensionCount = static_cast<std::uint32_t>(names.size());
  info.ppEnabledExtensionNames = names.data();
  FIRN_TRY(check(instance_api.CreateDevice(physical, &info, nullptr, &device), "vkCreateDevice"));
  FIRN_ASSIGN(api, load_device(instance_api, device));
  api.GetDeviceQueue(device, family, 0, &queue);
  return {};
}

Status Context::adopt(const VulkanExisting& existing) {
  if (!existing.get_instance_proc_addr || !existing.instance || !existing.physical_device || !existing.device ||
      !existing.queue)
    return Status(Code::kInvalidArgument,
                  "existing Vulkan device: get_instance_proc_addr, instance, physical_device, device and queue must "
                  "all be set");
  owned_ = false;
  const auto get = reinterpret_cast<PFN_vkGetInstanceProcAddr>(existing.get_instance_proc_addr);
  instance = static_cast<VkInstance>(existing.instance);
  physical = static_cast<VkPhysicalDevice>(existing.physical_device);
  device = static_cast<VkDevice>(existing.device);
  queue = static_cast<VkQueue>(existing.queue);
  family = existing.queue_family;
  lock = existing.lock;
  unlock = existing.unlock;
  exports = exports_timeline = existing.exports_fds;
  limits.import_alignment = existing.imports_memory ? kPageBytes : 0;
  global_ = load_global(get);
  FIRN_ASSIGN(instance_api, load_instance(get, instance));
  FIRN_ASSIGN(api, load_device(instance_api, device));
  report = describe(physical, 0);
  if (!report.usable())
    return Status(Code::kUnavailable, fmt::format("{} lacks {}, which firn needs", report.name, report.missing[0]));
  return {};
}

void Context::note_limits() {
  VkPhysicalDeviceMemoryProperties2 properties{};
  properties.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2;
  instance_api.GetPhysicalDeviceMemoryProperties2(physical, &properties);
  memory = properties.memoryProperties;
  const auto limit = [&](const char* name) {
    for (const auto& [key, value] : report.limits)
      if (key == name) return value;
    return std::uint64_t{0};
  };
  const auto lowered = [](std::uint64_t value, std::uint64_t by) { return by != 0 ? std::min(value, by) : value; };
  limits.allocation_bytes = lowered(limit("max_allocation_bytes"), hooks.max_allocation_bytes);
  // Kernels go by address and bind no range; but a larger buffer is of no use to an engine that binds it.
  limits.buffer_bytes = std::min(kMaxRegion, lowered(limit("max_storage_range"), hooks.max_storage_range));
  limits.shared_bytes = static_cast<std::uint32_t>(limit("shared_bytes"));
  limits.threads = static_cast<std::uint32_t>(limit("workgroup_threads"));
  if (limits.import_alignment != 0) {
    VkPhysicalDeviceExternalMemoryHostPropertiesEXT host{};
    host.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT;
    VkPhysicalDeviceProperties2 asked{};
    asked.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2;
    asked.pNext = &host;
    instance_api.GetPhysicalDeviceProperties2(physical, &asked);
    limits.import_alignment = std::max<std::uint64_t>(kPageBytes, host.minImportedHostPointerAlignment);
  }
  // One pool of memory, or a whole card that the host can reach? The latter is slow to read for the host, so only
  // devices without memory of their own count.
  unified = report.type == "integrated" || report.type == "software";
}

Result<std::unique_ptr<Context>> Context::create(const VulkanOptions& options, const Hooks& hooks) {
  std::unique_ptr<Context> context(new Context);
  context->hooks = hooks;
  if (options.existing) {
    FIRN_TRY(context->adopt(*options.existing));
  } else {
    FIRN_TRY(context->open_instance());
    FIRN_TRY(context->choose(options.device));
    FIRN_TRY(context->open_device(options));
  }
  context->note_limits();
  return context;
}

Context::~Context() {
  if (!owned_) return;
  if (device && api.DestroyDevice) api.DestroyDevice(device, nullptr);
  if (messenger_) instance_api.DestroyDebugUtilsMessengerEXT(instance, messenger_, nullptr);
  if (instance && instance_api.DestroyInstance) instance_api.DestroyInstance(instance, nullptr);
}

}  // namespace firn::vk
