// device.h: a device is three interfaces. Memory gives regions, Kernels work on them, Timeline tells what has finished.
//
// Kernels take (address, stride) tables and know nothing of pools, so that a slot, the staging ring and an engine's own
// buffers all look alike: each is a BlockView. Every kernel returns the Fence of its completion; the cpu backend has
// finished when it returns. Frozen: a backend is a new implementation of these three, never a change to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>

#include "firn/export.h"
#include "firn/ids.h"
#include "firn/model.h"
#include "firn/status.h"

namespace firn {

// A byte's place in a device. On the cpu backend it is the pointer. 0: nowhere.
using DeviceAddress = std::uint64_t;

// A point in a device's work. value counts up within handle; kNone has always passed.
struct Fence {
  enum class Kind : std::uint8_t { kNone, kTimeline, kExternal };
  Kind kind = Kind::kNone;
  std::uint64_t handle = 0;
  std::uint64_t value = 0;
  auto operator<=>(const Fence&) const = default;
};

class FIRN_API Timeline {
 public:
  virtual ~Timeline() = default;
  virtual Fence last() const = 0;                     // the fence after everything submitted so far
  virtual bool passed(const Fence& fence) const = 0;  // false of a fence that wait() refuses
  // Blocks. kUnavailable: the deadline (nanoseconds from now) went by first; kIo: the device is lost; kInvalidArgument:
  // another timeline's fence, or one that was not given out yet, or external where this device knows of none. A device
  // of your own that can wait for external fences takes them here and in passed(); those of this library take none.
  virtual Status wait(const Fence& fence, std::int64_t timeout_ns = std::numeric_limits<std::int64_t>::max()) = 0;
};

// What a region is for; the ledger counts by it, and a backend may place by it.
enum class RegionUse : std::uint8_t { kPool, kStaging, kWorkspace };

struct Region {
  DeviceAddress address = 0;
  std::uint64_t bytes = 0;
  std::byte* host = nullptr;  // the same bytes where the host can reach them; null if it cannot
};

class FIRN_API Memory {
 public:
  struct Info {
    std::string name;           // "cpu", or the device's own name
    bool host_visible = false;  // every region has a host pointer
    std::uint64_t max_region_bytes = 0;
    std::uint64_t budget_bytes = 0;  // what the driver or the cgroup says may be used; a hint, the ledger is the truth
  };
  virtual ~Memory() = default;
  virtual Info info() const = 0;
  // Zeroed, aligned to 4 KiB or better, with 64 readable bytes behind it. kNoSpace: the device refused.
  virtual Result<Region> allocate(RegionUse use, std::uint64_t bytes) = 0;
  virtual void free(const Region& region) = 0;  // its last user's fence has passed
  // The caller's own memory as a region, without a copy; address and size are multiples of 4 KiB, and of more where a
  // driver wants it. free() it before the memory goes. kUnavailable: this device cannot; use a staging region.
  virtual Result<Region> import_host(std::byte* memory, std::uint64_t bytes);
};

// One layer of one block: where its key and value rows are. Row of token t and head h of K begins at
// k + t * token_stride + h * head_stride, likewise V; its elements are contiguous.
struct BlockView {
  DeviceAddress k = 0, v = 0;                           // 0: this block takes no part
  std::uint32_t token_stride = 0, head_stride = 0;      // of K, in bytes
  std::uint32_t v_token_stride = 0, v_head_stride = 0;  // of V, in bytes
};

// Rows of new keys and values go into block slots, rounded to the cache's type (round to nearest even).
struct AppendItem {
  BlockView view;
  std::uint32_t row = 0;          // first row of k and v
  std::uint32_t token = 0;        // first token within the block
  std::uint32_t token_count = 0;  // token + token_count <= kBlockTokens
};
struct AppendBatch {
  KvShape shape{};
  DeviceAddress k = 0;  // f32 [rows][kv_heads][head_dim]
  DeviceAddress v = 0;  // f32 [rows][kv_heads][value_dim]
  std::span<const AppendItem> items{};
};

// Copies the first token_count tokens of a block's layer, bit by bit, whatever the strides on either side:
// copy-on-write, gather into a staging ring, scatter into an engine's layout.
struct CopyItem {
  BlockView from, to;
  std::uint32_t token_count = kBlockTokens;
};
struct CopyBatch {
  KvShape shape{};
  std::span<const CopyItem> items{};
};

// Attention over one layer. KV is cut into splits at fixed absolute positions (multiples of kSplitTokens), whatever is
// resident; each (sequence, split) pair is an item. A row's result is the fold of its splits' partial results in
// ascending position by log-sum-exp. A fixed order, not a balanced tree: the fold needs one accumulator per row
// whatever the sequence's length, so splits may be attended in waves, and every wave size gives the same bits. Within a
// split the arithmetic of a row depends on that row and the split's tokens alone, never on other rows, on the number of
// rows, on threads, or on where blocks are.
struct AttendItem {
  std::uint32_t row = 0, row_count = 0;  // rows of q: consecutive tokens of one sequence
  std::uint32_t position = 0;            // absolute position of the first row's token
  std::uint32_t split = 0;               // absolute position of the split's first token; a multiple of kSplitTokens
  std::uint32_t token_count = 0;         // tokens in this split, 1 to kSplitTokens; later memory is never read
  std::uint32_t view = 0;                // index of the split's first BlockView in views, one per block
};
struct AttendBatch {
  KvShape shape{};
  std::uint32_t query_heads = 0;  // a multiple of shape.kv_heads
  float scale = 0;                // applied to q . k
  float soft_cap = 0;             // 0: none; else logits become cap * tanh(logits / cap)
  std::uint32_t window = 0;       // 0: causal over everything; else the last window tokens, self included
  std::uint32_t row_count = 0;
  DeviceAddress q = 0;    // f32 [row_count][query_heads][head_dim]
  DeviceAddress out = 0;  // f32 [row_count][query_heads][value_dim]; written when last
  std::span<const BlockView> views{};
  std::span<const AttendItem> items{};  // items of one row range ascend by split, also from wave to wave
  // Accumulators, f32 [row_count][query_heads][value_dim + 2] (weighted values, maximum, sum): kept by the caller from
  // wave to wave. first: start afresh. last: normalise into out. A row no item touched gives zeros.
  DeviceAddress state = 0;
  bool first = true, last = true;
  // Scratch for the partial results of one wave, partial_bytes(batch) bytes.
  DeviceAddress partials = 0;
  // Attention mass, optional; 0: none, at no cost. What heavy-hitter policies rank blocks by (H2O sums it over the rows
  // of all steps, SnapKV over the last rows of a prompt): mass[row][b] is the softmax probability that the row's query
  // heads gave to the tokens of block b of its sequence (tokens b * kBlockTokens and on), summed over the heads. A row
  // thus sums to query_heads, or to 0 where it saw nothing; a block that is absent, behind the window or not seen has
  // exactly 0. Rows and layers are the caller's to sum. Written when last, rows without items too. Bits depend on the
  // row and its tokens alone, as those of out.
  DeviceAddress mass = 0;         // f32 [row_count][mass_blocks]
  std::uint32_t mass_blocks = 0;  // at least the blocks of the longest sequence in items
  // Kept by the caller from wave to wave, as state: mass_bytes(query_heads, row_count, mass_blocks). It grows with rows
  // times tokens, so of a long chunk's rows those of interest are better attended in a call of their own.
  DeviceAddress mass_scratch = 0;
};

class FIRN_API Kernels {
 public:
  virtual ~Kernels() = default;
  virtual Result<Fence> append(const AppendBatch& batch) = 0;
  virtual Result<Fence> copy(const CopyBatch& batch) = 0;
  virtual Result<Fence> fill(const Region& region, std::uint64_t offset, std::uint64_t bytes, std::uint8_t value) = 0;
  virtual Result<Fence> attend(const AttendBatch& batch) = 0;

