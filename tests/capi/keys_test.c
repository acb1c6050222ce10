/* keys_test.c: the vectors of docs/keys.md through the C interface. The page is read as it stands. */
#include "check.h"

enum { MAX_LINE = 16384, MAX_GROUPS = 8, MAX_FLOATS = 512, MAX_MEDIA = 8 };

static size_t from_hex(const char* text, uint8_t* bytes) {
  size_t count = 0;
  unsigned value;
  for (; sscanf(text, "%2x", &value) == 1; text += 2) bytes[count++] = (uint8_t)value;
  return count;
}

/* The value of "name = value", or NULL. */
static char* value_of(char* line, const char* name) {
  const size_t length = strlen(name);
  if (strncmp(line, name, length) != 0 || strncmp(line + length, " =", 2) != 0) return NULL;
  return line + length + (line[length + 2] == ' ' ? 3 : 2);
}

struct identity_vector {
  firn_model_params model;
  firn_group_params groups[MAX_GROUPS];
  float frequencies[MAX_FLOATS];
  uint8_t adapters[MAX_LINE];
};

static void read_model_line(char* line, struct identity_vector* vector) {
  char* value;
  if ((value = value_of(line, "weights"))) {
    CHECK(from_hex(value, vector->model.weights) == 32);
  } else if ((value = value_of(line, "adapters"))) {
    vector->model.adapters_bytes = from_hex(value, vector->adapters);
    vector->model.adapters = vector->adapters;
  } else if ((value = value_of(line, "group"))) {
    firn_group_params* group = &vector->groups[vector->model.group_count++];
    CHECK(vector->model.group_count <= MAX_GROUPS);
    CHECK_OK(firn_group_default_params(group, sizeof *group));
    CHECK(sscanf(value, "%u %u %u %u %u %u %u", &group->kind, &group->layer_count, &group->dtype, &group->kv_heads,
                 &group->head_dim, &group->value_dim, &group->window) == 7);
  } else if ((value = value_of(line, "pairing"))) {
    vector->model.rotation_pairing = (uint32_t)atoi(value);
  } else if ((value = value_of(line, "dims"))) {
    vector->model.rotation_dims = (uint32_t)atoi(value);
  } else if ((value = value_of(line, "inverse_frequencies"))) {
    for (char* word = strtok(value, " "); word; word = strtok(NULL, " ")) {
      const uint32_t bits = (uint32_t)strtoul(word, NULL, 16);
      memcpy(&vector->frequencies[vector->model.frequency_count++], &bits, sizeof bits);
    }
    vector->model.inverse_frequencies = vector->frequencies;
  } else if ((value = value_of(line, "attention_factor"))) {
    const uint32_t bits = (uint32_t)strtoul(value, NULL, 16);
    memcpy(&vector->model.attention_factor, &bits, sizeof bits);
  } else if ((value = value_of(line, "shard"))) {
    CHECK(sscanf(value, "%u %u", &vector->model.shard_rank, &vector->model.shard_count) == 2);
  }
}

int main(void) {
  static char line[MAX_LINE];
  static struct identity_vector vector;
  static uint8_t extra[MAX_LINE];
  uint8_t identity[32] = {0}, wanted[32], got[32];
  firn_token tokens[FIRN_BLOCK_TOKENS];
  firn_key parent, key;
  static uint8_t made[MAX_LINE], adapter[MAX_LINE], digests[MAX_MEDIA][64];
  static firn_media_item media[MAX_MEDIA];
  firn_begin_params request;
  size_t extra_bytes = 0, made_bytes, identities = 0, keys = 0, extras = 0;
  int chain_mode = 0, request_mode = 0, first = 1;
  firn_key_chain* chain = NULL;
  FILE* page = fopen(FIRN_SOURCE_DIR "/docs/keys.md", "r");
  CHECK(page != NULL);
  while (fgets(line, sizeof line, page)) {
    line[strcspn(line, "\n")] = '\0';
    char* value;
    if ((value = value_of(line, "vector"))) {
      request_mode = strcmp(value, "request") == 0;
      chain_mode = request_mode || strcmp(value, "chain") == 0;
      CHECK_OK(firn_begin_default_params(&request, sizeof request));
      memset(&vector, 0, sizeof vector);
      CHECK_OK(firn_model_default_params(&vector.model, sizeof vector.model));
      vector.model.groups = vector.groups;
      first = 1;
    } else if ((value = value_of(line, "identity"))) {
      CHECK(from_hex(value, identity) == 32);
      if (chain_mode) continue;
      CHECK_OK(firn_model_identity(&vector.model, got));
      CHECK(memcmp(got, identity, 32) == 0);
      ++identities;
    } else if (!chain_mode) {
      read_model_line(line, &vector);
    } else if ((value = value_of(line, "salt"))) {
      const size_t salt_bytes = from_hex(value, extra);
      firn_key_chain_destroy(chain);
      CHECK_OK(firn_key_chain_create(identity, extra, salt_bytes, &chain));
    } else if ((value = value_of(line, "root"))) {
      CHECK(from_hex(value, wanted) == 32);
      CHECK_OK(firn_key_chain_root(chain, got));
      CHECK(memcmp(got, wanted, 32) == 0);
    } else if ((value = value_of(line, "adapter"))) {
      request.adapter_bytes = from_hex(value, adapter);
      request.adapter = adapter;
    } else if ((value = value_of(line, "media"))) {
      firn_media_item* item = &media[request.media_count];
      int digest_at = 0;
      CHECK(request.media_count < MAX_MEDIA);
      CHECK(sscanf(value, "%u %u %n", &item->first_token, &item->token_count, &digest_at) == 2);
      item->digest = digests[request.media_count];
      item->digest_bytes = from_hex(value + digest_at, digests[request.media_count]);
      request.media = media;
      ++request.media_count;
    } else if ((value = value_of(line, "tokens"))) {
      size_t count = 0;
      for (char* word = strtok(value, " "); word; word = strtok(NULL, " ")) {
        CHECK(count < FIRN_BLOCK_TOKENS);
        tokens[count++] = (firn_token)strtol(word, NULL, 10);
      }
      CHECK(count == FIRN_BLOCK_TOKENS);
      extra_bytes = 0;
    } else if ((value = value_of(line, "extra"))) {
      extra_bytes = from_hex(value, extra);
      if (!request_mode) continue;
      CHECK_OK(firn_block_extra(&request, extras++ * FIRN_BLOCK_TOKENS, made, sizeof made, &made_bytes));
      CHECK(made_bytes == extra_bytes && memcmp(made, extra, extra_bytes) == 0);
    } else if ((value = value_of(line, "key"))) {
      CHECK(from_hex(value, wanted) == 32);
      CHECK_OK(firn_key_chain_next(chain, first ? NULL : &parent, tokens, extra, extra_bytes, &key));
      CHECK(memcmp(key.bytes, wanted, 32) == 0);
      parent = key;
      first = 0;
      ++keys;
    }
  }
  fclose(page);
  firn_key_chain_destroy(chain);
  CHECK(identities == 3 && keys == 12 && extras == 4);
  puts("keys: ok");
  return 0;
}
