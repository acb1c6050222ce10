/* life_test.c: the whole life of sequences through the C interface, on the cpu device with real keys and values, a host
 * tier, and attention held to a plain loop over the same numbers. */
#include <math.h>

#include "check.h"

#define TOKENS 100u

static float number(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

/* What attention is, head by head; keys and values rounded to f16 is what the tolerance is for. */
static void attend_plainly(const float* k, const float* v, const float* q, uint32_t rows, float scale, float* out) {
  for (uint32_t row = 0; row < rows; ++row)
    for (uint32_t head = 0; head < QUERY_HEADS; ++head) {
      const uint32_t kv = head / (QUERY_HEADS / KV_HEADS);
      const float* mine = q + (row * QUERY_HEADS + head) * HEAD_DIM;
      float* to = out + (row * QUERY_HEADS + head) * HEAD_DIM;
      double weights[TOKENS], sum = 0;
      for (uint32_t t = 0; t <= row; ++t) {
        double dot = 0;
        for (uint32_t d = 0; d < HEAD_DIM; ++d) dot += mine[d] * k[(t * KV_HEADS + kv) * HEAD_DIM + d];
        weights[t] = exp(dot * scale);
        sum += weights[t];
      }
      for (uint32_t d = 0; d < HEAD_DIM; ++d) {
        double value = 0;
        for (uint32_t t = 0; t <= row; ++t) value += weights[t] * v[(t * KV_HEADS + kv) * HEAD_DIM + d];
        to[d] = (float)(value / sum);
      }
    }
}

static float k[LAYERS][TOKENS * KV_HEADS * HEAD_DIM], v[LAYERS][TOKENS * KV_HEADS * HEAD_DIM];
static float q[TOKENS * QUERY_HEADS * HEAD_DIM], out[TOKENS * QUERY_HEADS * HEAD_DIM],
    plain[TOKENS * QUERY_HEADS * HEAD_DIM];

static firn_address at(const float* values) { return (firn_address)(uintptr_t)values; }

static void append_and_attend(firn_manager* manager, firn_seq seq) {
  const firn_step_rows rows = {seq, 0, TOKENS, 0, 0};
  firn_attend_params attention;
  firn_fence fence;
  enum { BLOCKS = (TOKENS + FIRN_BLOCK_TOKENS - 1) / FIRN_BLOCK_TOKENS };
  static float mass[TOKENS * BLOCKS];
  void* const scratch = malloc(firn_attend_mass_bytes(QUERY_HEADS, TOKENS, BLOCKS));
  int32_t passed = 0;
  /* A program built before there was a mass. */
  CHECK_OK(firn_attend_default_params(&attention, offsetof(firn_attend_params, mass_blocks)));
  attention.query_heads = QUERY_HEADS;
  attention.scale = 0.25f;
  CHECK_OK(firn_append(manager, 0, &rows, 1, at(k[0]), at(v[0]), NULL));
  CHECK_OK(firn_attend(manager, 0, &rows, 1, &attention, at(q), at(out), &fence));
  CHECK_OK(firn_wait_fence(manager, &fence, FIRN_FOREVER));
  CHECK_OK(firn_attend_default_params(&attention, sizeof attention));
  attention.mass = at(mass);
  attention.mass_blocks = BLOCKS;
  attention.mass_scratch = (firn_address)(uintptr_t)scratch;
  attention.query_heads = QUERY_HEADS;
  attention.scale = 0.25f;
  /* A mass that would be written beyond its end. */
  attention.mass_blocks = BLOCKS - 1;
  CHECK_REFUSED(firn_attend(manager, 0, &rows, 1, &attention, at(q), at(out), &fence), FIRN_INVALID_ARGUMENT, "mass");
  attention.mass_blocks = BLOCKS;
  attention.mass_scratch = 0;
  CHECK_REFUSED(firn_attend(manager, 0, &rows, 1, &attention, at(q), at(out), &fence), FIRN_INVALID_ARGUMENT, "mass");
  attention.mass_scratch = (firn_address)(uintptr_t)scratch;
  for (uint32_t layer = 0; layer < LAYERS; ++layer) {
    CHECK_OK(firn_append(manager, layer, &rows, 1, at(k[layer]), at(v[layer]), NULL));
    CHECK_OK(firn_attend(manager, layer, &rows, 1, &attention, at(q), at(out), &fence));
    CHECK_OK(firn_wait_fence(manager, &fence, FIRN_FOREVER));
    CHECK_OK(firn_fence_passed(manager, &fence, &passed));
    CHECK(passed == 1);
    attend_plainly(k[layer], v[layer], q, TOKENS, attention.scale, plain);
    for (size_t i = 0; i < sizeof out / sizeof out[0]; ++i) CHECK(fabsf(out[i] - plain[i]) < 2e-3f);
    for (uint32_t row = 0; row < TOKENS; ++row) {
      float sum = 0;
      for (uint32_t block = 0; block < BLOCKS; ++block) {
        sum += mass[row * BLOCKS + block];
        CHECK(block * FIRN_BLOCK_TOKENS <= row ||
              mass[row * BLOCKS + block] == 0); /* what is to come is worth nothing */
      }
      CHECK(fabsf(sum - QUERY_HEADS) < 1e-3f);
    }
  }
  free(scratch);
}

/* What was appended comes back in the cache's type, f16, out of slots and out of frames alike. */
static void check_gathered(firn_manager* manager, firn_seq seq, uint32_t tokens, int again) {
  enum { ROW = KV_HEADS * HEAD_DIM };
  static uint16_t first_k[LAYERS][TOKENS * ROW], first_v[LAYERS][TOKENS * ROW], got_k[TOKENS * ROW],
      got_v[TOKENS * ROW];
  const size_t bytes = (size_t)tokens * ROW * sizeof(uint16_t);
  for (uint32_t layer = 0; layer < LAYERS; ++layer) {
    CHECK_OK(firn_gather(manager, seq, layer, 0, tokens, got_k, bytes, got_v, bytes));
    if (!again) {
      memcpy(first_k[layer], got_k, bytes);
      memcpy(first_v[layer], got_v, bytes);
    }
    CHECK(memcmp(first_k[layer], got_k, bytes) == 0 && memcmp(first_v[layer], got_v, bytes) == 0);
    for (uint32_t i = 0; i < tokens * ROW; ++i) { /* the sign is the top bit in either type */
      if (k[layer][i] != 0) CHECK((got_k[i] >> 15) == (k[layer][i] < 0));
    }
  }
  CHECK_REFUSED(firn_gather(manager, seq, 0, 0, tokens, got_k, bytes - 1, got_v, bytes), FIRN_INVALID_ARGUMENT,
                "bytes");
  CHECK_REFUSED(firn_gather(manager, seq, LAYERS, 0, tokens, got_k, bytes, got_v, bytes), FIRN_INVALID_ARGUMENT,
                "layer");
  CHECK_REFUSED(firn_gather(manager, seq, 0, 1 << 20, tokens, got_k, bytes, got_v, bytes), FIRN_INVALID_ARGUMENT,
                "committed");
  CHECK_REFUSED(firn_gather(manager, 12345, 0, 0, tokens, got_k, bytes, got_v, bytes), FIRN_INVALID_ARGUMENT, "12345");
}

static double stat(const firn_manager* manager, const char* name) {
  double value = -1;
  CHECK_OK(firn_stat(manager, name, &value));
  return value;
}

/* An adapter and media are part of what a prompt means; a program of the first header, whose parameters end before
 * them, goes on as before. */
static void check_request(firn_manager* manager, const firn_token* prompt) {
  const firn_media_item cat = {20, 8, "cat", 3}, dog = {20, 8, "dog", 3};
  firn_begin_params request;
  firn_match match;
  firn_seq seq = 0;
  firn_copy_order* orders = NULL;
  size_t count = 0;
  FIRN_RESULT(match);
  CHECK_OK(firn_begin_default_params(&request, sizeof request));
  request.media = &cat;
  request.media_count = 1;
  CHECK_OK(firn_begin(manager, prompt, TOKENS, &request, &seq, &match));
  CHECK(match.tokens == 16); /* the first block has no part of it */
  CHECK_OK(firn_allocate(manager, seq, TOKENS - match.tokens, 0, &orders, &count));
  firn_copy_order_free(orders);
  CHECK_OK(firn_commit(manager, seq, prompt + match.tokens, TOKENS - match.tokens));
  CHECK_OK(firn_free(manager, seq, NULL));
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, &request, &match));
  CHECK(match.tokens == 96);
  {
    const uint32_t ranks[3] = {96, 40, 64};
    CHECK(firn_tokens_on_all_ranks(ranks, 3) == 40);
    CHECK(firn_tokens_on_all_ranks(ranks, 1) == 96);
    CHECK(firn_tokens_on_all_ranks(ranks, 0) == 0 && firn_tokens_on_all_ranks(NULL, 3) == 0);
    request.max_reuse_tokens = firn_tokens_on_all_ranks(ranks, 3);
  }
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, &request, &match));
  CHECK(match.tokens == 32);
  request.max_reuse_tokens = UINT32_MAX;
  request.drop_last_block = 1;
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, &request, &match));
  CHECK(match.tokens == 80);
  request.media = &dog;
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, &request, &match));
  CHECK(match.tokens == 0); /* the first block, which is given up */

  request.adapter = "lora-9";
  request.adapter_bytes = 6;
  request.struct_size = (uint32_t)offsetof(firn_begin_params, adapter);
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, &request, &match));
  CHECK(match.tokens == 96);
  memset(&request, 0xA5, sizeof request);
  CHECK_OK(firn_begin_default_params(&request, offsetof(firn_begin_params, adapter)));
  CHECK(request.struct_size == offsetof(firn_begin_params, adapter) && request.adapter_bytes != 0);
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, &request, &match));
  CHECK(match.tokens == 96);
}

