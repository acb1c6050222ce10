#include "storage/tier/arena.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "core/base/check.h"

namespace firn {
namespace {

constexpr std::uint32_t index_of(BlobHandle handle) { return static_cast<std::uint32_t>(handle); }
constexpr std::uint32_t generation_of(BlobHandle handle) {
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(handle) >> 32);
}

// 0 stands for a size no arena has.
std::uint32_t to_granules(std::uint64_t bytes) {
  return bytes > Arena::kMaxBytes
             ? 0
             : static_cast<std::uint32_t>((bytes + Arena::kGranuleBytes - 1) / Arena::kGranuleBytes);
}

constexpr std::uint64_t record_count(std::uint32_t max_blobs) { return 2 * std::uint64_t{max_blobs} + 2; }

}  // namespace

std::size_t Arena::table_bytes(std::uint32_t max_blobs) {
  return record_count(max_blobs) * sizeof(Record) + std::size_t{kLevels} * kSlots * sizeof(std::uint32_t);
}

Arena::Arena(std::uint64_t bytes, std::uint32_t max_blobs, std::span<std::byte> tables)
    : end_(static_cast<std::uint32_t>(bytes / kGranuleBytes)), max_blobs_(max_blobs) {
  FIRN_CHECK(bytes >= kGranuleBytes && bytes <= kMaxBytes);
  FIRN_CHECK(max_blobs >= 1 && max_blobs < 1u << 31);
  FIRN_CHECK(tables.size() >= table_bytes(max_blobs));
  FIRN_CHECK(reinterpret_cast<std::uintptr_t>(tables.data()) % alignof(std::uint64_t) == 0);
  heads_ = reinterpret_cast<std::uint32_t*>(tables.data());
  records_ = reinterpret_cast<Record*>(tables.data() + std::size_t{kLevels} * kSlots * sizeof(std::uint32_t));
  // Record 0 stands behind the end: never a hole, so nothing merges with it, and no handle names it.
  const std::uint32_t whole = take_spare();
  records_[0] = {.offset = end_, .previous = whole, .next = whole, .generation = 1, .next_hole = 0, .prev_hole = 0};
  records_[whole] = {.offset = 0, .previous = 0, .next = 0, .generation = 0, .next_hole = 0, .prev_hole = 0};
  insert_hole(whole);
}

// Sizes below 32 granules have a bin each; above, a power of two is cut into 32 bins.
Arena::Bin Arena::bin_of(std::uint32_t granules) {
  if (granules < kSlots) return {0, granules};
  const std::uint32_t log = static_cast<std::uint32_t>(std::bit_width(granules)) - 1;
  return {log - 4, (granules >> (log - 5)) & (kSlots - 1)};
}

BlobHandle Arena::allocate(std::uint64_t bytes) {
  const std::uint32_t need = to_granules(bytes);
  if (need == 0 || need > end_ || blobs_ == max_blobs_) return BlobHandle::kNone;
  const std::uint32_t record = find_hole(need);
  if (record == 0) return BlobHandle::kNone;
  remove_hole(record);
  if (size(record) > need) insert_after(record, need);
  ++records_[record].generation;
  ++blobs_;
  used_ += need;
  return static_cast<BlobHandle>(std::uint64_t{records_[record].generation} << 32 | record);
}

void Arena::free(BlobHandle handle) {
  std::uint32_t record = checked(handle);
  ++records_[record].generation;
  --blobs_;
  used_ -= size(record);
  const std::uint32_t next = records_[record].next, previous = records_[record].previous;
  if (is_hole(next)) {
    remove_hole(next);
    unlink(next);
  }
  if (is_hole(previous)) {
    remove_hole(previous);
    unlink(record);
    record = previous;
  }
  insert_hole(record);
}

void Arena::shrink(BlobHandle handle, std::uint64_t bytes) {
  const std::uint32_t record = checked(handle), before = size(record), after = to_granules(bytes);
  FIRN_CHECK(after >= 1 && after <= before);
  if (after == before) return;
  used_ -= before - after;
  const std::uint32_t next = records_[record].next;
  if (is_hole(next)) {  // the hole behind grows downwards
    remove_hole(next);
    records_[next].offset = records_[record].offset + after;
    insert_hole(next);
  } else {
    insert_after(record, after);
  }
}

