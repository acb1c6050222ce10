// attention.cpp: append and attend. Attention covers a whole sequence wherever its blocks are: slots are read in place,
// cold blocks are decoded into the staging region, one layer of them at a time.
//
// A step's work is cut into items, one per (rows of a sequence, split of 256 tokens), and items are attended in waves:
// as many as staging and workspace hold. The kernels fold splits in ascending position whatever the waves are, so that
// budget and residency change the time a step takes and never its result.
#include <fmt/format.h>

#include <algorithm>

#include "core/base/attention.h"
#include "core/manager_impl.h"

namespace firn {

struct ManagerImpl::Wave {
  std::vector<AttendItem> items;
  std::vector<BlockView> views;
  std::vector<StagedFrame> staged;
  std::uint32_t staging_blocks = 0;
  std::uint64_t partial_rows = 0;
  // Where the next wave goes on.
  std::size_t next_rows = 0;
  std::uint32_t next_split = 0;
  void clear() {
    items.clear();
    views.clear();
    staged.clear();
    staging_blocks = 0;
    partial_rows = 0;
  }
};

Status ManagerImpl::check_rows(std::uint32_t layer, std::span<const StepRows> rows) const {
  if (layer >= layout_.layer_count)
    return Status(Code::kInvalidArgument,
                  fmt::format("layer {} of a model with {} layers", layer, layout_.layer_count));
  for (const StepRows& part : rows) {
    const Sequence* seq = find_sequence(part.seq);
    if (!seq) return Status(Code::kInvalidArgument, fmt::format("sequence {} does not exist", index(part.seq)));
    if (seq->preempted)
      return Status(Code::kInvalidArgument,
                    fmt::format("sequence {} is preempted; resume() it first", index(part.seq)));
    if (part.row_count == 0 || std::uint64_t{part.row} + part.row_count > max_rows_)
      return Status(Code::kInvalidArgument,
                    fmt::format("rows [{}, {}) of a step that may have {} (pool.max_step_tokens)", part.row,
                                std::uint64_t{part.row} + part.row_count, max_rows_));
    const std::uint64_t room = std::uint64_t{seq->block_count()} * kBlockTokens;
    if (std::uint64_t{part.position} + part.row_count > room)
      return Status(Code::kInvalidArgument,
                    fmt::format("sequence {}: positions [{}, {}) reach past the {} allocated; allocate first",
                                index(part.seq), part.position, std::uint64_t{part.position} + part.row_count, room));
    if (part.position > seq->tokens.size())
      return Status(Code::kInvalidArgument, fmt::format("sequence {}: position {} leaves a gap after its {} tokens",
                                                        index(part.seq), part.position, seq->tokens.size()));
  }
  return {};
}

Status ManagerImpl::check_windows(PageSetId page_set, std::span<const StepRows> rows) const {
  const PageSet& set = layout_.sets[index(page_set)];
  if (set.kind != GroupKind::kSlidingWindow) return {};
  for (const StepRows& part : rows) {
    const Sequence& seq = *find_sequence(part.seq);
    if (part.position >= seq.tokens.size()) continue;  // what uncommitted rows see is held
    const std::vector<BlockId>& blocks = seq.tables[index(page_set)].blocks;
    const std::uint32_t first = first_needed(set, part.position);
    for (std::uint32_t i = first; i * std::uint64_t{kBlockTokens} <= part.position; ++i)
      if (blocks[i] == BlockId::kNone)
        return Status(
            Code::kInvalidArgument,
            fmt::format("row {} at position {} of sequence {} sees tokens {} and on through the window of {}, and the "
                        "sequence has given up those of block {} since that row was committed; rewind({}) takes "
                        "back what is still cached, or attend rows before they are committed",
                        part.row, part.position, index(part.seq),
                        part.position - std::min(part.position, set.window - 1), set.window, i, part.position));
  }
  return {};
}

void ManagerImpl::note_cut(const Sequence& seq) {
  if (step_running(seq.step)) cuts_.push_back({seq.id, last_step_});
}

Status ManagerImpl::check_cuts(std::string_view call, std::span<const StepRows> rows, std::uint64_t step) const {
  for (const Cut& cut : cuts_)
    for (const StepRows& part : rows)
      if (part.seq == cut.seq && cut.step >= step)
        return Status(Code::kInvalidArgument,
                      fmt::format("{}: another thread has freed, preempted or rewound sequence {} meanwhile; its rows "
                                  "are worth nothing",
                                  call, index(part.seq)));
  return {};
}

void ManagerImpl::end_step(std::uint64_t step) {
  --running_steps_;
  steps_.erase(std::find(steps_.begin(), steps_.end(), step));
  std::erase_if(cuts_, [&](const Cut& cut) { return !step_running(cut.step); });
  if (!deferred_.empty()) release_deferred();
  if (running_steps_ == 0 || !deferred_.empty()) moved_.notify_all();
}

Result<Fence> ManagerImpl::append(std::uint32_t layer, std::span<const StepRows> rows, DeviceAddress k,
                                  DeviceAddress v) {
  if (!bytes_) return Fence{};
  std::vector<AppendItem> items;
  KvShape kv;
  StepGuard step(*this);
  {
    Lock lock(mutex_);
    FIRN_TRY(check_rows(layer, rows).with_context("append"));
    step.start(rows);
    const PageSetId page_set = set_of_layer(layer);
    const PageSet& set = layout_.sets[index(page_set)];
    kv = set.kv;
    for (const StepRows& part : rows) {
      const Sequence& seq = *find_sequence(part.seq);
      if (part.position < seq.tokens.size())
        return Status(Code::kInvalidArgument,
                      fmt::format("append: position {} of sequence {} is committed; rewind first", part.position,
                                  index(part.seq)));
      for (std::uint32_t done = 0; done < part.row_count;) {
        const std::uint32_t position = part.position + done, token = position % kBlockTokens;
        const std::uint32_t count = std::min(part.row_count - done, kBlockTokens - token);
        const BlockId id = seq.tables[index(page_set)].blocks[position / kBlockTokens];
        if (must_copy(id))
          return Status(Code::kInvalidArgument,
                        fmt::format("append: the block of position {} of sequence {} is shared; "
                                    "allocate first",
                                    position, index(part.seq)));
        items.push_back(
            {memory_->view(set, pool_->block(id).slot, layer - set.first_layer), part.row + done, token, count});
        done += count;
      }
    }
  }
  FIRN_ASSIGN(const Fence fence, device_->kernels().append({kv, k, v, items}));
  Lock lock(mutex_);
  memory_->note_write(fence);
  const Status cut = check_cuts("append", rows, step.number());
  step.end();
  if (!cut.ok()) return cut;
  return fence;
}

// Fills a wave from where the last one ended. Under the lock; what it decodes is pinned in the tier.
Status ManagerImpl::plan_wave(Wave& wave, PageSetId page_set, std::span<const StepRows> rows) const {
  const PageSet& set = layout_.sets[index(page_set)];
  const KvShape& kv = set.kv;
  const std::uint64_t partials_bytes = workspace_->bytes / 2, row_bytes = Kernels::state_bytes(kv, set.query_heads, 1);
  wave.clear();
  for (; wave.next_rows < rows.size(); ++wave.next_rows, wave.next_split = 0) {
    const StepRows& part = rows[wave.next_rows];
    const std::vector<BlockId>& blocks = find_sequence(part.seq)->tables[index(page_set)].blocks;
    const std::uint32_t total = part.position + part.row_count;
    // What is before the window of the first row is no part of anybody's: those splits are left out.
    wave.next_split =
        std::max(wave.next_split, first_needed(set, part.position) * kBlockTokens / kSplitTokens * kSplitTokens);
    for (; wave.next_split < total; wave.next_split += kSplitTokens) {
      const std::uint32_t tokens = std::min(kSplitTokens, total - wave.next_split);
      const std::uint32_t first = wave.next_split / kBlockTokens, count = (tokens + kBlockTokens - 1) / kBlockTokens;
      std::uint32_t cold = 0;
      for (std::uint32_t i = first; i < first + count; ++i)
        cold += blocks[i] != BlockId::kNone && pool_->block(blocks[i]).slot == SlotId::kNone;
      const std::uint32_t partial_rows = part.row_count <= kPartialRows ? part.row_count : 0;
      const bool fits = partial_table_bytes(wave.items.size() + 1) + (wave.partial_rows + partial_rows) * row_bytes <=
                            partials_bytes &&
                        wave.staging_blocks + cold <= staging_.blocks();
      if (!wave.items.empty() && !fits) return {};
      FIRN_CHECK(fits);  // one split always does: set_up sized both for it
      wave.items.push_back({.row = part.row,
                            .row_count = part.row_count,
                            .position = part.position,
                            .split = wave.next_split,
                            .token_count = tokens,
                            .view = static_cast<std::uint32_t>(wave.views.size())});
      wave.partial_rows += partial_rows;
      for (std::uint32_t i = first; i < first + count; ++i) {
        if (blocks[i] == BlockId::kNone) {  // behind the window
          wave.views.push_back({});
          continue;
        }
        const Block& block = pool_->block(blocks[i]);
        if (block.slot != SlotId::kNone) {
          wave.views.push_back(memory_->view(set, block.slot, 0));
          continue;
        }
        if (block.frame == FrameId::kNone)
          return Status(Code::kCorrupt,
                        fmt::format("attend: sequence {} lost its tokens from position {} {}; rewind to "
                                    "usable_tokens() and compute them again",
                                    index(part.seq), i * kBlockTokens, why_lost(*find_sequence(part.seq))));
        wave.views.push_back(stage(wave.staged, wave.staging_blocks++, set, block));
      }
    }
  }
  return {};
}

// Puts one cold block among what is staged, as number `at`; where the device will read it. Under the lock: its frame is
// pinned.
BlockView ManagerImpl::stage(std::vector<StagedFrame>& staged, std::uint32_t at, const PageSet& set,
                             const Block& block) const {
  const BlockView view = staging_.place(set, at);
  auto found = std::find_if(staged.rbegin(), staged.rend(),
                            [&](const StagedFrame& other) { return other.frame == block.frame; });
  // A second reader of the same block (two sequences, one prefix) gets its own copy: a wave is short.
  if (found == staged.rend() || found->views[block.frame_index].k != 0) {
    const Frame& frame = frames_->frame(block.frame);
    staged.push_back({.pin = host_->find(frame.key),
                      .frame = block.frame,
                      .views = {},
                      .label = label_of(frame),
                      .codec = &codec_for(frame),
                      .block_count = frame.block_count,
                      .wanted = 0,
                      .generation = frame.generation,
                      .status = {}});
    found = staged.rbegin();
  }
  found->views[block.frame_index] = view;
  ++found->wanted;
  return view;
}

// One layer of what is staged, without the lock; a frame that does not decode is dropped.
Status ManagerImpl::decode_staged(const PageSet& set, std::uint32_t layer, std::vector<StagedFrame>& staged) {
  if (staged.empty()) return {};
  FIRN_TRY(staging_.decode(device_->timeline(), set, layer, staged, threads_));
  Lock lock(mutex_);
  Status failure;
  for (std::size_t i = 0; i < staged.size(); ++i) {
    ++counters_.frames_read;
    counters_.blocks_staged += staged[i].wanted;
    if (staged[i].status.ok()) continue;
    failure = staged[i].status;
    if (failure.code() == Code::kNoSpace) continue;  // no memory to decode it with: the frame is as good as before
    ++counters_.frames_failed;
    const FrameId frame = staged[i].frame;
    staged[i].pin = {};
    // Others that are staged may read the same frame; the last of them to fail drops it.
    const bool read_again = std::any_of(staged.begin() + static_cast<std::ptrdiff_t>(i) + 1, staged.end(),
                                        [&](const StagedFrame& other) { return other.frame == frame; });
    if (!read_again && frames_->frame(frame).in_use && frames_->frame(frame).generation == staged[i].generation &&
        frames_->frame(frame).in_flight == 0)
      drop_frame(frame, MissReason::kLoadFailed);
  }
  return failure;
}

Result<Fence> ManagerImpl::attend(std::uint32_t layer, std::span<const StepRows> rows, const AttendParams& params,
                                  DeviceAddress q, DeviceAddress out) {
  if (!bytes_) return Fence{};
  if (layer >= layout_.layer_count)
    return Status(Code::kInvalidArgument,
                  fmt::format("attend: layer {} of a model with {} layers", layer, layout_.layer_count));
  const PageSetId page_set = set_of_layer(layer);
  const PageSet& set = layout_.sets[index(page_set)];
  const KvShape& kv = set.kv;
  if (params.query_heads == 0 || params.query_heads % kv.kv_heads != 0 || params.query_heads > set.query_heads)
    return Status(Code::kInvalidArgument,
                  fmt::format("attend: {} query heads; a multiple of the {} KV heads and at most the "
                              "{} that the workspace was sized for (GroupSpec::query_heads)",
                              params.query_heads, kv.kv_heads, set.query_heads));
  std::uint32_t row_count = 0;
  std::uint64_t blocks = 0;  // of the longest sequence
  for (const StepRows& part : rows) {
    row_count = std::max(row_count, part.row + part.row_count);
    blocks = std::max(blocks, (std::uint64_t{part.position} + part.row_count + kBlockTokens - 1) / kBlockTokens);
  }
  if (params.mass != 0 && (params.mass_scratch == 0 || params.mass_blocks < blocks))
    return Status(Code::kInvalidArgument,
                  fmt::format("attend: mass has {} columns{}, but the longest sequence has {} blocks",
                              params.mass_blocks, params.mass_scratch == 0 ? " and no scratch" : "", blocks));
  Wave wave;
  Fence fence;
  std::lock_guard one_at_a_time(attend_mutex_);  // staging and workspace are one
  StepGuard step(*this);
  // Jobs that rewrite slots in place stay off them from the first wave to the last.
  struct Attending {
    ManagerImpl& manager;
    bool on = false;
    ~Attending() {
      if (!on) return;
      Lock lock(manager.mutex_);
      manager.attending_ = false;
      manager.moved_.notify_all();
    }
  } attending{*this};
  const std::uint64_t layer_bytes = kBlockTokens * kv.token_bytes();
  for (bool first = true, last = false; !last; first = false) {
    {
      Lock lock(mutex_);
      if (first) {
        FIRN_TRY(check_rows(layer, rows).with_context("attend"));
        if (strict_lossy()) {
          FIRN_TRY(settle_lossy(lock).with_context("attend"));
          FIRN_TRY(check_rows(layer, rows).with_context("attend"));  // settling lets go of the lock
          attending_ = attending.on = true;
        }
        FIRN_TRY(check_windows(page_set, rows).with_context("attend"));
        step.start(rows);
      } else {
        FIRN_TRY(check_cuts("attend", rows, step.number()));
      }
      FIRN_TRY(plan_wave(wave, page_set, rows));
    }
    last = wave.next_rows == rows.size();
    // Slots were planned for layer 0; staging has one layer only.
    for (BlockView& view : wave.views) {
      if (view.k == 0 || staging_.holds(view)) continue;
      view.k += (layer - set.first_layer) * layer_bytes;
      view.v += (layer - set.first_layer) * layer_bytes;
    }
    if (const Status status = decode_staged(set, layer - set.first_layer, wave.staged); !status.ok())
      return status.with_context(
          status.code() == Code::kNoSpace ? "attend" : "attend: a frame did not decode; rewind to usable_tokens()");
    FIRN_ASSIGN(fence, device_->kernels().attend({.shape = kv,
                                                  .query_heads = params.query_heads,
                                                  .scale = params.scale,
                                                  .soft_cap = params.soft_cap,
                                                  .window = set.window,
                                                  .row_count = row_count,
                                                  .q = q,
                                                  .out = out,
                                                  .views = wave.views,
                                                  .items = wave.items,
                                                  .state = workspace_->address,
                                                  .first = first,
                                                  .last = last,
                                                  .partials = workspace_->address + workspace_->bytes / 2,
                                                  .mass = params.mass,
                                                  .mass_blocks = params.mass_blocks,
                                                  .mass_scratch = params.mass_scratch}));
    if (!wave.staged.empty()) staging_.note_read(fence);
  }
  Lock lock(mutex_);
  if (attending.on) {
    attended_ = fence;
    attending_ = attending.on = false;
    moved_.notify_all();
  }
  const Status cut = check_cuts("attend", rows, step.number());
  step.end();
  if (!cut.ok()) return cut;
  return fence;
}

}  // namespace firn