  static std::uint64_t partial_bytes(const AttendBatch& batch);  // for attend's partials
  static std::uint64_t state_bytes(const KvShape& shape, std::uint32_t query_heads, std::uint32_t row_count);
  static std::uint64_t mass_bytes(std::uint32_t query_heads, std::uint32_t row_count, std::uint32_t mass_blocks);
};

// One device: its three interfaces, which live and die together.
class FIRN_API Device {
 public:
  virtual ~Device() = default;
  virtual Memory& memory() = 0;
  virtual Kernels& kernels() = 0;
  virtual Timeline& timeline() = 0;
};

class ThreadPool;

// The device in host memory: SIMD kernels, no driver. The pool outlives the device. Source: core/cpu.
FIRN_API std::unique_ptr<Device> make_cpu_device(ThreadPool& threads);
// By the name that the configuration has for it: auto (a GPU where there is one, else cpu), cpu, none, or a Vulkan
// device: lavapipe, an index, a UUID, a part of a name. kUnavailable says what is missing.
FIRN_API Result<std::unique_ptr<Device>> make_device(const std::string& name, ThreadPool& threads);
// A device without bytes, for schedulers and simulation: regions have addresses but no memory, kernels do nothing.
FIRN_API std::unique_ptr<Device> make_null_device();

}  // namespace firn
