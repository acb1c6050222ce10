/* arguments_test.c: whatever a caller gives, a call answers with a code and a sentence, and the manager stays sound. */
#include "check.h"

static int64_t hand_clock(void* user) { return *(int64_t*)user; }

int main(void) {
  /* No object at all. */
  size_t count = 7;
  firn_seq seq = 7;
  char* json = NULL;
  CHECK(strcmp(firn_last_error(), "") == 0);
  CHECK_REFUSED(firn_begin(NULL, NULL, 0, NULL, &seq, NULL), FIRN_INVALID_ARGUMENT, "manager is NULL");
  CHECK(seq == 7);
  CHECK_REFUSED(firn_config_create(NULL, NULL), FIRN_INVALID_ARGUMENT, "config is NULL");
  CHECK_REFUSED(firn_config_check(NULL), FIRN_INVALID_ARGUMENT, "config is NULL");
  /* A file without an end. */
  firn_config* endless = NULL;
  CHECK_OK(firn_config_create("/dev/zero", &endless));
  CHECK_REFUSED(firn_config_check(endless), FIRN_INVALID_ARGUMENT, "more than");
  firn_config_destroy(endless);
  CHECK_REFUSED(firn_stats_json(NULL, &json), FIRN_INVALID_ARGUMENT, "manager is NULL");
  CHECK(json == NULL);
  firn_manager_destroy(NULL);
  firn_config_destroy(NULL);
  firn_key_chain_destroy(NULL);
  firn_string_free(NULL);
  firn_copy_order_free(NULL);
  firn_event_free(NULL);
  firn_key_place_free(NULL);
  CHECK(strcmp(firn_code_name(FIRN_NO_SPACE), "no_space") == 0 && strcmp(firn_code_name(99), "unknown") == 0);
  CHECK(strcmp(firn_code_name(-1), "unknown") == 0 && strcmp(firn_miss_name(1000), "unknown") == 0);

  /* Configurations: every mistake is named. */
  firn_config* config = NULL;
  CHECK_OK(firn_config_parse("pool: {budgt: 1MiB}\nthreads: many\n", &config));
  CHECK_REFUSED(firn_config_check(config), FIRN_INVALID_ARGUMENT, "budgt");
  CHECK(strstr(firn_last_error(), "threads") != NULL);
  firn_config_destroy(config);
  CHECK_OK(firn_config_create("/nowhere/firn.yaml", &config));
  CHECK_REFUSED(firn_config_check(config), FIRN_INVALID_ARGUMENT, "/nowhere/firn.yaml");
  firn_config_destroy(config);
  CHECK_OK(firn_config_parse(NULL, &config));
  CHECK_OK(firn_config_set(config, "device", "none"));
  CHECK_OK(firn_config_set(config, "pool.budget", "nonsense"));
  CHECK_REFUSED(firn_config_check(config), FIRN_INVALID_ARGUMENT, "pool.budget");
  CHECK_OK(firn_config_set(config, "pool.budget", "1MiB"));
  CHECK_OK(firn_config_check(config));
  CHECK_OK(firn_config_json(config, &json));
  CHECK(strstr(json, "firn_config_set") != NULL);
  firn_string_free(json);
  CHECK_REFUSED(firn_config_set(config, NULL, "x"), FIRN_INVALID_ARGUMENT, "key is NULL");

  /* Struct heads. */
  firn_group_params group = check_group();
  firn_model_params model;
  firn_manager* manager = NULL;
  uint8_t identity[32], identity_again[32];
  CHECK_REFUSED(firn_model_default_params(&model, 8), FIRN_INVALID_ARGUMENT, "size");
  CHECK_REFUSED(firn_model_default_params(NULL, sizeof model), FIRN_INVALID_ARGUMENT, "NULL");
  CHECK_OK(firn_model_default_params(&model, sizeof model));
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "group");
  model.groups = &group;
  model.group_count = 1;
  CHECK_OK(firn_model_identity(&model, identity));
  model.struct_version = 2;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "struct_version is 2");
  model.struct_version = FIRN_STRUCT_VERSION;
  model.struct_size = 12;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "struct_size is 12");
  model.struct_size = (uint32_t)sizeof model;
  group.struct_size = 0;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "struct_size is 0");
  group.struct_size = (uint32_t)sizeof group;
  group.kind = 9;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "kind is 9");
  group.kind = FIRN_GROUP_FULL;
  group.dtype = 0;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "dtype is 0");
  group.dtype = FIRN_DTYPE_F16;
  model.adapters_bytes = 3;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "adapters is NULL");
  model.adapters_bytes = 0;
  model.group_count = 1000;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "1000 groups");
  model.group_count = 1;

  /* A size that ends within a field is nobody's; groups of two sizes are no array. */
  model.struct_size = (uint32_t)sizeof model + 3;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "within a field");
  model.struct_size = (uint32_t)sizeof model;
  CHECK_REFUSED(firn_model_default_params(&model, sizeof model - 1), FIRN_INVALID_ARGUMENT, "firn_model_params");
  {
    firn_group_params two[2] = {group, group};
    two[1].struct_size = 0;
    model.groups = two;
    model.group_count = 2;
    CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "struct_size of groups[1] is 0");
    model.groups = &group;
    model.group_count = 1;
  }
  model.adapters = "x";
  model.adapters_bytes = SIZE_MAX;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "adapters");
  model.adapters = NULL;
  model.adapters_bytes = 0;

  /* A program built with a newer header: its longer structs are taken as long as they ask for nothing new. */
  struct {
    firn_group_params known;
    uint32_t later[4];
  } newer;
  CHECK_OK(firn_group_default_params(&newer.known, sizeof newer));
  CHECK(newer.known.struct_size == sizeof newer && newer.later[3] == 0);
  newer.known.layer_count = LAYERS;
  newer.known.kv_heads = KV_HEADS;
  newer.known.head_dim = newer.known.value_dim = HEAD_DIM;
  model.groups = &newer.known;
  CHECK_OK(firn_model_identity(&model, identity_again));
  CHECK(memcmp(identity, identity_again, 32) == 0);
  newer.later[2] = 1;
  CHECK_REFUSED(firn_model_identity(&model, identity), FIRN_INVALID_ARGUMENT, "newer version");
  model.groups = &group;

  /* A manager with a clock of its own. */
  int64_t now = 5;
  firn_create_params create;
  CHECK_OK(firn_create_default_params(&create, sizeof create));
  create.clock_ns = hand_clock;
  create.clock_user = &now;
  CHECK_REFUSED(firn_manager_create(config, NULL, NULL, &manager), FIRN_INVALID_ARGUMENT, "model is NULL");
  CHECK_REFUSED(firn_manager_create(config, &model, NULL, NULL), FIRN_INVALID_ARGUMENT, "manager is NULL");
  CHECK_OK(firn_config_set(config, "pool.budget", "1KiB"));
  CHECK_REFUSED(firn_manager_create(config, &model, &create, &manager), FIRN_INVALID_ARGUMENT, "pool.budget");
  CHECK(manager == NULL);
  CHECK_OK(firn_config_set(config, "pool.budget", "64KiB"));
  CHECK_OK(firn_manager_create(config, &model, &create, &manager));
  firn_config_destroy(config);

  /* Calls on it. */
  const firn_token tokens[40] = {1, 2, 3};
  firn_match match;
  memset(&match, 0, sizeof match);
  CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, NULL, &match), FIRN_INVALID_ARGUMENT, "struct_version is 0");
  FIRN_RESULT(match);
  CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, NULL, NULL), FIRN_INVALID_ARGUMENT, "match is NULL");
  CHECK_REFUSED(firn_match_prefix(manager, NULL, 40, NULL, &match), FIRN_INVALID_ARGUMENT, "tokens is NULL");
  CHECK_REFUSED(firn_begin(manager, NULL, 0, NULL, &seq, NULL), FIRN_INVALID_ARGUMENT, "at least one token");
  firn_begin_params begin;
  CHECK_OK(firn_begin_default_params(&begin, sizeof begin));
  begin.min_fidelity = 0;
  CHECK_REFUSED(firn_begin(manager, tokens, 40, &begin, &seq, NULL), FIRN_INVALID_ARGUMENT, "min_fidelity is 0");
  begin.min_fidelity = FIRN_FIDELITY_EXACT;
  begin.name_space_bytes = 4;
  CHECK_REFUSED(firn_begin(manager, tokens, 40, &begin, &seq, NULL), FIRN_INVALID_ARGUMENT, "name_space is NULL");
  CHECK_OK(firn_begin_default_params(&begin, sizeof begin));
  CHECK_REFUSED(firn_begin_default_params(&begin, offsetof(firn_begin_params, adapter) - 1), FIRN_INVALID_ARGUMENT,
                "firn_begin_params");
  begin.media_count = 1;
  CHECK_REFUSED(firn_begin(manager, tokens, 40, &begin, &seq, NULL), FIRN_INVALID_ARGUMENT, "media is NULL");
  const firn_media_item items[2] = {{0, 4, "a", 1}, {3, 4, "b", 1}};
  begin.media = items;
  begin.media_count = 2;
  CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, &begin, &match), FIRN_INVALID_ARGUMENT, "media[1] begins");
  CHECK_REFUSED(firn_block_extra(&begin, 0, NULL, 0, &count), FIRN_INVALID_ARGUMENT, "media[1] begins");
  const firn_media_item empty = {0, 4, NULL, 0}, wrong = {0, 4, NULL, 3};
  begin.media_count = 1;
  begin.media = &empty;
  CHECK_REFUSED(firn_begin(manager, tokens, 40, &begin, &seq, NULL), FIRN_INVALID_ARGUMENT, "digest of 0 bytes");
  begin.media = &wrong;
  CHECK_REFUSED(firn_begin(manager, tokens, 40, &begin, &seq, NULL), FIRN_INVALID_ARGUMENT, "digest is NULL");
  CHECK(seq == 7);
  CHECK_OK(firn_begin(manager, tokens, 40, NULL, &seq, NULL));

  /* Sizes that end within a field, and those of older headers. */
  for (uint32_t size = 0; size < (uint32_t)sizeof begin + 9; ++size) {
    const int ends =
        size == offsetof(firn_begin_params, adapter) || size == offsetof(firn_begin_params, adapter_bytes) ||
        size == offsetof(firn_begin_params, media) || size == offsetof(firn_begin_params, media_count) ||
        size == offsetof(firn_begin_params, max_reuse_tokens) || size == offsetof(firn_begin_params, drop_last_block) ||
        size == sizeof begin || size == sizeof begin + 8;
    struct {
      firn_begin_params known;
      uint32_t later[4];
    } sized;
    memset(&sized, 0, sizeof sized);
    CHECK_OK(firn_begin_default_params(&sized.known, sizeof sized.known));
    sized.known.struct_size = size;
    if (ends)
      CHECK_OK(firn_match_prefix(manager, tokens, 40, &sized.known, &match));
    else
      CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, &sized.known, &match), FIRN_INVALID_ARGUMENT,
                    "firn_begin_params: struct_size");
  }
  match.struct_size -= 2;
  CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, NULL, &match), FIRN_INVALID_ARGUMENT, "firn_match");
  match.struct_size += 5;
  CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, NULL, &match), FIRN_INVALID_ARGUMENT, "within a field");
  FIRN_RESULT(match);

  /* Counts that nobody can mean are answered before anything is read. */
  CHECK_REFUSED(firn_match_prefix(manager, tokens, SIZE_MAX, NULL, &match), FIRN_INVALID_ARGUMENT, "at most");
  CHECK_REFUSED(firn_commit(manager, seq, tokens, SIZE_MAX / 4 + 1), FIRN_INVALID_ARGUMENT, "at most");
  CHECK_REFUSED(firn_compute_keys(manager, tokens, FIRN_MAX_TOKENS + 1u, NULL, 0, NULL, 0, &count),
                FIRN_INVALID_ARGUMENT, "at most");
  CHECK_REFUSED(firn_compute_keys(manager, tokens, 40, "x", SIZE_MAX, NULL, 0, &count), FIRN_INVALID_ARGUMENT,
                "name_space");
  const firn_key one_key = {{1}};
  CHECK_REFUSED(firn_pin(manager, &one_key, SIZE_MAX / 16, 1, NULL), FIRN_INVALID_ARGUMENT, "keys");
  CHECK_REFUSED(firn_unpin(manager, NULL, 1, NULL), FIRN_INVALID_ARGUMENT, "keys is NULL");
  const firn_step_request request = {seq, 1, 0};
  firn_step_plan plan;
  FIRN_RESULT(plan);
  CHECK_REFUSED(firn_plan_step(manager, &request, SIZE_MAX / 8, &plan), FIRN_INVALID_ARGUMENT, "requests");

  /* Flags are 0 or 1. */
  CHECK_OK(firn_begin_default_params(&begin, sizeof begin));
  begin.read_cache = 2;
  CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, &begin, &match), FIRN_INVALID_ARGUMENT, "read_cache is 2");
  begin.read_cache = 1;
  begin.drop_last_block = 255;
  CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, &begin, &match), FIRN_INVALID_ARGUMENT, "drop_last_block");
  begin.drop_last_block = 0;
  begin.admission = 3;
  CHECK_REFUSED(firn_match_prefix(manager, tokens, 40, &begin, &match), FIRN_INVALID_ARGUMENT, "admission is 3");

  firn_copy_order* orders = NULL;
  CHECK_REFUSED(firn_allocate(manager, seq, 40, 0, NULL, &count), FIRN_INVALID_ARGUMENT, "orders is NULL");
  CHECK_REFUSED(firn_allocate(manager, 12345, 40, 0, &orders, &count), FIRN_INVALID_ARGUMENT, "12345");
  CHECK_REFUSED(firn_allocate(manager, seq, 1u << 19, 0, &orders, &count), FIRN_NO_SPACE, "slots");
  CHECK(count == 7 && orders == NULL);
  CHECK_REFUSED(firn_commit(manager, seq, tokens, 40), FIRN_INVALID_ARGUMENT, "allocate first");
  CHECK_OK(firn_allocate(manager, seq, 40, 0, &orders, &count));
  CHECK_REFUSED(firn_commit(manager, seq, NULL, 40), FIRN_INVALID_ARGUMENT, "tokens is NULL");
  CHECK_OK(firn_commit(manager, seq, tokens, 40));
  CHECK_REFUSED(firn_rewind(manager, seq, 41), FIRN_INVALID_ARGUMENT, "40 tokens");
  uint32_t slots[2] = {7, 7};
  CHECK_REFUSED(firn_block_table(manager, seq, 0, slots, 2, &count), FIRN_INVALID_ARGUMENT, "there are 3");
  CHECK(count == 3 && slots[0] == 7);
  CHECK_REFUSED(firn_block_table(manager, seq, 1, slots, 2, &count), FIRN_INVALID_ARGUMENT, "page_set 1");
  CHECK_REFUSED(firn_block_table(manager, seq, 0, NULL, 2, &count), FIRN_INVALID_ARGUMENT, "NULL");
  CHECK_OK(firn_block_table(manager, seq, 0, NULL, 0, &count));
  firn_slot_info info;
  FIRN_RESULT(info);
  CHECK_REFUSED(firn_get_slot_info(manager, 0, &info), FIRN_INVALID_ARGUMENT, "slots 1 to");
  CHECK_REFUSED(firn_get_slot_info(manager, FIRN_NO_SLOT, &info), FIRN_INVALID_ARGUMENT, "slots 1 to");
  const firn_step_rows rows = {seq, 0, 1, 40, 0};
  firn_attend_params attend;
  CHECK_OK(firn_attend_default_params(&attend, sizeof attend));
  CHECK_REFUSED(firn_append(manager, 0, &rows, 1, 0, 0, NULL), FIRN_INVALID_ARGUMENT, "addresses");
  CHECK_REFUSED(firn_attend(manager, 0, &rows, 1, &attend, 0, 0, NULL), FIRN_INVALID_ARGUMENT, "addresses");
  CHECK_REFUSED(firn_attend(manager, 0, &rows, 1, NULL, 1, 1, NULL), FIRN_INVALID_ARGUMENT, "params is NULL");
  const firn_fence fence = {9, 0, 0, 0};
  CHECK_REFUSED(firn_free(manager, seq, &fence), FIRN_INVALID_ARGUMENT, "kind is 9");
  /* Fences of nobody here: of another manager, one never given out, one that nobody can wait for. */
  const firn_fence foreign[] = {{1, 0, 0x77777777, 1}, {1, 0, 1, UINT64_MAX}, {2, 0, 1, 1}};
  for (size_t i = 0; i < 3; ++i) {
    int32_t passed = 7;
    CHECK_REFUSED(firn_free(manager, seq, &foreign[i]), FIRN_INVALID_ARGUMENT, "fence");
    CHECK_REFUSED(firn_preempt(manager, seq, &foreign[i]), FIRN_INVALID_ARGUMENT, "fence");
    CHECK_REFUSED(firn_wait_fence(manager, &foreign[i], 1000), FIRN_INVALID_ARGUMENT, "fence");
    CHECK_REFUSED(firn_fence_passed(manager, &foreign[i], &passed), FIRN_INVALID_ARGUMENT, "fence");
    CHECK(passed == 7);
  }
  double value = 0;
  CHECK_REFUSED(firn_stat(manager, "happiness", &value), FIRN_INVALID_ARGUMENT, "happiness");
  const firn_retention_range range = {0, 16, 101, 0, 0};
  CHECK_REFUSED(firn_set_retention(manager, seq, &range, 1), FIRN_INVALID_ARGUMENT, "priority 101");

  /* Keys alone. */
  firn_key_chain* chain = NULL;
  firn_key keys[2];
  uint8_t extra[4097] = {0};
  CHECK_REFUSED(firn_key_chain_create(identity, NULL, 3, &chain), FIRN_INVALID_ARGUMENT, "salt is NULL");
  CHECK_OK(firn_key_chain_create(identity, NULL, 0, &chain));
  CHECK_REFUSED(firn_key_chain_next(chain, NULL, tokens, extra, sizeof extra, keys), FIRN_INVALID_ARGUMENT, "4097");
  CHECK_REFUSED(firn_key_chain_keys(chain, tokens, 40, keys, 1, &count), FIRN_INVALID_ARGUMENT, "there are 2");
  CHECK_OK(firn_key_chain_keys(chain, tokens, 40, NULL, 0, &count));
  CHECK(count == 2);
  firn_key_chain_destroy(chain);

  /* Without bytes there is nothing to read back. */
  firn_block_view view;
  uint8_t bytes[64];
  CHECK_REFUSED(firn_slot_view(manager, 1, 0, &view), FIRN_UNAVAILABLE, "no bytes");
  CHECK_REFUSED(firn_slot_view(manager, 1, 0, NULL), FIRN_INVALID_ARGUMENT, "view is NULL");
  CHECK_REFUSED(firn_gather(manager, seq, 0, 0, 1, bytes, 64, bytes, 64), FIRN_UNAVAILABLE, "no bytes");
  CHECK_REFUSED(firn_gather(manager, seq, 0, 0, 1, NULL, 64, bytes, 64), FIRN_INVALID_ARGUMENT, "NULL");

  /* A clock at the end of time: what is held from then on has not ended before it began. */
  firn_key held[2];
  firn_lease lease = 0;
  firn_seq late = 0;
  uint32_t number = 0;
  firn_copy_order* late_orders = NULL;
  CHECK_OK(firn_begin(manager, tokens, 40, NULL, &late, NULL));
  CHECK_OK(firn_token_count(manager, late, &number));
  CHECK_OK(firn_allocate(manager, late, 40 - number, 0, &late_orders, &count));
  firn_copy_order_free(late_orders);
  CHECK_OK(firn_commit(manager, late, tokens + number, 40 - number));
  CHECK_OK(firn_block_keys(manager, late, held, 2, &count));
  now = INT64_MAX;
  CHECK_OK(firn_acquire_lease(manager, "late", held, 2, 1000, &lease));
  CHECK_OK(firn_renew_lease(manager, lease, 1000));
  CHECK_OK(firn_release_lease(manager, lease, NULL));
  CHECK_OK(firn_free(manager, late, NULL));
  now = 5;

  check_sound(manager);
  CHECK_OK(firn_free(manager, seq, NULL));
  CHECK_REFUSED(firn_free(manager, seq, NULL), FIRN_INVALID_ARGUMENT, "does not exist");
  /* A sequence that is gone is not an empty one. */
  uint32_t tokens_now = 7;
  uint8_t states[4];
  CHECK_REFUSED(firn_token_count(manager, seq, &tokens_now), FIRN_INVALID_ARGUMENT, "does not exist");
  CHECK_REFUSED(firn_usable_tokens(manager, seq, &tokens_now), FIRN_INVALID_ARGUMENT, "does not exist");
  CHECK_REFUSED(firn_block_table(manager, seq, 0, NULL, 0, &count), FIRN_INVALID_ARGUMENT, "does not exist");
  CHECK_REFUSED(firn_block_keys(manager, seq, NULL, 0, &count), FIRN_INVALID_ARGUMENT, "does not exist");
  CHECK_REFUSED(firn_block_states(manager, seq, states, 4, &count), FIRN_INVALID_ARGUMENT, "does not exist");
  CHECK(tokens_now == 7);
  check_sound(manager);
  firn_manager_destroy(manager);
  puts("arguments: ok");
  return 0;
}
