#include "core/partial_index.h"

#include <algorithm>

#include "core/base/check.h"

namespace firn {

void PartialIndex::insert(BlockId id, const Key& before, std::span<const TokenId> tokens) {
  Entry& entry = entries_[index(id)];
  FIRN_CHECK(!entry.present && tokens.size() == kBlockTokens);
  std::copy(tokens.begin(), tokens.end(), entry.tokens.begin());
  entry.before = piece_of(before);
  BlockId& bucket = buckets_[entry.before % buckets_.size()];
  entry.next = bucket;
  entry.present = true;
  bucket = id;
}

void PartialIndex::remove(BlockId id) {
  Entry& entry = entries_[index(id)];
  if (!entry.present) return;
  BlockId* link = &buckets_[entry.before % buckets_.size()];
  while (*link != id) link = &entries_[index(*link)].next;
  *link = entry.next;
  entry.present = false;
  entry.next = BlockId::kNone;
}

}  // namespace firn
