// kernels.h: the kernels of the vulkan backend: tables are uploaded, ranges named, one dispatch over all work items
// recorded. Pipelines are made when a shape is first used and kept.
// Threads:  any; the queue serialises recording.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "core/vk/context.h"
#include "core/vk/queue.h"
#include "core/vk/shaders.h"
#include "firn/coding.h"

namespace firn::vk {

class DeviceKernels final : public Kernels, public CodingKernels {
 public:
  DeviceKernels(Context& context, DeviceMemory& memory, Queue& queue)
      : context_(context), memory_(memory), queue_(queue) {}
  Result<Fence> append(const AppendBatch& batch) override;
  Result<Fence> copy(const CopyBatch& batch) override;
  Result<Fence> fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t value) override;
  Result<Fence> attend(const AttendBatch& batch) override;
  Result<Fence> encode(const IntegerBatch& batch) override;  // coding.cpp
  Result<Fence> decode(const IntegerBatch& batch) override;
  Result<Fence> encode(const TransformBatch& batch) override;
  Result<Fence> decode(const TransformBatch& batch) override;

 private:
  struct AttendShape;
  struct Plan;
  // Specialisation constants by id.
  Result<VkPipeline> pipeline(const Shader& shader, const std::vector<std::uint32_t>& constants);
  AttendShape attend_shape(const AttendBatch& batch, std::uint32_t most_pairs) const;
  Result<VkPipeline> attend_pipeline(const AttendBatch& batch, const AttendShape& shape, bool fold);
  Result<Fence> code_integers(const IntegerBatch& batch, bool encoding);
  struct TransformPlan;
  Status add_rows_step(Work& work, const TransformPlan& plan, std::size_t first, std::size_t count, bool encoding);
  Status add_product_step(Work& work, const TransformPlan& plan, bool encoding);
  Status add_pack_step(Work& work, const TransformPlan& plan, std::size_t first, std::size_t count, bool encoding);
  Result<Fence> code_transform(const TransformBatch& batch, bool encoding);
  Status add_partials(Work& work, const AttendBatch& batch, Plan& plan);
  Status add_folding(Work& work, const AttendBatch& batch, Plan& plan);
  Status add_fold(Work& work, const AttendBatch& batch, Plan& plan);
  Status clear_mass(Work& work, const AttendBatch& batch);
  Status add_mass(Work& work, const AttendBatch& batch);

  Context& context_;
  DeviceMemory& memory_;
  Queue& queue_;
  std::mutex mutex_;
  std::map<std::vector<std::uint64_t>, UniquePipeline> pipelines_;  // by shader and constants
};

// What every access to a block must be a multiple of, and what one view's tensor spans.
std::uint64_t alignment_bits(const BlockView& view);
void add_keys(RangeSet& ranges, const KvShape& shape, const BlockView& view, std::uint32_t token, std::uint32_t count);
void add_values(RangeSet& ranges, const KvShape& shape, const BlockView& view, std::uint32_t token,
                std::uint32_t count);

}  // namespace firn::vk
