#include "core/vk/kernels.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/attention.h"
#include "core/base/check.h"
#include "core/vk/convert.h"
#include "shaders/kernel_params.h"

namespace firn::vk {
namespace {

constexpr std::uint32_t kCopyThreads = 128, kFillThreads = 32;
constexpr std::uint32_t kMaxGroups = 65535;  // of one dispatch in one dimension, on every device

// [token][head] rows with strides, as one range around them.
void add_rows(RangeSet& ranges, DeviceAddress base, std::uint64_t token_stride, std::uint64_t head_stride,
              std::uint32_t heads, std::uint64_t row_bytes, std::uint32_t token, std::uint32_t count) {
  if (base == 0 || count == 0) return;
  ranges.add(base + token * token_stride, (count - 1) * token_stride + (heads - 1) * head_stride + row_bytes);
}

static_assert(sizeof(AppendItem) == 48 && sizeof(CopyItem) == 72 && sizeof(BlockView) == 32 && sizeof(AttendItem) == 24,
              "the shaders know these sizes");
static_assert(static_cast<std::uint32_t>(Dtype::kF16) == shaders::kF16 &&
              static_cast<std::uint32_t>(Dtype::kBf16) == shaders::kBf16 &&
              static_cast<std::uint32_t>(Dtype::kF32) == shaders::kF32);
static_assert(kBlockTokens == shaders::kTokensOfBlock && kSplitTokens == shaders::kTokensOfSplit);

Status misaligned(const char* call, std::size_t item, std::uint32_t bytes) {
  return Status(Code::kInvalidArgument,
                fmt::format("{}: item {}: addresses and strides must be multiples of {} bytes, the size of an element",
                            call, item, bytes));
}

}  // namespace

std::uint64_t alignment_bits(const BlockView& view) {
  return view.k | view.v | view.token_stride | view.head_stride | view.v_token_stride | view.v_head_stride;
}

void add_keys(RangeSet& ranges, const KvShape& shape, const BlockView& view, std::uint32_t token, std::uint32_t count) {
  add_rows(ranges, view.k, view.token_stride, view.head_stride, shape.kv_heads, shape.head_dim * bytes_of(shape.dtype),
           token, count);
}
void add_values(RangeSet& ranges, const KvShape& shape, const BlockView& view, std::uint32_t token,
                std::uint32_t count) {
  add_rows(ranges, view.v, view.v_token_stride, view.v_head_stride, shape.kv_heads,
           shape.value_dim * bytes_of(shape.dtype), token, count);
}

Result<VkPipeline> DeviceKernels::pipeline(const Shader& shader, const std::vector<std::uint32_t>& constants) {
  const DeviceApi& api = context_.api;
  std::vector<std::uint64_t> key(constants.begin(), constants.end());
  key.push_back(reinterpret_cast<std::uintptr_t>(&shader));
  std::lock_guard lock(mutex_);
  if (const auto found = pipelines_.find(key); found != pipelines_.end()) return found->second.get();
  VkShaderModuleCreateInfo module_info{};
  module_info.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO;
  module_info.codeSize = shader.bytes;
  module_info.pCode = shader.words;
  VkShaderModule module{};
  FIRN_TRY(
      context_.check(api.CreateShaderModule(context_.device, &module_info, nullptr, &module), "vkCreateShaderModule"));
  const UniqueShader owned(module, {&api, context_.device});
  std::vector<VkSpecializationMapEntry> entries;
  for (std::uint32_t i = 0; i < constants.size(); ++i) entries.push_back({i, i * 4, 4});
  const VkSpecializationInfo specialisation{static_cast<std::uint32_t>(entries.size()), entries.data(),
                                            constants.size() * 4, constants.data()};
  VkComputePipelineCreateInfo info{};
  info.sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO;
  info.stage.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO;
  info.stage.stage = VK_SHADER_STAGE_COMPUTE_BIT;
  info.stage.module = module;
  info.stage.pName = "main";
  info.stage.pSpecializationInfo = &specialisation;
  info.layout = queue_.layout();
  VkPipeline made{};
  FIRN_TRY(context_.check(api.CreateComputePipelines(context_.device, VK_NULL_HANDLE, 1, &info, nullptr, &made),
                          "vkCreateComputePipelines"));
  pipelines_.emplace(std::move(key), UniquePipeline(made, {&api, context_.device}));
  return made;
}

Result<Fence> DeviceKernels::append(const AppendBatch& batch) {
  FIRN_TRY(validate(batch));
  const KvShape& shape = batch.shape;
  const std::uint32_t element = bytes_of(shape.dtype);
  std::uint64_t bits = element * (shape.head_dim | shape.value_dim);
  std::uint32_t rows = 0;
  for (std::size_t i = 0; i < batch.items.size(); ++i) {
    const std::uint64_t of_item = alignment_bits(batch.items[i].view);
    if (of_item % element != 0) return misaligned("append", i, element);
    bits |= of_item;
    rows = std::max(rows, batch.items[i].row + batch.items[i].token_count);
  }
  const std::uint32_t unit = element == 4 || bits % 4 == 0 ? 4 : 2;
  FIRN_ASSIGN(const VkPipeline code,
              pipeline(k_append_shader, {kCopyThreads, static_cast<std::uint32_t>(shape.dtype), unit}));
  return queue_.run(batch.items.size_bytes(), [&](Work& work) -> Status {
    const DeviceAddress items = work.upload(batch.items);
    for (std::size_t first = 0; first < batch.items.size(); first += kMaxGroups) {
      const auto count = static_cast<std::uint32_t>(std::min<std::size_t>(kMaxGroups, batch.items.size() - first));
      Operation operation;
      operation.name = "append";
      operation.pipeline = code;
      for (const AppendItem& item : batch.items.subspan(first, count)) {
        add_keys(operation.access.writes, shape, item.view, item.token, item.token_count);
        add_values(operation.access.writes, shape, item.view, item.token, item.token_count);
      }
      operation.access.reads.add(batch.k, std::uint64_t{rows} * shape.kv_heads * shape.head_dim * 4);
      operation.access.reads.add(batch.v, std::uint64_t{rows} * shape.kv_heads * shape.value_dim * 4);
      operation.work_bytes = count * kBlockTokens * shape.token_bytes() * 2;
      operation.set_push(shaders::AppendPush{.k = halves(batch.k),
                                             .v = halves(batch.v),
                                             .items = halves(items),
                                             .item_base = static_cast<std::uint32_t>(first),
                                             .kv_heads = shape.kv_heads,
                                             .head_dim = shape.head_dim,
                                             .value_dim = shape.value_dim});
      operation.groups[0] = count;
      operation.groups[1] = kBlockTokens;
      operation.groups[2] = 2;
      work.add(std::move(operation));
    }
    return {};
  });
}

Result<Fence> DeviceKernels::copy(const CopyBatch& batch) {
  FIRN_TRY(validate(batch));
  const KvShape& shape = batch.shape;
  const std::uint32_t element = bytes_of(shape.dtype);
  std::uint64_t bits = element * (shape.head_dim | shape.value_dim);
  for (std::size_t i = 0; i < batch.items.size(); ++i) {
    const std::uint64_t of_item = alignment_bits(batch.items[i].from) | alignment_bits(batch.items[i].to);
    if (of_item % element != 0) return misaligned("copy", i, element);
    bits |= of_item;
  }
  const std::uint32_t unit = bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 2;
  FIRN_ASSIGN(const VkPipeline code, pipeline(k_copy_shader, {kCopyThreads, unit}));
  return queue_.run(batch.items.size_bytes(), [&](Work& work) -> Status {
    const DeviceAddress items = work.upload(batch.items);
    for (std::size_t first = 0; first < batch.items.size(); first += kMaxGroups) {
      const auto count = static_cast<std::uint32_t>(std::min<std::size_t>(kMaxGroups, batch.items.size() - first));
      Operation operation;
      operation.name = "copy";
      operation.pipeline = code;
      for (const CopyItem& item : batch.items.subspan(first, count)) {
        add_keys(operation.access.reads, shape, item.from, 0, item.token_count);
        add_values(operation.access.reads, shape, item.from, 0, item.token_count);
        add_keys(operation.access.writes, shape, item.to, 0, item.token_count);
        add_values(operation.access.writes, shape, item.to, 0, item.token_count);
      }
      operation.work_bytes = count * kBlockTokens * shape.token_bytes() * 2;
      operation.set_push(shaders::CopyPush{.items = halves(items),
                                           .item_base = static_cast<std::uint32_t>(first),
                                           .kv_heads = shape.kv_heads,
                                           .key_bytes = shape.head_dim * element,
                                           .value_bytes = shape.value_dim * element});
      operation.groups[0] = count;
      operation.groups[1] = kBlockTokens;
      operation.groups[2] = 2;
      work.add(std::move(operation));
    }
    return {};
  });
}

Result<Fence> DeviceKernels::fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t value) {
  if (offset > region.bytes || bytes > region.bytes - offset)
    return Status(Code::kInvalidArgument, fmt::format("fill: bytes {} to {} do not lie within a region of {}", offset,
                                                      offset + bytes, region.bytes));
  const std::uint32_t word = value * 0x01010101u;
  const DeviceAddress begin = region.address + offset, end = begin + bytes;
  const auto place = memory_.find(begin, bytes);
  if (!place) return Status(Code::kInvalidArgument, "fill: the region is none of this device's");
  const DeviceAddress whole_begin = (begin + 3) / 4 * 4, whole_end = end / 4 * 4;
  // Bytes [from, to) of the word at an address, as a mask.
  const auto mask = [](std::uint64_t from, std::uint64_t to) {
    std::uint32_t bits = 0;
    for (std::uint64_t i = from; i < to; ++i) bits |= 0xFFu << (8 * i);
    return bits;
  };
  shaders::FillPush push{
      .head = halves(begin / 4 * 4), .tail = halves(whole_end), .head_mask = 0, .tail_mask = 0, .value = word};
  if (begin % 4 != 0) push.head_mask = mask(begin % 4, std::min<std::uint64_t>(4, begin % 4 + bytes));
  if (end % 4 != 0 && whole_end >= whole_begin) push.tail_mask = mask(0, end % 4);
  const bool edges = push.head_mask != 0 || push.tail_mask != 0;
  VkPipeline code{};
  if (edges) {
    FIRN_ASSIGN(code, pipeline(k_fill_shader, {kFillThreads}));
  }
  return queue_.run(0, [&](Work& work) -> Status {
    if (whole_end > whole_begin) {
      Operation operation;
      operation.name = "fill";
      operation.fill_buffer = place->buffer;
      operation.fill_offset = place->offset + (whole_begin - begin);
      operation.fill_bytes = whole_end - whole_begin;
      operation.fill_value = word;
      operation.work_bytes = operation.fill_bytes;
      operation.access.writes.add(whole_begin, operation.fill_bytes);
      work.add(std::move(operation));
    }
    if (edges) {
      Operation operation;
      operation.name = "fill";
      operation.pipeline = code;
      operation.set_push(push);
      // Whole words are written back.
      if (push.head_mask != 0) operation.access.writes.add(begin / 4 * 4, 4);
      if (push.tail_mask != 0) operation.access.writes.add(whole_end, 4);
      work.add(std::move(operation));
    }
    return {};
  });
}

}  // namespace firn::vk
