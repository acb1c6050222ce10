/* memory_test.c: memory that runs out at the n-th request of a call, for every n. A refused call has changed nothing,
 * and what a call has done it tells: orders and moves do not get lost on their way to the caller. */
#include "check.h"

/* Of this program and of every library in it. -1: none fails. */
static long left = -1;
static int failed = 0;
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
static int fails(void) {
  if (left < 0 || left-- != 0) return 0;
  return failed = 1;
}
#define SEEN_BY_LIBRARIES __attribute__((visibility("default")))
SEEN_BY_LIBRARIES void* malloc(size_t bytes);
SEEN_BY_LIBRARIES void* calloc(size_t count, size_t bytes);
void* malloc(size_t bytes) { return fails() ? NULL : __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { return fails() ? NULL : __libc_calloc(count, bytes); }

enum { TOKENS = 40, SLOTS = 200 };
typedef struct table {
  uint32_t slots[SLOTS];
  size_t count;
} table;

static table table_of(firn_manager* manager, firn_seq seq) {
  table got;
  CHECK_OK(firn_block_table(manager, seq, 0, got.slots, SLOTS, &got.count));
  CHECK(got.count <= SLOTS);
  return got;
}
static int same(const table* a, const table* b) {
  return a->count == b->count && memcmp(a->slots, b->slots, a->count * sizeof a->slots[0]) == 0;
}
static firn_seq begin(firn_manager* manager, firn_token first, uint32_t count) {
  firn_token tokens[SLOTS * FIRN_BLOCK_TOKENS];
  firn_copy_order* orders = NULL;
  size_t order_count = 0;
  firn_seq seq = 0;
  for (uint32_t i = 0; i < count; ++i) tokens[i] = first + (firn_token)i;
  CHECK_OK(firn_begin(manager, tokens, count, NULL, &seq, NULL));
  CHECK_OK(firn_allocate(manager, seq, count, 0, &orders, &order_count));
  CHECK_OK(firn_commit(manager, seq, tokens, count));
  return seq;
}

/* The last block of a fork is copied when it goes on: who has kernels of his own has to copy it. */
static void orders_arrive(void) {
  firn_manager* manager = check_manager("device: none\npool: {slots: 40}\n");
  const firn_seq parent = begin(manager, 0, TOKENS);
  failed = 1;
  for (long n = 0; failed; ++n) {
    firn_copy_order* orders = NULL;
    size_t count = 77;
    firn_seq child = 0;
    CHECK_OK(firn_fork(manager, parent, &child));
    const table before = table_of(manager, child);
    left = n, failed = 0;
    const firn_code code = firn_allocate(manager, child, 1, 0, &orders, &count);
    left = -1;
    CHECK(n < 1000 && (code == FIRN_OK || code == FIRN_NO_SPACE));
    if (code != FIRN_OK) {
      CHECK(orders == NULL && count == 77);
      const table after = table_of(manager, child);
      CHECK(same(&before, &after));
      CHECK_OK(firn_allocate(manager, child, 1, 0, &orders, &count));
    }
    CHECK(count == 1 && orders[0].tokens == TOKENS % FIRN_BLOCK_TOKENS);
    CHECK(orders[0].from == before.slots[2] && orders[0].to == table_of(manager, child).slots[2]);
    firn_copy_order_free(orders);
    CHECK_OK(firn_free(manager, child, NULL));
    check_sound(manager);
  }
  firn_manager_destroy(manager);
}

static void moves_arrive(void) {
  const uint64_t large = 2u << 20, small = 1u << 20;
  failed = 1;
  for (long n = 0; failed; ++n) {
    firn_manager* manager = check_manager("device: none\npool: {budget: 2MiB, max_budget: 2MiB}\n");
    firn_slot_move* moves = NULL;
    size_t count = 77, first_count = 0;
    /* What is begun later lies higher: beyond what the pool will have. */
    while (first_count < 300) {
      const firn_seq seq = begin(manager, (firn_token)(first_count * 1000), 16);
      first_count = table_of(manager, seq).slots[0];
      if (first_count < 299) CHECK_OK(firn_free(manager, seq, NULL));
    }
    const firn_seq seq = begin(manager, 900000, 16);
    const table before = table_of(manager, seq);
    left = n, failed = 0;
    const firn_code code = firn_resize_pool(manager, small, NULL, &moves, &count);
    left = -1;
    CHECK(n < 1000 && (code == FIRN_OK || code == FIRN_NO_SPACE));
    if (code != FIRN_OK) {
      const table after = table_of(manager, seq);
      CHECK(moves == NULL && count == 77 && same(&before, &after));
      CHECK_OK(firn_resize_pool(manager, small, NULL, &moves, &count));
    }
    const table after = table_of(manager, seq);
    int told = same(&before, &after);
    for (size_t i = 0; i < count; ++i) told |= moves[i].from == before.slots[0] && moves[i].to == after.slots[0];
    CHECK(told && count != 0);
    firn_slot_move_free(moves);
    check_sound(manager);
    CHECK_OK(firn_resize_pool(manager, large, NULL, NULL, NULL));
    firn_manager_destroy(manager);
  }
}

int main(void) {
  orders_arrive();
  moves_arrive();
  return 0;
}
