/* check.h: the least a test in C needs. A failed check says where and what, and ends the program. */
#ifndef FIRN_TESTS_CAPI_CHECK_H
#define FIRN_TESTS_CAPI_CHECK_H

#include <firn/firn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                   \
  do {                                                                                                     \
    if (!(condition)) {                                                                                    \
      fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition, firn_last_error()); \
      exit(1);                                                                                             \
    }                                                                                                      \
  } while (0)
#define CHECK_OK(call) CHECK((call) == FIRN_OK)
/* The call is refused, and the sentence for people names what is wrong. */
#define CHECK_REFUSED(call, code, word)               \
  do {                                                \
    CHECK((call) == (code));                          \
    CHECK(strstr(firn_last_error(), (word)) != NULL); \
  } while (0)

enum { LAYERS = 2, KV_HEADS = 2, HEAD_DIM = 16, QUERY_HEADS = 4 };

static inline firn_group_params check_group(void) {
  firn_group_params group;
  CHECK_OK(firn_group_default_params(&group, sizeof group));
  group.layer_count = LAYERS;
  group.kv_heads = KV_HEADS;
  group.head_dim = group.value_dim = HEAD_DIM;
  group.query_heads = QUERY_HEADS;
  return group;
}

static inline firn_manager* check_manager(const char* yaml) {
  const firn_group_params group = check_group();
  firn_model_params model;
  firn_config* config = NULL;
  firn_manager* manager = NULL;
  CHECK_OK(firn_model_default_params(&model, sizeof model));
  model.groups = &group;
  model.group_count = 1;
  model.weights[0] = 1;
  CHECK_OK(firn_config_parse(yaml, &config));
  CHECK_OK(firn_manager_create(config, &model, NULL, &manager));
  firn_config_destroy(config);
  return manager;
}

static inline void check_sound(const firn_manager* manager) {
  size_t violations = 99;
  char* json = NULL;
  CHECK_OK(firn_verify(manager, &violations, &json));
  if (violations != 0) fprintf(stderr, "%s\n", json);
  CHECK(violations == 0);
  CHECK(strcmp(json, "[]") == 0);
  firn_string_free(json);
}

#endif
