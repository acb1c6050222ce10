/* embed.c: the least an engine does with firn from C: a prompt goes in, is attended, and is found again by the next
 * one. */
#include <firn/firn.h>
#include <stdio.h>

#define TRY(call)                                                                \
  do {                                                                           \
    if ((call) != FIRN_OK) return fprintf(stderr, "%s\n", firn_last_error()), 1; \
  } while (0)

int main(void) {
  firn_config* config = NULL;
  TRY(firn_config_parse("pool: {budget: 16MiB}\nhost: {budget: 64MiB}\n", &config));
  firn_group_params group; /* two layers of four KV heads of 64; eight query heads share them */
  TRY(firn_group_default_params(&group, sizeof group));
  group.layer_count = 2, group.kv_heads = 4, group.head_dim = 64, group.value_dim = 64, group.query_heads = 8;
  firn_model_params model;
  TRY(firn_model_default_params(&model, sizeof model));
  model.groups = &group, model.group_count = 1;
  firn_manager* manager = NULL;
  TRY(firn_manager_create(config, &model, NULL, &manager));
  firn_config_destroy(config);

  firn_token prompt[100];
  for (int i = 0; i < 100; ++i) prompt[i] = 7;
  firn_seq seq = 0;
  TRY(firn_begin(manager, prompt, 100, NULL, &seq, NULL));
  firn_copy_order* orders = NULL;
  size_t order_count = 0;
  TRY(firn_allocate(manager, seq, 100, 0, &orders, &order_count));
  firn_copy_order_free(orders); /* firn owns the bytes here and has carried them out */
  static float kv[100 * 4 * 64], q[100 * 8 * 64], out[100 * 8 * 64]; /* from your projections */
  const firn_step_rows rows = {seq, 0, 100, 0, 0};
  firn_attend_params attention;
  TRY(firn_attend_default_params(&attention, sizeof attention));
  attention.query_heads = 8, attention.scale = 0.125f;
  for (uint32_t layer = 0; layer < 2; ++layer) {
    TRY(firn_append(manager, layer, &rows, 1, (firn_address)(uintptr_t)kv, (firn_address)(uintptr_t)kv, NULL));
    TRY(firn_attend(manager, layer, &rows, 1, &attention, (firn_address)(uintptr_t)q, (firn_address)(uintptr_t)out,
                    NULL));
  }
  TRY(firn_commit(manager, seq, prompt, 100));
  TRY(firn_free(manager, seq, NULL));
  firn_match match;
  FIRN_RESULT(match);
  TRY(firn_match_prefix(manager, prompt, 100, NULL, &match));
  printf("%u of 100 tokens are there for the next prompt\n", match.tokens);
  firn_manager_destroy(manager);
  return 0;
}
