#include "core/vk/queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "core/base/check.h"
#include "core/base/fences.h"

namespace firn::vk {
namespace {

constexpr std::uint64_t kMinArena = 64u << 10, kMaxArenaBytes = 64u << 20;
constexpr std::size_t kMaxInFlight = 64;        // submissions
constexpr std::uint32_t kShuffledCalls = 8;     // held back to be shuffled
constexpr std::uint64_t kWorkBytes = 1u << 30;  // of one submission: 20 ms where 50 GB/s are reached
constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();

// Whatever came before is finished and visible to whatever comes behind.
VkMemoryBarrier2 between_operations() {
  VkMemoryBarrier2 barrier{};
  barrier.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER_2;
  barrier.srcStageMask = VK_PIPELINE_STAGE_2_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_2_ALL_TRANSFER_BIT;
  barrier.srcAccessMask = VK_ACCESS_2_SHADER_WRITE_BIT | VK_ACCESS_2_TRANSFER_WRITE_BIT;
  barrier.dstStageMask = barrier.srcStageMask;
  barrier.dstAccessMask = barrier.srcAccessMask | VK_ACCESS_2_SHADER_READ_BIT | VK_ACCESS_2_TRANSFER_READ_BIT;
  return barrier;
}
// Coherent memory needs this too before the host reads it.
VkMemoryBarrier2 before_host() {
  VkMemoryBarrier2 barrier = between_operations();
  barrier.dstStageMask = VK_PIPELINE_STAGE_2_HOST_BIT;
  barrier.dstAccessMask = VK_ACCESS_2_HOST_READ_BIT | VK_ACCESS_2_HOST_WRITE_BIT;
  return barrier;
}

}  // namespace

DeviceAddress Work::upload(const void* data, std::uint64_t bytes) {
  FIRN_CHECK(used_ + bytes <= bytes_);
  if (bytes != 0) std::memcpy(map_ + used_, data, bytes);
  const DeviceAddress at = address_ + used_;
  used_ = (used_ + bytes + 15) / 16 * 16;
  return at;
}

Result<std::unique_ptr<Queue>> Queue::create(Context& context, DeviceMemory& memory, bool exportable) {
  std::unique_ptr<Queue> queue(new Queue(context, memory));
  FIRN_TRY(queue->set_up(exportable));
  return queue;
}

Status Queue::set_up(bool exportable) {
  handle_ = next_timeline_handle();
  submission_bytes_ = context_.hooks.submission_bytes != 0 ? context_.hooks.submission_bytes : kWorkBytes;
  const DeviceApi& api = context_.api;
  VkPushConstantRange range{VK_SHADER_STAGE_COMPUTE_BIT, 0, 128};
  VkPipelineLayoutCreateInfo layout_info{};
  layout_info.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO;
  layout_info.pushConstantRangeCount = 1;
  layout_info.pPushConstantRanges = &range;
  VkPipelineLayout layout{};
  FIRN_TRY(context_.check(api.CreatePipelineLayout(context_.device, &layout_info, nullptr, &layout),
                          "vkCreatePipelineLayout"));
  layout_ = UniqueLayout(layout, {&api, context_.device});
  VkExportSemaphoreCreateInfo export_info{};
  export_info.sType = VK_STRUCTURE_TYPE_EXPORT_SEMAPHORE_CREATE_INFO;
  export_info.handleTypes = VK_EXTERNAL_SEMAPHORE_HANDLE_TYPE_OPAQUE_FD_BIT;
  VkSemaphoreTypeCreateInfo type{};
  type.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO;
  type.semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE;
  // Some drivers export memory but no timelines, so this is asked for apart.
  VkPhysicalDeviceExternalSemaphoreInfo asked{};
  asked.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_SEMAPHORE_INFO;
  asked.pNext = &type;
  asked.handleType = VK_EXTERNAL_SEMAPHORE_HANDLE_TYPE_OPAQUE_FD_BIT;
  VkExternalSemaphoreProperties able{};
  able.sType = VK_STRUCTURE_TYPE_EXTERNAL_SEMAPHORE_PROPERTIES;
  if (exportable && context_.exports_timeline)
    context_.instance_api.GetPhysicalDeviceExternalSemaphoreProperties(context_.physical, &asked, &able);
  const bool can_export = (able.externalSemaphoreFeatures & VK_EXTERNAL_SEMAPHORE_FEATURE_EXPORTABLE_BIT) != 0;
  if (can_export) type.pNext = &export_info;
  exportable_ = can_export;
  VkSemaphoreCreateInfo semaphore_info{};
  semaphore_info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO;
  semaphore_info.pNext = &type;
  VkSemaphore semaphore{};
  FIRN_TRY(
      context_.check(api.CreateSemaphore(context_.device, &semaphore_info, nullptr, &semaphore), "vkCreateSemaphore"));
  semaphore_ = UniqueSemaphore(semaphore, {&api, context_.device});
  return {};
}

Queue::~Queue() {
  {
    std::lock_guard lock(mutex_);
    flush().ok();
  }
  // A device that never answers is destroyed all the same: waiting longer would hang the program instead.
  constexpr std::int64_t kPatience = 10'000'000'000;
  if (!wait_value(submitted_, kPatience).ok()) context_.lose();
  for (Arena& arena : arenas_) memory_.release(arena.block);
}

std::uint64_t Queue::reached() const {
  if (context_.lost()) return ~std::uint64_t{0};
  std::uint64_t value = 0;
  if (!context_
           .check(context_.api.GetSemaphoreCounterValue(context_.device, semaphore_.get(), &value),
                  "vkGetSemaphoreCounterValue")
           .ok())
    return context_.lost() ? ~std::uint64_t{0} : 0;
  return value;
}

Status Queue::wait_value(std::uint64_t value, std::int64_t timeout_ns) const {
  if (context_.lost()) return Context::lost_status();
  VkSemaphoreWaitInfo info{};
  info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO;
  info.semaphoreCount = 1;
  const VkSemaphore semaphore = semaphore_.get();
  info.pSemaphores = &semaphore;
  info.pValues = &value;
  const VkResult result = context_.api.WaitSemaphores(
      context_.device, &info, static_cast<std::uint64_t>(std::max<std::int64_t>(0, timeout_ns)));
  if (result == VK_TIMEOUT)
    return Status(Code::kUnavailable, fmt::format("{} has not finished yet", context_.report.name));
  // Work that nobody can wait for is as good as lost: what it writes may be given to somebody else.
  if (result != VK_SUCCESS) {
    const Status status = context_.check(result, "vkWaitSemaphores");
    context_.lose();
    return status;
  }
  // A wait may succeed on a lost device.
  if (reached() >= value && !context_.lost()) return {};
  context_.lose();
  return Context::lost_status();
}

Fence Queue::last() const {
  std::lock_guard lock(mutex_);
  return {Fence::Kind::kTimeline, handle_, promised_};
}

// What was promised and could not be submitted is taken back; then nothing is promised any more.
Status Queue::check(const Fence& fence) const {
  return check_fence(fence, {Fence::Kind::kTimeline, handle_, context_.lost() ? ~std::uint64_t{0} : promised_});
}

bool Queue::passed(const Fence& fence) const {
  if (fence.kind == Fence::Kind::kNone) return true;
  {
    std::lock_guard lock(mutex_);
    if (!check(fence).ok()) return false;
    // Somebody asks, so nothing may be held back. Failing is said to those who wait.
    if (fence.value > submitted_) const_cast<Queue*>(this)->flush().ok();
  }
  return reached() >= fence.value;
}

Status Queue::wait(const Fence& fence, std::int64_t timeout_ns) {
  if (fence.kind == Fence::Kind::kNone) return {};
  {
    std::lock_guard lock(mutex_);
    FIRN_TRY(check(fence));
    if (fence.value > submitted_) FIRN_TRY(flush());
  }
  return wait_value(fence.value, timeout_ns);
}

Result<Queue::Arena> Queue::take_arena(std::uint64_t bytes) {
  for (;;) {
    const std::uint64_t done = reached();
    const auto spare = std::find_if(arenas_.begin(), arenas_.end(), [&](const Arena& arena) {
      return arena.value <= done && arena.block.bytes >= bytes;
    });
    if (spare != arenas_.end()) {
      Arena arena = std::move(*spare);
      arenas_.erase(spare);
      return arena;
    }
    if (arena_bytes_ + bytes <= kMaxArenaBytes || arenas_.empty()) break;
    // Too small or still read: the oldest makes room.
    FIRN_TRY(flush());
    FIRN_TRY(wait_value(arenas_.front().value, kForever));
    if (arenas_.front().block.bytes >= bytes) continue;
    memory_.release(arenas_.front().block);
    arena_bytes_ -= arenas_.front().block.bytes;
    arenas_.pop_front();
  }
  std::uint64_t size = kMinArena;
  while (size < bytes) size *= 2;
  FIRN_ASSIGN(Block block, memory_.allocate_host_block(size));
  arena_bytes_ += size;
  return Arena{std::move(block), 0};
}

Result<Queue::Commands> Queue::take_commands() {
  const DeviceApi& api = context_.api;
  if (!commands_.empty() && (commands_.size() >= kMaxInFlight || reached() >= commands_.front().value)) {
    FIRN_TRY(wait_value(commands_.front().value, kForever));
    Commands commands = std::move(commands_.front());
    commands_.pop_front();
    FIRN_TRY(context_.check(api.ResetCommandPool(context_.device, commands.pool.get(), 0), "vkResetCommandPool"));
    return commands;
  }
  Commands commands;
  VkCommandPoolCreateInfo pool_info{};
  pool_info.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO;
  pool_info.flags = VK_COMMAND_POOL_CREATE_TRANSIENT_BIT;
  pool_info.queueFamilyIndex = context_.family;
  VkCommandPool pool{};
  FIRN_TRY(context_.check(api.CreateCommandPool(context_.device, &pool_info, nullptr, &pool), "vkCreateCommandPool"));
  commands.pool = UniqueCommandPool(pool, {&api, context_.device});
  VkCommandBufferAllocateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO;
  info.commandPool = pool;
  info.level = VK_COMMAND_BUFFER_LEVEL_PRIMARY;
  info.commandBufferCount = 1;
  FIRN_TRY(
      context_.check(api.AllocateCommandBuffers(context_.device, &info, &commands.buffer), "vkAllocateCommandBuffers"));
  return commands;
}

Result<Fence> Queue::run(std::uint64_t table_bytes, const std::function<Status(Work&)>& build) {
  std::lock_guard lock(mutex_);
  if (context_.lost()) return Context::lost_status();
  FIRN_ASSIGN(Arena arena, take_arena(table_bytes));
  Work work(arena.block.map, arena.block.address, arena.block.bytes, open_);
  const std::size_t before = open_.size();
  const Status built = build(work);
  arena.value = submitted_;
  if (!built.ok()) {
    open_.resize(before);
    arenas_.push_front(std::move(arena));
    return built;
  }
  open_arenas_.push_back(std::move(arena));
  promised_ = submitted_ + 1;
  ++open_calls_;
  const bool hold = context_.hooks.ordering == Ordering::kShuffle && open_calls_ < kShuffledCalls;
  // More than one submission's worth takes several values, and a fence must mean the last.
  if (!hold) FIRN_TRY(flush());
  return Fence{Fence::Kind::kTimeline, handle_, promised_};
}

Status Queue::flush() {
  if (open_calls_ == 0) return {};
  std::vector<std::size_t> order(open_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (context_.hooks.ordering == Ordering::kShuffle) {
    std::vector<const Access*> accesses;
    for (Operation& operation : open_) {
      if (drop_range_ != 0 && --drop_range_ == 0) operation.access.writes.clear();
      accesses.push_back(&operation.access);
    }
    order = shuffled_order(accesses, context_.hooks.seed + ++shuffles_);
  }
  // What is too much for one submission goes in several; the last signals, which covers all that were submitted before.
  Status status;
  std::size_t first = 0;
  std::uint64_t work = 0;
  for (std::size_t i = 0; status.ok() && i < order.size(); ++i) {
    work += open_[order[i]].work_bytes;
    if (work < submission_bytes_ && i + 1 < order.size()) continue;
    const bool last = i + 1 == order.size();
    status = submit(std::span(order).subspan(first, i + 1 - first), last ? promised_ : 0);
    first = i + 1;
    work = 0;
  }
  if (status.ok() && order.empty()) status = submit({}, promised_);
  if (status.ok()) submitted_ = promised_;
  for (Arena& arena : open_arenas_) {
    arena.value = promised_;
    arenas_.push_back(std::move(arena));
  }
  open_arenas_.clear();
  open_.clear();
  open_calls_ = 0;
  if (!status.ok() && first != 0) context_.lose();  // a part is on its way, and no fence says when it is done
  if (!status.ok()) promised_ = submitted_;
  return status;
}

// value 0: signals nothing; a later submission of the same flush will.
Status Queue::submit(std::span<const std::size_t> order, std::uint64_t value) {
  const DeviceApi& api = context_.api;
  if (context_.lost()) return Context::lost_status();
  FIRN_ASSIGN(Commands commands, take_commands());
  VkCommandBufferBeginInfo begin{};
  begin.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO;
  begin.flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT;
  FIRN_TRY(context_.check(api.BeginCommandBuffer(commands.buffer, &begin), "vkBeginCommandBuffer"));
  for (const std::size_t i : order) record(commands.buffer, open_[i]);
  const VkMemoryBarrier2 barrier = before_host();
  VkDependencyInfo dependency{};
  dependency.sType = VK_STRUCTURE_TYPE_DEPENDENCY_INFO;
  dependency.memoryBarrierCount = 1;
  dependency.pMemoryBarriers = &barrier;
  if (value != 0) api.CmdPipelineBarrier2(commands.buffer, &dependency);
  FIRN_TRY(context_.check(api.EndCommandBuffer(commands.buffer), "vkEndCommandBuffer"));
  VkCommandBufferSubmitInfo buffer{};
  buffer.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_SUBMIT_INFO;
  buffer.commandBuffer = commands.buffer;
  VkSemaphoreSubmitInfo signal{};
  signal.sType = VK_STRUCTURE_TYPE_SEMAPHORE_SUBMIT_INFO;
  signal.semaphore = semaphore_.get();
  signal.value = value;
  signal.stageMask = VK_PIPELINE_STAGE_2_ALL_COMMANDS_BIT;
  VkSubmitInfo2 info{};
  info.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO_2;
  info.commandBufferInfoCount = 1;
  info.pCommandBufferInfos = &buffer;
  info.signalSemaphoreInfoCount = value != 0 ? 1 : 0;
  info.pSignalSemaphoreInfos = &signal;
  if (context_.lock) context_.lock();
  const VkResult result = api.QueueSubmit2(context_.queue, 1, &info, VK_NULL_HANDLE);
  if (context_.unlock) context_.unlock();
  FIRN_TRY(context_.check(result, "vkQueueSubmit2"));
  ++counters_.submissions;
  commands.value = promised_;  // the flush's last submission comes behind this one
  commands_.push_back(std::move(commands));
  return {};
}

void Queue::record(VkCommandBuffer buffer, Operation& operation) {
  const DeviceApi& api = context_.api;
  bool barrier = outstanding_.conflicts(operation.access) || context_.hooks.ordering == Ordering::kEverything;
  if (barrier && skip_barrier_ != 0 && --skip_barrier_ == 0) barrier = false;
  if (barrier) {
    const VkMemoryBarrier2 memory = between_operations();
    VkDependencyInfo dependency{};
    dependency.sType = VK_STRUCTURE_TYPE_DEPENDENCY_INFO;
    dependency.memoryBarrierCount = 1;
    dependency.pMemoryBarriers = &memory;
    api.CmdPipelineBarrier2(buffer, &dependency);
    outstanding_.clear();
    checked_.clear();
    ++counters_.barriers;
  }
  outstanding_.add(operation.access);
  if (context_.hooks.check_hazards) {
    check(operation);
    checked_.add(operation.access);
  }
  ++counters_.operations;
  if (operation.pipeline) {
    api.CmdBindPipeline(buffer, VK_PIPELINE_BIND_POINT_COMPUTE, operation.pipeline);
    api.CmdPushConstants(buffer, layout_.get(), VK_SHADER_STAGE_COMPUTE_BIT, 0, operation.push_bytes,
                         operation.push.data());
    api.CmdDispatch(buffer, operation.groups[0], operation.groups[1], operation.groups[2]);
  } else {
    api.CmdFillBuffer(buffer, operation.fill_buffer, operation.fill_offset, operation.fill_bytes, operation.fill_value);
  }
}

void Queue::check(const Operation& operation) const {
  if (checked_.conflicts(operation.access))
    context_.complain(
        fmt::format("firn: {} touches bytes that an earlier operation may still be writing or reading, and no barrier "
                    "is between them",
                    operation.name));
  ByteRange outside;
  if (!memory_.covers(operation.access.writes, outside))
    context_.complain(fmt::format("firn: {} writes {:#x} to {:#x}, which do not lie within living regions",
                                  operation.name, outside.begin, outside.end));
  if (!memory_.covers(operation.access.reads, outside))
    context_.complain(fmt::format("firn: {} reads {:#x} to {:#x}, which do not lie within living regions",
                                  operation.name, outside.begin, outside.end));
}

Result<int> Queue::export_fd() {
  if (!exportable_ || !context_.api.GetSemaphoreFdKHR)
    return Status(Code::kUnavailable, context_.report.name + " cannot export its timeline, or was not made exportable");
  VkSemaphoreGetFdInfoKHR info{};
  info.sType = VK_STRUCTURE_TYPE_SEMAPHORE_GET_FD_INFO_KHR;
  info.semaphore = semaphore_.get();
  info.handleType = VK_EXTERNAL_SEMAPHORE_HANDLE_TYPE_OPAQUE_FD_BIT;
  int fd = -1;
  FIRN_TRY(context_.check(context_.api.GetSemaphoreFdKHR(context_.device, &info, &fd), "vkGetSemaphoreFdKHR"));
  return fd;
}

void Queue::break_barrier(std::uint64_t countdown) {
  std::lock_guard lock(mutex_);
  skip_barrier_ = countdown;
}
void Queue::break_range(std::uint64_t countdown) {
  std::lock_guard lock(mutex_);
  drop_range_ = countdown;
}
Queue::Counters Queue::counters() const {
  std::lock_guard lock(mutex_);
  return counters_;
}

}  // namespace firn::vk