std::optional<Arena::Blob> Arena::find(BlobHandle handle) const {
  const std::uint32_t record = index_of(handle);
  if (record == 0 || record >= fresh_ || records_[record].generation != generation_of(handle) || is_hole(record))
    return std::nullopt;
  return Blob{records_[record].offset * kGranuleBytes, size(record) * kGranuleBytes};
}

std::uint32_t Arena::checked(BlobHandle handle) const {
  FIRN_CHECK(find(handle).has_value());
  return index_of(handle);
}

// First the bins whose every hole fits, smallest first. If they are all empty, the bin of the size itself, where some
// holes are too small: a bounded number of them, so that the time stays constant.
std::uint32_t Arena::find_hole(std::uint32_t granules) const {
  const Bin own = bin_of(granules);
  const std::uint32_t rounded = own.level == 0 ? granules : granules + (1u << (own.level - 1)) - 1;
  Bin bin = bin_of(rounded);
  std::uint32_t slots = slots_[bin.level] & (~0u << bin.slot);
  if (slots == 0) {
    if (const std::uint32_t levels = levels_ & (~0u << (bin.level + 1)); levels != 0) {
      bin.level = static_cast<std::uint32_t>(std::countr_zero(levels));
      slots = slots_[bin.level];
    }
  }
  if (slots != 0) return head({bin.level, static_cast<std::uint32_t>(std::countr_zero(slots))});
  std::uint32_t record = head(own);
  for (std::uint32_t probe = 0; record != 0 && probe < kProbes; ++probe, record = records_[record].next_hole)
    if (size(record) >= granules) return record;
  return 0;
}

std::uint64_t Arena::largest_free_bytes() const {
  if (levels_ == 0 || blobs_ == max_blobs_) return 0;
  const auto level = static_cast<std::uint32_t>(std::bit_width(levels_)) - 1;
  const auto slot = static_cast<std::uint32_t>(std::bit_width(slots_[level])) - 1;
  std::uint32_t largest = 0, record = head({level, slot});
  for (std::uint32_t probe = 0; record != 0 && probe < kProbes; ++probe, record = records_[record].next_hole)
    largest = std::max(largest, size(record));
  return largest * kGranuleBytes;
}

// A fresh record costs the first touch of its page, a spare one nothing: spares first.
std::uint32_t Arena::take_spare() {
  if (spare_ == 0) {
    FIRN_CHECK(fresh_ < record_count(max_blobs_));  // holes never outnumber blobs by more than one
    return fresh_++;
  }
  const std::uint32_t record = spare_;
  spare_ = records_[record].next_hole;
  return record;
}

void Arena::give_spare(std::uint32_t record) {
  records_[record].next_hole = spare_;
  spare_ = record;
}

void Arena::insert_hole(std::uint32_t record) {
  const Bin bin = bin_of(size(record));
  std::uint32_t& first = head(bin);
  records_[record].next_hole = first;
  records_[record].prev_hole = 0;
  if (first != 0) records_[first].prev_hole = record;
  first = record;
  slots_[bin.level] |= 1u << bin.slot;
  levels_ |= 1u << bin.level;
  ++holes_;
}

// Finds the bin by the hole's size: to be called before the size changes.
void Arena::remove_hole(std::uint32_t record) {
  const Record& hole = records_[record];
  if (hole.next_hole != 0) records_[hole.next_hole].prev_hole = hole.prev_hole;
  if (hole.prev_hole != 0) {
    records_[hole.prev_hole].next_hole = hole.next_hole;
  } else {
    const Bin bin = bin_of(size(record));
    head(bin) = hole.next_hole;
    if (hole.next_hole == 0) slots_[bin.level] &= ~(1u << bin.slot);
    if (slots_[bin.level] == 0) levels_ &= ~(1u << bin.level);
  }
  --holes_;
}

