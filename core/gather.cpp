// gather.cpp: keys and values on their way back to the caller, a split of a sequence at a time. What is in slots is
// copied under the lock, where nobody can give a slot to somebody else; what is in frames is decoded into the staging
// region as for attention, without the lock, and copied from there.
#include <fmt/format.h>

#include <algorithm>

#include "core/manager_impl.h"

namespace firn {

Status ManagerImpl::gather(SeqId id, std::uint32_t layer, std::uint32_t first, std::uint32_t count,
                           std::span<std::byte> k, std::span<std::byte> v) {
  if (!bytes_) return Status(Code::kUnavailable, "gather: device none has no bytes");
  if (layer >= layout_.layer_count)
    return Status(Code::kInvalidArgument,
                  fmt::format("gather: layer {} of a model with {} layers", layer, layout_.layer_count));
  const PageSetId page_set = set_of_layer(layer);
  const PageSet& set = layout_.sets[index(page_set)];
  const KvShape& kv = set.kv;
  if (k.size() != count * kv.key_bytes() || v.size() != count * kv.value_bytes())
    return Status(Code::kInvalidArgument,
                  fmt::format("gather: k has {} bytes and v {}, but {} tokens have {} and {}", k.size(), v.size(),
                              count, count * kv.key_bytes(), count * kv.value_bytes()));
  if (!memory_->readable())
    return Status(Code::kUnavailable, "gather: this device's memory is not visible to the host");
  const std::uint64_t end = std::uint64_t{first} + count;
  struct Waiting {  // rows that are being decoded
    BlockView view;
    std::uint32_t first, count, done;
  };
  std::vector<StagedFrame> staged;
  std::vector<Waiting> waiting;
  std::lock_guard one_at_a_time(attend_mutex_);  // staging is one
  for (std::uint32_t done = 0; done < count || count == 0;) {
    staged.clear();
    waiting.clear();
    {
      Lock lock(mutex_);
      FIRN_TRY(settle_lossy(lock).with_context("gather"));
      // Looked up again for every split: another thread may have ended the sequence meanwhile.
      FIRN_ASSIGN(const Sequence* seq, get_sequence(id, "gather"));
      if (end > seq->tokens.size())
        return Status(Code::kInvalidArgument,
                      fmt::format("gather: tokens [{}, {}) of sequence {}, which has {} committed", first, end,
                                  index(id), seq->tokens.size()));
      if (count == 0) return {};
      if (done == 0) FIRN_TRY(device_->timeline().wait(device_->timeline().last()).with_context("gather"));
      const std::uint32_t split_end = static_cast<std::uint32_t>(
          std::min<std::uint64_t>(end, (first + done) / kSplitTokens * kSplitTokens + kSplitTokens));
      while (first + done < split_end) {
        const std::uint32_t position = first + done, token = position % kBlockTokens;
        const std::uint32_t rows = std::min(kBlockTokens - token, split_end - position);
        std::byte* const to_k = k.data() + done * kv.key_bytes();
        std::byte* const to_v = v.data() + done * kv.value_bytes();
        const BlockId block_id = seq->tables[index(page_set)].blocks[position / kBlockTokens];
        if (block_id == BlockId::kNone)
          return Status(Code::kUnavailable,
                        fmt::format("gather: token {} of sequence {} has slid out of the window of {} of layer {}",
                                    position, index(id), set.window, layer));
        const Block& block = pool_->block(block_id);
        if (block.slot != SlotId::kNone) {
          FIRN_TRY(memory_->read_rows(set, block.slot, layer - set.first_layer, token, rows, to_k, to_v)
                       .with_context("gather"));
        } else if (block.frame == FrameId::kNone) {
          return Status(Code::kCorrupt,
                        fmt::format("gather: sequence {} lost its tokens from position {} {}; rewind to "
                                    "usable_tokens() and compute them again",
                                    index(id), position / kBlockTokens * kBlockTokens, why_lost(*seq)));
        } else {
          const BlockView view =
              staging_.on_host(stage(staged, static_cast<std::uint32_t>(waiting.size()), set, block));
          waiting.push_back({view, token, rows, done});
        }
        done += rows;
      }
    }
    FIRN_TRY(decode_staged(set, layer - set.first_layer, staged)
                 .with_context("gather: a frame did not decode; rewind to usable_tokens()"));
    for (const Waiting& rows : waiting)
      copy_block_rows(kv, rows.view, rows.first, rows.count, k.data() + rows.done * kv.key_bytes(),
                      v.data() + rows.done * kv.value_bytes());
  }
  return {};
}

}  // namespace firn
