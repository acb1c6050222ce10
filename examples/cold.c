/* cold.c: an engine that owns its K/V stores 1,000 blocks in firn's cold side, forgets them, looks them up, and loads
 * them back bit for bit, with a state of its own beside each eighth; in two layouts of its memory. */
#include <firn/firn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define TRY(call)                                                                \
  do {                                                                           \
    if ((call) != FIRN_OK) return fprintf(stderr, "%s\n", firn_last_error()), 1; \
  } while (0)
enum { LAYERS = 2, BLOCKS = 1000, HEADS = 2, DIM = 32, BATCH = 100, STATE = 4096 };
enum { ROW = HEADS * DIM * 2, BLOCK = 16 * ROW, LAYER = 2 * BLOCKS * BLOCK, STATES = BLOCKS / 8 };
static uint8_t kv[LAYERS][LAYER], before[LAYERS][LAYER], state[STATES][STATE], state_before[STATES][STATE];
static firn_key keys[BLOCKS];
static firn_block_view views[LAYERS * BATCH];
static firn_cold_found found[BLOCKS];
static firn_cold_state states[STATES];

/* separate: [2, blocks, tokens, heads, dim] a layer; interleaved: each token's K, then its V. */
static void place(int interleaved, size_t first) {
  const uint32_t t = interleaved ? 2 * ROW : ROW; /* from token to token */
  for (size_t layer = 0; layer < LAYERS; ++layer)
    for (size_t i = 0; i < BATCH; ++i) {
      const firn_address k = (firn_address)(uintptr_t)kv[layer] + (first + i) * BLOCK * (interleaved ? 2 : 1);
      const firn_block_view view = {k, k + (interleaved ? ROW : BLOCKS * BLOCK), t, 2 * DIM, t, 2 * DIM};
      views[layer * BATCH + i] = view;
    }
}
static int move_all(firn_cold* cache, int interleaved, int load) {
  for (size_t first = 0; first < BLOCKS; first += BATCH) {
    firn_cold_run run;
    firn_ticket ticket = 0;
    size_t done = 0;
    TRY(firn_cold_run_default_params(&run, sizeof run));
    place(interleaved, first);
    run.first_position = 16 * first;
    run.keys = keys + first, run.key_count = BATCH, run.views = views, run.view_count = LAYERS * BATCH;
    TRY(load ? firn_cold_load(cache, &run, &ticket) : firn_cold_store(cache, &run, &ticket));
    TRY(firn_cold_wait(cache, ticket, FIRN_FOREVER, NULL, 0, &done));
    if (done != BATCH) return fprintf(stderr, "%zu of %d blocks\n", done, BATCH), 1;
  }
  firn_ticket ticket = 0;
  TRY(load ? firn_cold_load_state(cache, states, STATES, 0, &ticket)
           : firn_cold_store_state(cache, states, STATES, 0, &ticket));
  TRY(firn_cold_wait(cache, ticket, FIRN_FOREVER, NULL, 0, NULL));
  return 0;
}

int main(void) {
  firn_group_params group;
  firn_model_params model;
  firn_cold_params params;
  TRY(firn_group_default_params(&group, sizeof group));
  group.layer_count = LAYERS, group.kv_heads = HEADS, group.head_dim = DIM, group.value_dim = DIM;
  TRY(firn_model_default_params(&model, sizeof model));
  model.groups = &group, model.group_count = 1;
  TRY(firn_cold_default_params(&params, sizeof params));
  params.budget_bytes = 64 << 20;
  for (int interleaved = 0; interleaved < 2; ++interleaved) {
    firn_cold* cache = NULL;
    TRY(firn_cold_create(&model, &params, &cache));
    for (size_t i = 0; i < sizeof kv; ++i) (&kv[0][0])[i] = (uint8_t)(rand() >> 7);
    for (size_t i = 0; i < sizeof state; ++i) (&state[0][0])[i] = (uint8_t)(i / 100);
    for (size_t i = 0; i < BLOCKS; ++i) TRY(firn_cold_key(cache, &i, sizeof i, "example", 7, &keys[i]));
    for (size_t i = 0; i < STATES; ++i)
      states[i] = (firn_cold_state){keys[8 * i + 7], state[i], STATE, 1 /* bound */, 0};
    memcpy(before, kv, sizeof kv), memcpy(state_before, state, sizeof state);
    if (move_all(cache, interleaved, 0)) return 1;
    memset(kv, 0, sizeof kv), memset(state, 0, sizeof state); /* forgotten */
    TRY(firn_cold_lookup(cache, keys, BLOCKS, FIRN_COLD_BLOCK, FIRN_FIDELITY_EXACT, found, NULL));
    int hits = 0;
    for (size_t i = 0; i < BLOCKS; ++i) hits += found[i].answer == FIRN_COLD_HIT;
    if (move_all(cache, interleaved, 1)) return 1;
    if (memcmp(before, kv, sizeof kv) || memcmp(state_before, state, sizeof state)) return puts("other bytes"), 1;
    printf("%d of %d blocks and %d states came back, K and V %s\n", hits, BLOCKS, STATES,
           interleaved ? "interleaved" : "separate");
    firn_cold_destroy(cache);
  }
  return 0;
}
