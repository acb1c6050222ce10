/* cold_test.c: the cold side from C: what firn_cold_* answers to wrong arguments, and that right ones are carried out
 * without a thread of its own. */
#include "check.h"

int main(void) {
  firn_cold* cache = NULL;
  firn_group_params group = check_group();
  firn_model_params model;
  firn_cold_params params;
  firn_cold_run run;
  firn_ticket ticket = 7;
  CHECK_REFUSED(firn_cold_default_params(NULL, sizeof params), FIRN_INVALID_ARGUMENT, "NULL");
  CHECK_REFUSED(firn_cold_default_params(&params, 8), FIRN_INVALID_ARGUMENT, "size");
  CHECK_OK(firn_cold_default_params(&params, sizeof params));
  CHECK_OK(firn_model_default_params(&model, sizeof model));
  group.layer_count = 1, group.kv_heads = 1, group.head_dim = 4, group.value_dim = 4;
  model.groups = &group, model.group_count = 1;
  CHECK_REFUSED(firn_cold_create(NULL, &params, &cache), FIRN_INVALID_ARGUMENT, "model is NULL");
  CHECK_REFUSED(firn_cold_create(&model, NULL, &cache), FIRN_INVALID_ARGUMENT, "params is NULL");
  CHECK_REFUSED(firn_cold_create(&model, &params, &cache), FIRN_NO_SPACE, "budget_bytes");
  params.budget_bytes = 16 << 20, params.workers = 0, params.threads = 1;
  params.codec = "zip";
  CHECK_REFUSED(firn_cold_create(&model, &params, &cache), FIRN_INVALID_ARGUMENT, "zip");
  params.codec = NULL, params.names = 2;
  CHECK_REFUSED(firn_cold_create(&model, &params, &cache), FIRN_INVALID_ARGUMENT, "names is 2");
  params.names = FIRN_COLD_INDEPENDENT;
  CHECK(cache == NULL);
  CHECK_OK(firn_cold_create(&model, &params, &cache));

  static uint8_t kv[2][2 * 16 * 8]; /* two blocks: K of 16 tokens, then V */
  static const char name[] = "block";
  firn_key keys[2];
  CHECK_REFUSED(firn_cold_key(cache, name, 257, NULL, 0, &keys[0]), FIRN_INVALID_ARGUMENT, "256");
  CHECK_OK(firn_cold_key(cache, name, 4, NULL, 0, &keys[0]));
  CHECK_OK(firn_cold_key(cache, name, 5, NULL, 0, &keys[1]));
  firn_block_view views[2];
  for (int i = 0; i < 2; ++i) {
    const firn_address k = (firn_address)(uintptr_t)kv[i];
    views[i] = (firn_block_view){k, k + 16 * 8, 8, 8, 8, 8};
    for (size_t at = 0; at < sizeof kv[i]; ++at) kv[i][at] = (uint8_t)(at * 7 + (size_t)i);
  }
  CHECK_OK(firn_cold_run_default_params(&run, sizeof run));
  run.keys = keys, run.key_count = 2, run.views = views, run.view_count = 1;
  CHECK_REFUSED(firn_cold_store(cache, &run, &ticket), FIRN_INVALID_ARGUMENT, "1 views for 2 blocks");
  CHECK_REFUSED(firn_cold_store(NULL, &run, &ticket), FIRN_INVALID_ARGUMENT, "cache is NULL");
  CHECK_REFUSED(firn_cold_store(cache, NULL, &ticket), FIRN_INVALID_ARGUMENT, "run is NULL");
  run.view_count = 2, run.fidelity = 9;
  CHECK_REFUSED(firn_cold_store(cache, &run, &ticket), FIRN_INVALID_ARGUMENT, "fidelity is 9");
  CHECK(ticket == 7);
  run.fidelity = FIRN_FIDELITY_EXACT;
  CHECK_OK(firn_cold_store(cache, &run, &ticket));
  CHECK_REFUSED(firn_cold_wait(cache, ticket + 1, 0, NULL, 0, NULL), FIRN_INVALID_ARGUMENT, "ticket");
  int32_t worked = 1;
  while (worked) CHECK_OK(firn_cold_pump(cache, &worked));
  firn_ticket ended = 0;
  size_t count = 0, found = 0;
  firn_cold_result results[2];
  CHECK_OK(firn_cold_poll(cache, &ended, results, 2, &count, &found));
  CHECK(ended == ticket && count == 2 && found == 2 && results[1].found && results[1].code == FIRN_OK);
  CHECK_OK(firn_cold_poll(cache, &ended, results, 2, &count, &found));
  CHECK(ended == 0 && count == 0);
  static uint8_t before[2][2 * 16 * 8];
  memcpy(before, kv, sizeof kv), memset(kv, 0, sizeof kv);
  run.deadline_ns = FIRN_FOREVER; /* is no time in the past */
  CHECK_OK(firn_cold_load(cache, &run, &ticket));
  CHECK_OK(firn_cold_wait(cache, ticket, FIRN_FOREVER, results, 2, &found));
  CHECK(found == 2 && memcmp(before, kv, sizeof kv) == 0);

  firn_cold_found answers[2];
  uint32_t done = 0;
  CHECK_REFUSED(firn_cold_erase(cache, keys, 1, 2, &done), FIRN_INVALID_ARGUMENT, "kind is 2");
  CHECK_REFUSED(firn_cold_touch(cache, keys, SIZE_MAX, FIRN_COLD_BLOCK, &done), FIRN_INVALID_ARGUMENT, "at most");
  CHECK_REFUSED(firn_cold_lookup(cache, keys, SIZE_MAX / 2, FIRN_COLD_BLOCK, FIRN_FIDELITY_EXACT, answers, NULL),
                FIRN_INVALID_ARGUMENT, "at most");
  CHECK_OK(firn_cold_pin(cache, keys, 1, FIRN_COLD_BLOCK, &done));
  CHECK_OK(firn_cold_erase(cache, keys, 2, FIRN_COLD_BLOCK, &done));
  CHECK(done == 1);
  CHECK_OK(firn_cold_lookup(cache, keys, 2, FIRN_COLD_BLOCK, FIRN_FIDELITY_EXACT, answers, NULL));
  CHECK(answers[0].answer == FIRN_COLD_HIT && answers[1].answer == FIRN_COLD_MISS);
  CHECK(strcmp(firn_cold_miss_name(answers[1].miss), "erased") == 0);
  CHECK(strcmp(firn_cold_miss_name(1000), "unknown") == 0);
  firn_cold_state state = {keys[0], NULL, 10, 0, 0};
  CHECK_REFUSED(firn_cold_store_state(cache, &state, 1, 0, &ticket), FIRN_INVALID_ARGUMENT, "NULL");
  state.bytes = kv, state.size = sizeof kv;
  CHECK_OK(firn_cold_store_state(cache, &state, 1, 0, &ticket));
  CHECK_OK(firn_cold_cancel(cache, ticket));
  CHECK_OK(firn_cold_wait(cache, ticket, 0, results, 2, &found));
  CHECK(found == 0 && results[0].code == FIRN_UNAVAILABLE && strcmp(results[0].message, "cancelled") == 0);
  CHECK(firn_cold_event_fd(cache) >= 0 && firn_cold_event_fd(NULL) == -1);
  char* json = NULL;
  CHECK_OK(firn_cold_stats_json(cache, &json));
  CHECK(strstr(json, "\"misses.erased\":1") != NULL);
  firn_string_free(json);
  CHECK_OK(firn_cold_verify(cache));
  firn_cold_destroy(cache);
  firn_cold_destroy(NULL);
  return 0;
}
