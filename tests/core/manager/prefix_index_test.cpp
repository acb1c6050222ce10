// The index from keys to blocks, alone: against a map, with keys made to collide.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/prefix_index.h"

namespace firn {
namespace {

// home: where in the table it wants to be, 0 to 1. tag: the low bits of what is compared first, the high ones are home.
Key key_at(double home, std::uint32_t tag, std::uint8_t rest) {
  Key key;
  const auto word = (static_cast<std::uint64_t>(home * 0x1p24) << 40) + (std::uint64_t{tag} << 32);
  for (std::size_t i = 0; i < 8; ++i) key.bytes[i] = static_cast<std::uint8_t>(word >> (8 * i));
  key.bytes[31] = rest;
  if (key.is_zero()) key.bytes[30] = 1;
  return key;
}

TEST(PrefixIndex, KeysOfOneTagAndOneHomeAreToldApart) {
  BlockPool pool(2, 8);
  PrefixIndex index(pool, 8);
  std::vector<BlockId> blocks;
  for (std::uint8_t i = 0; i < 4; ++i) {
    blocks.push_back(pool.make_record());
    pool.block(blocks.back()).key = key_at(0.5, 9, i);
    index.insert(blocks.back());
  }
  for (std::uint8_t i = 0; i < 4; ++i) EXPECT_EQ(index.find(key_at(0.5, 9, i)), blocks[i]);
  EXPECT_EQ(index.find(key_at(0.5, 9, 7)), BlockId::kNone);
  EXPECT_EQ(index.key_count(), 4u);
  EXPECT_EQ(index.duplicate_count(), 0u);
}

TEST(PrefixIndex, DuplicatesAreFoundEarliestFirstWhoeverGoes) {
  const Key key = key_at(0.25, 1, 1);
  for (int removed = 0; removed < 3; ++removed) {
    BlockPool pool(2, 8);
    PrefixIndex index(pool, 8);
    std::vector<BlockId> blocks;
    for (int i = 0; i < 3; ++i) {
      blocks.push_back(pool.make_record());
      pool.block(blocks.back()).key = key;
      index.insert(blocks.back());
    }
    EXPECT_EQ(index.find(key), blocks[0]);
    EXPECT_EQ(index.duplicate_count(), 2u);
    index.remove(blocks[static_cast<std::size_t>(removed)]);
    blocks.erase(blocks.begin() + removed);
    EXPECT_EQ(index.key_count(), 1u);
    EXPECT_EQ(index.duplicate_count(), 1u);
    EXPECT_EQ(index.find(key), blocks[0]);
    index.remove(blocks[0]);
    EXPECT_EQ(index.find(key), blocks[1]);
    index.remove(blocks[1]);
    EXPECT_EQ(index.find(key), BlockId::kNone);
    EXPECT_EQ(index.key_count(), 0u);
    EXPECT_EQ(index.duplicate_count(), 0u);
  }
}

// Few homes, most of them at the end of the table so that chains run over its edge, few tags, many duplicates.
class PrefixIndexRandom : public testing::TestWithParam<unsigned> {};

TEST_P(PrefixIndexRandom, AgreesWithAMap) {
  std::mt19937 random(GetParam());
  const std::uint32_t capacity = 1 + random() % 40;
  BlockPool pool(2, capacity);
  PrefixIndex index(pool, capacity);
  std::map<Key, std::vector<BlockId>> map;
  std::vector<BlockId> all;
  const auto check = [&](const Key& key) {
    const auto found = map.find(key);
    ASSERT_EQ(index.find(key), found == map.end() ? BlockId::kNone : found->second.front());
  };
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0 && pool.has_free_record()) {
      const BlockId id = pool.make_record();
      const double home = random() % 3 == 0 ? 0.1 * (random() % 10) : 0.95 + 0.01 * (random() % 5);
      pool.block(id).key = key_at(home, random() % 2, static_cast<std::uint8_t>(random() % 3));
      index.insert(id);
      map[pool.block(id).key].push_back(id);
      all.push_back(id);
    } else if (!all.empty()) {
      std::swap(all[random() % all.size()], all.back());
      const BlockId id = all.back();
      all.pop_back();
      const Key key = pool.block(id).key;
      index.remove(id);
      std::vector<BlockId>& holders = map.at(key);
      holders.erase(std::find(holders.begin(), holders.end(), id));
      if (holders.empty()) map.erase(key);
      pool.drop_record(id);
      check(key);
    }
    ASSERT_EQ(index.key_count(), map.size()) << "seed " << GetParam() << ", step " << step;
    ASSERT_EQ(index.duplicate_count(), all.size() - map.size());
    ASSERT_TRUE(index.check().empty()) << index.check().front() << ", seed " << GetParam() << ", step " << step;
    if (step % 16 == 0) {
      for (const auto& [key, holders] : map) {
        check(key);
        BlockId at = index.find(key);
        for (const BlockId holder : holders) {  // the earliest first
          ASSERT_EQ(at, holder);
          at = pool.block(at).next_duplicate;
        }
        ASSERT_EQ(at, BlockId::kNone);
      }
    }
  }
  std::size_t visited = 0;
  index.for_each([&](BlockId head) {
    ++visited;
    EXPECT_EQ(map.at(pool.block(head).key).front(), head);
  });
  EXPECT_EQ(visited, map.size());
}
INSTANTIATE_TEST_SUITE_P(Seeds, PrefixIndexRandom, testing::Range(1u, 11u));

// Every block with one key: the table has room for all of their links, and whoever goes finds his neighbours.
TEST(PrefixIndex, OneKeyMayFillIt) {
  constexpr std::uint32_t kBlocks = 3000;
  std::mt19937 random(7);
  BlockPool pool(2, kBlocks);
  PrefixIndex index(pool, kBlocks);
  std::vector<BlockId> all;
  for (std::uint32_t i = 0; i < kBlocks; ++i) {
    all.push_back(pool.make_record());
    pool.block(all.back()).key = key_at(0.5, 1, 1);
    index.insert(all.back());
  }
  ASSERT_EQ(index.check(), std::vector<std::string>());
  std::shuffle(all.begin(), all.end(), random);
  for (std::size_t i = 0; i < all.size(); ++i) {
    index.remove(all[i]);
    if (i % 500 != 0) continue;
    ASSERT_EQ(index.check(), std::vector<std::string>()) << "after " << i + 1;
  }
  EXPECT_EQ(index.key_count(), 0u);
  EXPECT_EQ(index.duplicate_count(), 0u);
  EXPECT_EQ(index.check(), std::vector<std::string>());
}

}  // namespace
}  // namespace firn