int main(void) {
  firn_token prompt[TOKENS];
  uint32_t state = 1;
  for (uint32_t i = 0; i < TOKENS; ++i) prompt[i] = (firn_token)i + 5;
  for (uint32_t layer = 0; layer < LAYERS; ++layer)
    for (size_t i = 0; i < sizeof k[0] / sizeof k[0][0]; ++i) {
      k[layer][i] = number(&state);
      v[layer][i] = number(&state);
    }
  for (size_t i = 0; i < sizeof q / sizeof q[0]; ++i) q[i] = number(&state);

  firn_manager* manager = check_manager(
      "device: cpu\nthreads: 2\npool: {budget: 1MiB}\nhost: {budget: 16MiB}\nprotect: {sinks: 4, recent: 16}\n"
      "mover: {worker: false}\n");

  /* The first sequence computes everything. */
  firn_match match;
  FIRN_RESULT(match);
  firn_seq seq = 0;
  CHECK_OK(firn_begin(manager, prompt, TOKENS, NULL, &seq, &match));
  CHECK(seq != 0 && match.tokens == 0 && match.first_miss == FIRN_MISS_NEVER_STORED);
  firn_step_plan plan;
  FIRN_RESULT(plan);
  const firn_step_request request = {seq, TOKENS, 0};
  CHECK_OK(firn_plan_step(manager, &request, 1, &plan));
  CHECK(plan.chunk_limit >= TOKENS && plan.blocks_needed == 7 && plan.blocked == FIRN_OK);
  firn_copy_order* orders = NULL;
  size_t order_count = 99;
  CHECK_OK(firn_allocate(manager, seq, TOKENS, 0, &orders, &order_count));
  CHECK(orders == NULL && order_count == 0);
  append_and_attend(manager, seq);
  CHECK_OK(firn_commit(manager, seq, prompt, TOKENS));
  check_sound(manager);

  uint32_t slots[8], count32 = 0;
  size_t count = 0;
  CHECK_OK(firn_block_table(manager, seq, 0, slots, 8, &count));
  CHECK(count == 7 && slots[0] != FIRN_NO_SLOT && slots[0] != FIRN_NULL_SLOT);
  firn_slot_info info;
  FIRN_RESULT(info);
  CHECK_OK(firn_get_slot_info(manager, slots[0], &info));
  firn_key keys[8], computed[8];
  CHECK_OK(firn_block_keys(manager, seq, keys, 8, &count));
  check_gathered(manager, seq, 96, 0);
  firn_block_view view;
  uint16_t here[HEAD_DIM], there[TOKENS * KV_HEADS * HEAD_DIM];
  CHECK_OK(firn_slot_view(manager, slots[0], 0, &view));
  CHECK_OK(firn_gather(manager, seq, 0, 0, TOKENS, there, sizeof there, there, sizeof there)); /* the values are last */
  memcpy(here, (const char*)(uintptr_t)view.v + 3 * view.v_token_stride + 1 * view.v_head_stride, sizeof here);
  CHECK(memcmp(here, there + (3 * KV_HEADS + 1) * HEAD_DIM, sizeof here) == 0);
  CHECK_REFUSED(firn_slot_view(manager, 0, 0, &view), FIRN_INVALID_ARGUMENT, "slot 0");
  CHECK(count == 6 && info.references == 1 && memcmp(&info.key, &keys[0], sizeof keys[0]) == 0);
  CHECK_OK(firn_compute_keys(manager, prompt, TOKENS, NULL, 0, computed, 8, &count));
  CHECK(count == 6 && memcmp(keys, computed, 6 * sizeof keys[0]) == 0);
  uint64_t hash = 0, hash_again = 1;
  CHECK_OK(firn_hash_slot(manager, slots[0], &hash));

  /* A fork shares everything; writing behind the shared tail copies it. */
  firn_seq child = 0;
  CHECK_OK(firn_fork(manager, seq, &child));
  CHECK_OK(firn_allocate(manager, child, 1, 0, &orders, &order_count));
  CHECK(order_count == 1 && orders[0].tokens == TOKENS % 16 && orders[0].from == slots[6] && orders[0].to != slots[6]);
  firn_copy_order_free(orders);
  CHECK_OK(firn_commit(manager, child, prompt, 1));
  CHECK_OK(firn_token_count(manager, child, &count32));
  CHECK(count32 == TOKENS + 1);
  CHECK_OK(firn_rewind(manager, child, 32));
  CHECK_OK(firn_usable_tokens(manager, child, &count32));
  CHECK(count32 == 32);
  CHECK_OK(firn_free(manager, child, NULL));

  /* Freed, its blocks are found; everything but the last token may be. */
  CHECK_OK(firn_free(manager, seq, NULL));
  CHECK_OK(firn_wait_idle(manager, FIRN_FOREVER));
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, NULL, &match));
  CHECK(match.tokens == 96 && match.first_miss == FIRN_MISS_PARTIAL_TAIL);
  CHECK_OK(firn_match_prefix(manager, prompt, 96, NULL, &match));
  CHECK(match.tokens == 80);

  /* Gone from the pool, back from the host tier, bit for bit. */
  uint32_t emptied = 0;
  CHECK_OK(firn_empty_pool(manager, 0xA5, &emptied));
  CHECK(emptied > 0 && stat(manager, "frames") > 0);
  CHECK_OK(firn_begin(manager, prompt, TOKENS, NULL, &seq, &match));
  CHECK(match.tokens == 96 && match.tokens_on_host == 96 && match.tokens_on_device == 0);
  check_gathered(manager, seq, 96, 1);
  firn_ticket ticket = 0;
  int32_t done = 0;
  CHECK_OK(firn_prefetch(manager, seq, &ticket));
  CHECK(ticket != 0);
  CHECK_OK(firn_wait(manager, ticket, FIRN_FOREVER));
  CHECK_OK(firn_done(manager, ticket, &done));
  CHECK(done == 1);
  CHECK_OK(firn_cancel(manager, ticket));
  CHECK_OK(firn_block_table(manager, seq, 0, slots, 8, &count));
  CHECK(count == 6 && slots[0] != FIRN_NO_SLOT);
  CHECK_OK(firn_hash_slot(manager, slots[0], &hash_again));
  CHECK(hash == hash_again);

  /* Another namespace sees none of it, and neither does a request that does not read. */
  firn_begin_params other;
  CHECK_OK(firn_begin_default_params(&other, sizeof other));
  other.name_space = "tenant-7";
  other.name_space_bytes = 8;
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, &other, &match));
  CHECK(match.tokens == 0);
  CHECK_OK(firn_begin_default_params(&other, sizeof other));
  other.read_cache = 0;
  firn_seq blind = 0;
  CHECK_OK(firn_begin(manager, prompt, TOKENS, &other, &blind, &match));
  CHECK(match.tokens == 0 && match.first_miss == FIRN_MISS_NOT_READ);
  CHECK(strcmp(firn_miss_name(match.first_miss), "not_read") == 0);
  CHECK_OK(firn_free(manager, blind, NULL));

  check_request(manager, prompt);

  /* Knowing: hits and misses make up all queries. */
  double misses = 0;
  for (uint32_t reason = 1; reason <= FIRN_MISS_IDENTITY; ++reason) {
    char name[64];
    snprintf(name, sizeof name, "misses.%s", firn_miss_name(reason));
    misses += stat(manager, name);
  }
  CHECK(stat(manager, "prefix_cache_queries") == stat(manager, "prefix_cache_hits") + misses);
  char* json = NULL;
  CHECK_OK(firn_stats_json(manager, &json));
  CHECK(json[0] == '{' && strstr(json, "\"sequences\": 1") != NULL);
  firn_string_free(json);
  CHECK_OK(firn_ledger_json(manager, &json));
  CHECK(strstr(json, "\"device\":{\"limit\":1048576") != NULL);
  firn_string_free(json);
  CHECK_OK(firn_layout_json(manager, &json));
  CHECK(strstr(json, "\"page_sets\":[{") != NULL);
  firn_string_free(json);
  CHECK_OK(firn_effective_config_json(manager, &json));
  CHECK(strstr(json, "\"pool.budget\":\"1MiB\"") != NULL);
  firn_string_free(json);
  CHECK_OK(firn_dump_json(manager, &json));
  CHECK(json[0] == '{');
  firn_string_free(json);

  CHECK_REFUSED(firn_reset(manager), FIRN_UNAVAILABLE, "sequence");
  CHECK_OK(firn_free(manager, seq, NULL));
  CHECK_OK(firn_wait_idle(manager, FIRN_FOREVER));
  CHECK_OK(firn_reset(manager));
  CHECK_OK(firn_match_prefix(manager, prompt, TOKENS, NULL, &match));
  CHECK(match.tokens == 0);
  check_sound(manager);
  size_t free_slots = 0;
  CHECK_OK(firn_reuse_order(manager, NULL, 0, &free_slots));
  CHECK((double)free_slots == stat(manager, "slots_total"));
  firn_manager_destroy(manager);
  puts("life: ok");
  return 0;
}