// Cuts what follows the first granules of record off into a hole of its own.
void Arena::insert_after(std::uint32_t record, std::uint32_t granules_from_start) {
  const std::uint32_t tail = take_spare();
  Record& before = records_[record];
  Record& hole = records_[tail];
  hole.offset = before.offset + granules_from_start;
  hole.previous = record;
  hole.next = before.next;
  records_[before.next].previous = tail;
  before.next = tail;
  insert_hole(tail);
}

// Its range now belongs to the record before it.
void Arena::unlink(std::uint32_t record) {
  records_[records_[record].previous].next = records_[record].next;
  records_[records_[record].next].previous = records_[record].previous;
  give_spare(record);
}

Status Arena::verify() const {
  FIRN_TRY(verify_ring());
  return verify_bins();
}

Status Arena::verify_ring() const {
  const auto fail = [](std::uint32_t record, const char* what) {
    return Status(Code::kCorrupt, fmt::format("arena: record {} {}", record, what));
  };
  std::uint64_t used = 0, blobs = 0, holes = 0, spares = 0;
  std::uint32_t before = 0;
  for (std::uint32_t record = records_[0].next; record != 0; before = record, record = records_[record].next) {
    if (record >= fresh_ || records_[record].next >= fresh_ || blobs + holes >= fresh_)
      return fail(record, "is not a record, or the ring does not close");
    const Record& r = records_[record];
    if (r.previous != before) return fail(record, "does not point back to the one before it");
    if (before == 0 && r.offset != 0) return fail(record, "is the first but does not begin at 0");
    if (records_[r.next].offset <= r.offset) return fail(record, "is empty or overlaps the next");
    if (is_hole(record) && before != 0 && is_hole(before)) return fail(record, "is a hole beside a hole");
    used += is_hole(record) ? 0 : size(record);
    ++(is_hole(record) ? holes : blobs);
  }
  if (records_[0].previous != before || records_[0].offset != end_) return fail(0, "does not close the ring");
  if (used != used_ || blobs != blobs_ || holes != holes_)
    return Status(Code::kCorrupt, fmt::format("arena: {} granules, {} blobs, {} holes counted; {}, {}, {} found", used_,
                                              blobs_, holes_, used, blobs, holes));
  for (std::uint32_t record = spare_; record != 0; record = records_[record].next_hole)
    if (record >= fresh_ || ++spares > fresh_ || !is_hole(record)) return fail(record, "is no spare record");
  if (1 + blobs + holes + spares != fresh_) return fail(fresh_, "is reached, but some before it are lost");
  return {};
}

Status Arena::verify_bins() const {
  std::uint64_t found = 0;
  for (std::uint32_t level = 0; level < kLevels; ++level) {
    for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
      const auto fail = [&](const char* what) {
        return Status(Code::kCorrupt, fmt::format("arena: bin {}.{} {}", level, slot, what));
      };
      std::uint32_t before = 0;
      for (std::uint32_t record = head({level, slot}); record != 0;
           before = record, record = records_[record].next_hole) {
        if (record >= fresh_ || ++found > holes_) return fail("is not a list of holes");
        if (!is_hole(record) || records_[record].prev_hole != before) return fail("holds a blob or a bad link");
        // In the ring, not a spare: its neighbours know it.
        if (records_[records_[record].next].previous != record) return fail("holds a record that is not in the ring");
        const Bin bin = bin_of(size(record));
        if (bin.level != level || bin.slot != slot) return fail("holds a hole of another size");
      }
      if ((head({level, slot}) != 0) != ((slots_[level] >> slot & 1) != 0)) return fail("and its bit disagree");
    }
    if ((slots_[level] != 0) != ((levels_ >> level & 1) != 0))
      return Status(Code::kCorrupt, fmt::format("arena: level {} and its bit disagree", level));
  }
  if (found != holes_) return Status(Code::kCorrupt, fmt::format("arena: {} holes, but {} in bins", holes_, found));
  return {};
}

}  // namespace firn
