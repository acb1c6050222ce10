// The queue of free slots and the records of blocks, alone.
#include <gtest/gtest.h>

#include <deque>
#include <random>

#include "core/block_pool.h"

namespace firn {
namespace {

std::vector<std::uint32_t> drain(BlockPool& pool) {
  std::vector<std::uint32_t> order;
  for (SlotId slot = pool.take_free_slot(); slot != SlotId::kNone; slot = pool.take_free_slot())
    order.push_back(index(slot));
  return order;
}

using Order = std::vector<std::uint32_t>;

TEST(FreeQueue, HandsOutEverySlotButTheNullOneInOrder) {
  BlockPool pool(5, 4);
  EXPECT_EQ(pool.free_slots(), 4u);
  EXPECT_EQ(drain(pool), (Order{1, 2, 3, 4}));
  EXPECT_EQ(pool.free_slots(), 0u);
  EXPECT_EQ(pool.take_free_slot(), SlotId::kNone) << "an empty queue has nothing, again and again";
  EXPECT_EQ(pool.take_free_slot(), SlotId::kNone);
  EXPECT_TRUE(pool.check_queue().empty());
}

TEST(FreeQueue, WhatIsPutAtTheHeadGoesFirstAndAtTheTailLast) {
  BlockPool pool(6, 4);
  const SlotId first = pool.take_free_slot(), second = pool.take_free_slot(), third = pool.take_free_slot();
  pool.put_free_slot(first, /*at_head=*/false);
  pool.put_free_slot(second, /*at_head=*/true);
  pool.put_free_slot(third, /*at_head=*/true);
  EXPECT_TRUE(pool.check_queue().empty());
  EXPECT_EQ(pool.free_slots(), 5u);
  EXPECT_EQ(drain(pool), (Order{3, 2, 4, 5, 1}));
}

TEST(FreeQueue, AgreesWithADequeUnderRandomOperations) {
  std::mt19937 random(7);
  BlockPool pool(17, 16);
  std::deque<std::uint32_t> queue;
  for (std::uint32_t i = 1; i < 17; ++i) queue.push_back(i);
  std::vector<std::uint32_t> taken;
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0) {
      const SlotId slot = pool.take_free_slot();
      ASSERT_EQ(slot, queue.empty() ? SlotId::kNone : SlotId{queue.front()});
      if (queue.empty()) continue;
      taken.push_back(queue.front());
      queue.pop_front();
    } else if (!taken.empty()) {
      std::swap(taken[random() % taken.size()], taken.back());
      const bool at_head = random() % 2 == 0;
      pool.put_free_slot(SlotId{taken.back()}, at_head);
      at_head ? queue.push_front(taken.back()) : queue.push_back(taken.back());
      taken.pop_back();
    }
    ASSERT_EQ(pool.free_slots(), queue.size());
    if (step % 64 == 0) {
      ASSERT_TRUE(pool.check_queue().empty());
    }
  }
}

TEST(BlockRecords, ARecordsGenerationTellsItsLivesApart) {
  BlockPool pool(4, 2);
  const BlockId first = pool.make_record();
  const std::uint32_t generation = pool.generation(first);
  pool.block(first).position = 7;
  pool.drop_record(first);
  const BlockId again = pool.make_record();
  EXPECT_EQ(again, first);
  EXPECT_NE(pool.generation(again), generation);
  EXPECT_EQ(pool.block(again).position, 0u) << "nothing of its former life is left";
  EXPECT_NE(pool.make_record(), again);
  EXPECT_FALSE(pool.has_free_record());
  EXPECT_EQ(pool.block_count(), 2u);
}

TEST(BlockRecords, ASlotBelongsToOneBlockAtATime) {
  BlockPool pool(4, 2);
  const BlockId block = pool.make_record();
  const SlotId slot = pool.take_free_slot();
  pool.bind(slot, block);
  EXPECT_EQ(pool.owner(slot), block);
  EXPECT_EQ(pool.state(slot), BlockPool::SlotState::kBound);
  EXPECT_EQ(pool.block(block).slot, slot);
  EXPECT_EQ(pool.unbind(block), slot);
  EXPECT_EQ(pool.owner(slot), BlockId::kNone);
  EXPECT_EQ(pool.block(block).slot, SlotId::kNone);
  pool.put_free_slot(slot, true);
  EXPECT_EQ(pool.state(slot), BlockPool::SlotState::kFree);
}

TEST(BlockPoolDeath, MisuseStopsTheProgram) {
  BlockPool pool(4, 2);
  EXPECT_DEATH(pool.put_free_slot(SlotId{1}, true), "") << "it is free already";
  EXPECT_DEATH(pool.put_free_slot(SlotId{0}, true), "") << "the null slot is nobody's";
  const BlockId block = pool.make_record();
  pool.bind(pool.take_free_slot(), block);
  EXPECT_DEATH(pool.put_free_slot(pool.block(block).slot, true), "") << "a block has it";
  EXPECT_DEATH(pool.drop_record(block), "") << "it holds a slot";
  EXPECT_DEATH(pool.bind(pool.take_free_slot(), block), "") << "it has a slot";
}

TEST(FreeQueue, ASlotThatGoesFromTheMiddleOfTheQueueLeavesItsNeighboursLinked) {
  BlockPool pool(8, 8, 5);  // slots 1 to 4 are there
  EXPECT_EQ(pool.slot_total(), 4u);
  EXPECT_EQ(pool.free_slots(), 4u);
  pool.remove_slot(SlotId{2});
  EXPECT_EQ(pool.check_queue(), std::vector<std::string>{});
  EXPECT_EQ(pool.state(SlotId{2}), BlockPool::SlotState::kAbsent);
  pool.add_slots(5, 2);
  EXPECT_EQ(pool.slot_total(), 5u);
  EXPECT_EQ(pool.check_queue(), std::vector<std::string>{});
  for (const std::uint32_t wanted : {1u, 3u, 4u, 5u, 6u}) EXPECT_EQ(index(pool.take_free_slot()), wanted);
  EXPECT_EQ(pool.take_free_slot(), SlotId::kNone);
  pool.remove_slot(SlotId{6});  // taken by nobody: it may go as well
  EXPECT_EQ(pool.slot_total(), 4u);
}

}  // namespace
}  // namespace firn
