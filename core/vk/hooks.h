// hooks.h: what tests change about a device: limits that this machine's driver does not have, failures it never shows,
// mistakes that must be caught. All off by default, and none reachable from the configuration.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace firn::vk {

// How ready operations are ordered and separated.
enum class Ordering : std::uint8_t {
  kPlain,       // as they came, a barrier where ranges conflict
  kEverything,  // a barrier before every operation: if a result changes, a barrier was missing
  kShuffle,     // operations that do not conflict change places: if a result changes, a range was missing
};

struct Hooks {
  std::string library = "libvulkan.so.1";
  // The Khronos validation layer with synchronisation validation. Every warning and error goes to on_message, until
  // after the instance is gone, because leaked objects are reported then.
  bool validation = false;
  std::function<void(const std::string&)> on_message;
  std::string missing_feature;  // pretends that every device lacks it
  // 0: the driver's own.
  std::uint64_t max_allocation_bytes = 0, max_storage_range = 0, heap_bytes = 0;
  bool hide_host_memory = false;  // the pool has no host pointer, as on a card of its own
  bool zero_regions = true;       // false: a region of many GiB stays unbacked until it is written
  bool check_hazards = false;     // every operation against outstanding accesses and living regions; on_message hears
  Ordering ordering = Ordering::kPlain;
  std::uint64_t seed = 1;                           // of kShuffle
  std::uint64_t submission_bytes = 0;               // work in one submission; 0: the device's own choice
  std::uint32_t threads = 0, lanes = 0, pairs = 0;  // shape of attend's workgroups; 0: the device's own choice
};

}  // namespace firn::vk
