/* firn.h: the KV cache manager of manager.h for every language that can call C. Plain C99; link libfirn.so (-lfirn).
 *
 * A step of an engine:
 *   firn_begin(manager, tokens, ...)       what of this prompt is already here?
 *   firn_allocate(manager, seq, n, ...)    slots for the rest, all or nothing
 *   for each layer: firn_append, firn_attend
 *   firn_commit(manager, seq, tokens)      now they are part of the sequence, and others may share full blocks
 *   firn_free(manager, seq, NULL)          the blocks stay findable until somebody needs the room
 *
 * Failures: every call that can fail returns a firn_code; nothing throws, exits or aborts because of what a caller
 * gave. firn_last_error() has the sentence for people. A call that fails changes nothing, unless it says otherwise, and
 * leaves its outputs as they were.
 *
 * Structs: those that begin with struct_size and struct_version may grow at their end. Fill parameters by their
 * firn_..._default_params(&params, sizeof params) and change what you need; begin results with FIRN_RESULT. A program
 * built with an older header goes on working: what it does not know takes its default. A struct of a newer header is
 * refused only if it asks for what this library does not know. A struct_size that ends within a field is a mistake and
 * refused, and so is a number that no enumeration here has. Structs without the two fields are frozen.
 *
 * Counts: NULL goes with a count of 0 alone. A prompt has at most FIRN_MAX_TOKENS tokens, a list of keys FIRN_MAX_KEYS,
 * a step FIRN_MAX_ROWS rows and requests, a name, adapter or salt FIRN_MAX_NAME_BYTES bytes: more is a mistake that is
 * answered before anything is read.
 *
 * Strings: text is UTF-8 and ends with a zero byte. Namespaces, salts, adapters and extra bytes are bytes with a
 * length.
 *
 * Who owns what                                    until
 *   firn_config, firn_manager, firn_key_chain      their _destroy; NULL may be destroyed
 *   char* out parameters (JSON, texts)             the caller calls firn_string_free
 *   firn_copy_order*, firn_slot_move*, firn_event*,
 *   firn_key_place*                                the caller calls the _free of its name; NULL where there are none
 *   const char* from firn_last_error               the next call that fails in the same thread
 *   const char* from _name and firn_version        for ever
 *   everything passed in, handles too              the call returns; nothing is kept, and a manager needs neither its
 *                                                  firn_config nor its parameters once it is made
 *   k, v, q, out of firn_append and firn_attend    their fence has passed (on the cpu device: the call returns)
 *
 * Which threads
 *   firn_manager        any number at once, on the same manager too: each call takes its lock, which no call holds
 *                       while it waits or while a codec works. What belongs together must be kept together by the
 *                       caller: two threads that allocate for and commit to one sequence get what they deserve, an
 *                       error or each other's order, never a wrong byte. firn_attend and firn_append are serialised.
 *   firn_manager_destroy  alone, after every other call on it has returned
 *   firn_config         one at a time
 *   firn_key_chain      any number at once
 *   firn_last_error     each thread has its own
 *   the clock of firn_create_params is called under the manager's lock: it must not call the manager
 *
 * Blocking  Only calls named firn_wait... wait, and firn_manager_destroy.
 */
#ifndef FIRN_FIRN_H
#define FIRN_FIRN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FIRN_C_API __attribute__((visibility("default")))
#else
#define FIRN_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* --- what every call speaks --- */

/* What to do next. The message tells a person what happened. */
typedef int32_t firn_code;
enum {
  FIRN_OK = 0,
  FIRN_INVALID_ARGUMENT = 1, /* fix the call, the file or the configuration */
  FIRN_NO_SPACE = 2,         /* make room: every byte of the budget is in use by somebody who may keep it */
  FIRN_UNAVAILABLE = 3,      /* try later: the work is in flight, or the other side does not answer */
  FIRN_CORRUPT = 4,          /* drop this copy: it is not what it says it is */
  FIRN_IO = 5,               /* stop using this device: it failed */
  FIRN_INTERNAL = 6          /* a fault of firn that could be caught; the manager should not be used any more */
};

#define FIRN_STRUCT_VERSION 1u
/* firn_match match; FIRN_RESULT(match); */
#define FIRN_RESULT(result) \
  ((void)((result).struct_size = (uint32_t)sizeof(result), (result).struct_version = FIRN_STRUCT_VERSION))

#define FIRN_BLOCK_TOKENS 16u
#define FIRN_KEY_BYTES 32u
#define FIRN_MAX_TOKENS 67108864u
#define FIRN_MAX_KEYS 67108864u
#define FIRN_MAX_ROWS 1048576u
#define FIRN_MAX_NAME_BYTES 1048576u
#define FIRN_NO_SLOT 0xffffffffu /* in block tables: not resident */
#define FIRN_NULL_SLOT 0u        /* in block tables: behind the window of a sliding-window group */
#define FIRN_FOREVER INT64_MAX   /* as a timeout */

typedef int32_t firn_token;
typedef uint64_t firn_seq;     /* 0: none; never reused within a manager's life */
typedef uint64_t firn_ticket;  /* 0: nothing to wait for */
typedef uint64_t firn_lease;   /* 0: none */
typedef uint64_t firn_address; /* a device's own; on the cpu device (firn_address)(uintptr_t)pointer */

typedef struct firn_config firn_config;
typedef struct firn_manager firn_manager;
typedef struct firn_key_chain firn_key_chain;

typedef struct firn_key { /* frozen: docs/keys.md */
  uint8_t bytes[FIRN_KEY_BYTES];
} firn_key;

typedef struct firn_fence { /* frozen. kind 0: has always passed */
  uint32_t kind;            /* 0 none, 1 timeline, 2 external */
  uint32_t reserved;
  uint64_t handle, value;
} firn_fence;

FIRN_C_API const char* firn_version(void);             /* "0.1.0" */
FIRN_C_API const char* firn_code_name(firn_code code); /* "no_space" */
FIRN_C_API const char* firn_last_error(void);          /* of this thread; "" before the first failure */
FIRN_C_API void firn_string_free(char* text);

/* --- configuration: docs/config.md has every key --- */

/* Defaults, then this process's FIRN_* variables, then the file (NULL: none). Read and checked when used. */
FIRN_C_API firn_code firn_config_create(const char* path, firn_config** config);
/* The same from YAML in memory and without the environment: what you say is what you get. NULL: defaults alone. */
FIRN_C_API firn_code firn_config_parse(const char* yaml, firn_config** config);
/* Stronger than all of the above: ("pool.budget", "16MiB"). The last word for a key counts. */
FIRN_C_API firn_code firn_config_set(firn_config* config, const char* key, const char* value);
/* FIRN_INVALID_ARGUMENT with every mistake, one a line. firn_manager_create checks too. */
FIRN_C_API firn_code firn_config_check(const firn_config* config);
/* [{"key", "value", "origin", "description"}, ...] and warnings, as JSON. */
FIRN_C_API firn_code firn_config_json(const firn_config* config, char** json);
FIRN_C_API void firn_config_destroy(firn_config* config);

/* --- the model --- */

/* bits8: 8-bit elements of any kind (fp8, int8): stored exactly by firn_cold_*, never computed on. */
enum { FIRN_DTYPE_F16 = 1, FIRN_DTYPE_BF16 = 2, FIRN_DTYPE_F32 = 3, FIRN_DTYPE_BITS8 = 4 };
enum { FIRN_GROUP_FULL = 1, FIRN_GROUP_SLIDING_WINDOW = 2, FIRN_GROUP_LATENT = 3, FIRN_GROUP_STATE = 4 };
enum { FIRN_ROTATION_NONE = 0, FIRN_ROTATION_ADJACENT = 1, FIRN_ROTATION_HALVES = 2 };

typedef struct firn_group_params {
  uint32_t struct_size, struct_version;
  uint32_t kind; /* FIRN_GROUP_FULL */
  uint32_t layer_count;
  uint32_t dtype; /* FIRN_DTYPE_F16 */
  uint32_t kv_heads, head_dim, value_dim;
  uint32_t window;      /* tokens; 0 unless the kind is a sliding window */
  uint32_t query_heads; /* sizes the attention workspace; 0: eight a KV head */
} firn_group_params;
FIRN_C_API firn_code firn_group_default_params(firn_group_params* params, size_t params_size);

typedef struct firn_model_params {
  uint32_t struct_size, struct_version;
  const char* name;    /* for people; NULL: none */
  uint8_t weights[32]; /* digest of the weights, firn_hash of the model file for example; zero: unknown */
  const void* adapters;
  size_t adapters_bytes;
  const firn_group_params* groups; /* an array: the first one's struct_size is the distance between them */
  size_t group_count;
  uint32_t rotation_pairing, rotation_dims;
  const float* inverse_frequencies; /* rotation_dims / 2 */
  size_t frequency_count;
  float attention_factor;           /* 1 */
  uint32_t shard_rank, shard_count; /* 0 of 1 */
} firn_model_params;
FIRN_C_API firn_code firn_model_default_params(firn_model_params* params, size_t params_size);
/* Everything two caches must agree on, as 32 bytes: the root of every key. */
FIRN_C_API firn_code firn_model_identity(const firn_model_params* model, uint8_t identity[32]);

/* --- keys (docs/keys.md), without a manager --- */

FIRN_C_API firn_code firn_hash(const void* bytes, size_t byte_count, uint8_t digest[32]); /* BLAKE3 */
FIRN_C_API firn_code firn_key_chain_create(const uint8_t identity[32], const void* salt, size_t salt_bytes,
                                           firn_key_chain** chain);
FIRN_C_API firn_code firn_key_chain_root(const firn_key_chain* chain, uint8_t root[32]);
/* Of FIRN_BLOCK_TOKENS tokens after parent (NULL: the first block), with at most 4,096 extra bytes. */
FIRN_C_API firn_code firn_key_chain_next(const firn_key_chain* chain, const firn_key* parent, const firn_token* tokens,
                                         const void* extra, size_t extra_bytes, firn_key* key);
/* Of all full blocks: token_count / FIRN_BLOCK_TOKENS keys. */
FIRN_C_API firn_code firn_key_chain_keys(const firn_key_chain* chain, const firn_token* tokens, size_t token_count,
                                         firn_key* keys, size_t key_capacity, size_t* key_count);
FIRN_C_API void firn_key_chain_destroy(firn_key_chain* chain);

/* --- a manager --- */

typedef struct firn_create_params {
  uint32_t struct_size, struct_version;
  int64_t (*clock_ns)(void* user); /* NULL: the steady clock. Time is passed in, so that a run can be replayed */
  void* clock_user;
} firn_create_params;
FIRN_C_API firn_code firn_create_default_params(firn_create_params* params, size_t params_size);
/* config NULL: defaults and environment. params NULL: defaults. */
FIRN_C_API firn_code firn_manager_create(const firn_config* config, const firn_model_params* model,
                                         const firn_create_params* params, firn_manager** manager);
FIRN_C_API void firn_manager_destroy(firn_manager* manager);

/* --- sequences --- */

enum { FIRN_FIDELITY_EXACT = 1, FIRN_FIDELITY_LOSSY = 2, FIRN_FIDELITY_DERIVED = 3 };

/* Why a block is not reused; firn_miss_name(reason) is its name in JSON. */
enum {
  FIRN_MISS_NONE = 0,
  FIRN_MISS_NEVER_STORED = 1,
  FIRN_MISS_EVICTED_DEVICE = 2,
  FIRN_MISS_EVICTED_HOST = 3,
  FIRN_MISS_AFTER_MISS = 4,
  FIRN_MISS_PARTIAL_TAIL = 5,
  FIRN_MISS_LOAD_FAILED = 6,
  FIRN_MISS_NOT_READ = 7,
  FIRN_MISS_FIDELITY = 8,
  FIRN_MISS_GROUP = 9,
  FIRN_MISS_NAMESPACE = 10,
  FIRN_MISS_FILTERED = 11,
  FIRN_MISS_DEVICE_LOST = 12,
  FIRN_MISS_IDENTITY = 13
};
FIRN_C_API const char* firn_miss_name(uint32_t reason);

enum {
  FIRN_ADMIT_ALWAYS = 0,   /* room is looked for when it is allocated */
  FIRN_ADMIT_MUST_FIT = 1, /* refused unless all of it has room now */
  FIRN_ADMIT_RESERVE = 2   /* and that room is kept for it */
};
typedef struct firn_media_item { /* frozen. An image, a piece of audio: placeholder tokens that mean it */
  uint32_t first_token, token_count;
  const void* digest; /* of the content, 1 to 64 bytes */
  size_t digest_bytes;
} firn_media_item;
typedef struct firn_begin_params {
  uint32_t struct_size, struct_version;
  const void* name_space; /* tenants do not see each other's blocks */
  size_t name_space_bytes;
  uint32_t read_cache;      /* 1; 0: compute everything, store as usual */
  uint32_t min_fidelity;    /* FIRN_FIDELITY_DERIVED: whatever the configured codec does */
  const void* shared_scope; /* NULL: none. A scope that others read too, for what is nobody's secret */
  size_t shared_scope_bytes;
  uint32_t shared_tokens;   /* of the prompt's beginning, looked for in the scope; all of it */
  uint32_t share;           /* 0; 1: store those blocks there, and never in name_space */
  uint32_t admission;       /* FIRN_ADMIT_ALWAYS */
  uint32_t expected_tokens; /* all it will have in the end, prompt and answer; 0: the prompt */
  /* What decides beside the tokens what the prompt means; part of the keys of the blocks it concerns. */
  const void* adapter; /* of this request alone, for example a LoRA's digest; at most 256 bytes */
  size_t adapter_bytes;
  const firn_media_item* media; /* by first token, none overlapping another */
  size_t media_count;
  uint32_t max_reuse_tokens; /* the most that is reused; all of it. Tensor-parallel ranks agree on their least */
  uint32_t drop_last_block;  /* 1: for speculative decoders that compute the last matched block */
} firn_begin_params;
FIRN_C_API firn_code firn_begin_default_params(firn_begin_params* params, size_t params_size);
/* The extra bytes (docs/keys.md, section 4) that params put into the key of the block whose first token this is. Writes
 * at most `capacity` of them and sets *count, like firn_block_table. */
FIRN_C_API firn_code firn_block_extra(const firn_begin_params* params, uint64_t first_token, uint8_t* extra,
                                      size_t capacity, size_t* count);

/* What all ranks of one model can reuse, of what each of them matched: the least, or 0 of none. It is what they then
 * pass to begin as max_reuse_tokens. */
FIRN_C_API uint32_t firn_tokens_on_all_ranks(const uint32_t* tokens_of_rank, size_t ranks);

typedef struct firn_match { /* a result: FIRN_RESULT(match) */
  uint32_t struct_size, struct_version;
  uint32_t tokens;         /* reusable, at most token_count - 1: whole blocks, and tokens_partial */
  uint32_t tokens_partial; /* of those, in a block that the prompt leaves in its middle */
  uint32_t tokens_on_device, tokens_on_host;
  uint32_t tokens_found, recompute_from;
  uint32_t tokens_full; /* what the groups without a window have */
  uint32_t first_miss;  /* why the block after them is not usable */
} firn_match;

/* What firn_begin would reuse; nothing is held. params NULL: defaults. */
FIRN_C_API firn_code firn_match_prefix(const firn_manager* manager, const firn_token* tokens, size_t token_count,
                                       const firn_begin_params* params, firn_match* match);
/* match may be NULL. match->tokens are committed already. */
FIRN_C_API firn_code firn_begin(firn_manager* manager, const firn_token* tokens, size_t token_count,
                                const firn_begin_params* params, firn_seq* seq, firn_match* match);

typedef struct firn_step_request { /* frozen */
  firn_seq seq;
  uint32_t new_tokens, reserved;
} firn_step_request;
typedef struct firn_step_plan { /* a result */
  uint32_t struct_size, struct_version;
  uint32_t chunk_limit;       /* new tokens the whole step may have now; 0: blocked says why */
  uint32_t chunk_limit_moved; /* and once what is cold has moved to the host */
  uint32_t blocks_needed;
  /* FIRN_OK, FIRN_UNAVAILABLE (firn_pump or firn_wait_room), FIRN_NO_SPACE, FIRN_INVALID_ARGUMENT (longer than
   * max_sequence_tokens) or FIRN_CORRUPT (lost blocks: rewind to firn_usable_tokens) */
  firn_code blocked;
  uint64_t staging_bytes, workspace_bytes;
} firn_step_plan;
FIRN_C_API firn_code firn_plan_step(const firn_manager* manager, const firn_step_request* requests,
                                    size_t request_count, firn_step_plan* plan);

/* Copy-on-write: the first `tokens` tokens of slot `from` belong into slot `to`. firn has done it where it owns the
 * bytes; with device: none the engine does it before it writes to `to`. */
typedef struct firn_copy_order { /* frozen */
  uint32_t from, to, tokens, page_set;
} firn_copy_order;
/* FIRN_UNAVAILABLE: firn_pump or firn_wait_room, then again. FIRN_NO_SPACE: live sequences, reservations, quotas,
 * families or pins hold everything, or records or metadata are used up. FIRN_CORRUPT: lost blocks; rewind first. */
FIRN_C_API firn_code firn_allocate(firn_manager* manager, firn_seq seq, uint32_t new_tokens, uint32_t lookahead,
                                   firn_copy_order** orders, size_t* order_count);
FIRN_C_API void firn_copy_order_free(firn_copy_order* orders);

typedef struct firn_step_rows { /* frozen. Consecutive tokens of one sequence, allocated and not yet committed */
  firn_seq seq;
  uint32_t row, row_count; /* of k, v, q and out */
  uint32_t position;       /* of the first row's token */
  uint32_t reserved;
} firn_step_rows;
/* k, v: f32 [rows][kv_heads][dim] in device memory. layer counts through the groups in their order. */
FIRN_C_API firn_code firn_append(firn_manager* manager, uint32_t layer, const firn_step_rows* rows, size_t rows_count,
                                 firn_address k, firn_address v, firn_fence* fence);
typedef struct firn_attend_params {
  uint32_t struct_size, struct_version;
  uint32_t query_heads; /* required */
  float scale;          /* required; applied to q . k */
  float soft_cap;       /* 0: none */
  uint32_t mass_blocks; /* columns of mass: at least the blocks of the longest sequence */
  /* Attention mass, what each block was worth to each row; 0: not asked, at no cost. f32 [rows][mass_blocks]: softmax
   * probability that the row's query heads gave to the block's tokens, summed over the heads. */
  firn_address mass;
  firn_address mass_scratch; /* firn_attend_mass_bytes() of them, with mass */
} firn_attend_params;
FIRN_C_API firn_code firn_attend_default_params(firn_attend_params* params, size_t params_size);
FIRN_C_API uint64_t firn_attend_mass_bytes(uint32_t query_heads, uint32_t rows, uint32_t mass_blocks);
/* q: f32 [rows][query_heads][head_dim]; out: f32 [rows][query_heads][value_dim]; fence may be NULL. FIRN_CORRUPT:
 * firn_usable_tokens says what is left; rewind to it and compute again. */
FIRN_C_API firn_code firn_attend(firn_manager* manager, uint32_t layer, const firn_step_rows* rows, size_t rows_count,
                                 const firn_attend_params* params, firn_address q, firn_address out, firn_fence* fence);
FIRN_C_API firn_code firn_commit(firn_manager* manager, firn_seq seq, const firn_token* tokens, size_t token_count);
/* FIRN_UNAVAILABLE: there is no room for the copy of the tail that both share, and the parent's room is kept. */
FIRN_C_API firn_code firn_fork(firn_manager* manager, firn_seq seq, firn_seq* child);
/* FIRN_UNAVAILABLE: what slid out of a window is gone, or what is kept for sequences (reserve) would not be there any
 * more; nothing has changed. */
FIRN_C_API firn_code firn_rewind(firn_manager* manager, firn_seq seq, uint32_t token_count);
/* Slots are used again only after the fence; NULL: at once. */
FIRN_C_API firn_code firn_free(firn_manager* manager, firn_seq seq, const firn_fence* fence);

/* Gives up every block of a sequence that stays in being with its tokens; slots are used again after the fence. Until
 * firn_resume it takes no call but firn_free and firn_token_count. */
FIRN_C_API firn_code firn_preempt(firn_manager* manager, firn_seq seq, const firn_fence* fence);
/* Takes back what can still be found: match->tokens (match may be NULL); the engine computes the others again. */
FIRN_C_API firn_code firn_resume(firn_manager* manager, firn_seq seq, firn_match* match);

/* The keys and values of committed tokens [first, first + count) of one layer, bit by bit as attention sees them, out
 * of slots or frames: k: [count][kv_heads][head_dim], v: [count][kv_heads][value_dim] in the group's dtype, in host
 * memory of just these sizes. FIRN_UNAVAILABLE: some have slid out of the layer's window, or the host does not reach
 * this device's memory. What was written before a failure stays written. */
FIRN_C_API firn_code firn_gather(firn_manager* manager, firn_seq seq, uint32_t layer, uint32_t first, uint32_t count,
                                 void* k, size_t k_bytes, void* v, size_t v_bytes);

/* The calls below refuse a sequence that does not exist. */
FIRN_C_API firn_code firn_token_count(const firn_manager* manager, firn_seq seq, uint32_t* token_count);
FIRN_C_API firn_code firn_usable_tokens(const firn_manager* manager, firn_seq seq, uint32_t* token_count);
/* These three write at most `capacity` entries and set *count to how many there are; if that is more, the code is
 * FIRN_INVALID_ARGUMENT and nothing is written. (NULL, 0) asks for the count alone and succeeds. */
FIRN_C_API firn_code firn_block_table(const firn_manager* manager, firn_seq seq, uint32_t page_set, uint32_t* slots,
                                      size_t capacity, size_t* count);
FIRN_C_API firn_code firn_block_keys(const firn_manager* manager, firn_seq seq, firn_key* keys, size_t capacity,
                                     size_t* count);
enum {
  FIRN_BLOCK_FILLING = 0,
  FIRN_BLOCK_RESIDENT = 1,
  FIRN_BLOCK_STORED = 2,
  FIRN_BLOCK_LOADING = 3,
  FIRN_BLOCK_LOST = 4
};
FIRN_C_API firn_code firn_block_states(const firn_manager* manager, firn_seq seq, uint8_t* states, size_t capacity,
                                       size_t* count);
FIRN_C_API firn_code firn_compute_keys(const firn_manager* manager, const firn_token* tokens, size_t token_count,
                                       const void* name_space, size_t name_space_bytes, firn_key* keys, size_t capacity,
                                       size_t* count);

/* --- moving --- */

FIRN_C_API firn_code firn_prefetch(firn_manager* manager, firn_seq seq, firn_ticket* ticket);
FIRN_C_API firn_code firn_done(const firn_manager* manager, firn_ticket ticket, int32_t* done);
FIRN_C_API firn_code firn_cancel(firn_manager* manager, firn_ticket ticket); /* idempotent */
/* Does up to max_jobs waiting moves in this thread; *done (may be NULL) says how many. */
FIRN_C_API firn_code firn_pump(firn_manager* manager, size_t max_jobs, size_t* done);
FIRN_C_API firn_code firn_wait(firn_manager* manager, firn_ticket ticket, int64_t timeout_ns);
FIRN_C_API firn_code firn_wait_idle(firn_manager* manager, int64_t timeout_ns);
FIRN_C_API firn_code firn_wait_room(firn_manager* manager, firn_seq seq, uint32_t new_tokens, int64_t timeout_ns);
FIRN_C_API firn_code firn_wait_fence(firn_manager* manager, const firn_fence* fence, int64_t timeout_ns);
FIRN_C_API firn_code firn_fence_passed(firn_manager* manager, const firn_fence* fence, int32_t* passed);
/* Gives up every slot that no live sequence needs and overwrites what is free. For tests. */
FIRN_C_API firn_code firn_empty_pool(firn_manager* manager, uint8_t poison, uint32_t* emptied);
typedef struct firn_slot_move { /* frozen. A block that had to leave its slot */
  uint32_t from, to, page_set;
} firn_slot_move;
typedef struct firn_resize { /* a result */
  uint32_t struct_size, struct_version;
  uint64_t budget_bytes; /* what the pool may use from now on */
  uint32_t slots, evicted;
} firn_resize;
/* The pool grows or shrinks to this budget, all of it or nothing; between steps only. resize may be NULL, and so may
 * moves with move_count. */
FIRN_C_API firn_code firn_resize_pool(firn_manager* manager, uint64_t budget_bytes, firn_resize* resize,
                                      firn_slot_move** moves, size_t* move_count);
FIRN_C_API void firn_slot_move_free(firn_slot_move* moves);
FIRN_C_API firn_code firn_reset(firn_manager* manager); /* forgets everything; FIRN_UNAVAILABLE while sequences live */

/* --- keeping --- */

typedef struct firn_retention_range { /* frozen. Blocks that begin within [first, end) of a sequence */
  uint32_t first, end;
  uint32_t priority, reserved; /* 0 to 100; 35 is everybody's */
  int64_t duration_ns;         /* after this 35 again; 0: for as long as the block is here */
} firn_retention_range;
FIRN_C_API firn_code firn_set_retention(firn_manager* manager, firn_seq seq, const firn_retention_range* ranges,
                                        size_t range_count);
typedef struct firn_pin_report { /* a result */
  uint32_t struct_size, struct_version;
  uint32_t pinned, absent;
  uint64_t pinned_bytes, budget_bytes;
} firn_pin_report;
/* These, a lease and a family are refused with FIRN_UNAVAILABLE where they would hold what is kept for sequences
 * (reserve), with FIRN_NO_SPACE beyond retention.pin_budget or metadata.budget; nothing has changed then. */
FIRN_C_API firn_code firn_pin(firn_manager* manager, const firn_key* keys, size_t key_count, int64_t ttl_ns,
                              firn_pin_report* report);
FIRN_C_API firn_code firn_unpin(firn_manager* manager, const firn_key* keys, size_t key_count, uint32_t* unpinned);
FIRN_C_API firn_code firn_acquire_lease(firn_manager* manager, const char* owner, const firn_key* keys,
                                        size_t key_count, int64_t ttl_ns, firn_lease* lease);
FIRN_C_API firn_code firn_renew_lease(firn_manager* manager, firn_lease lease, int64_t ttl_ns);
FIRN_C_API firn_code firn_release_lease(firn_manager* manager, firn_lease lease, int32_t* released);
FIRN_C_API firn_code firn_leases_json(const firn_manager* manager, char** json);
FIRN_C_API firn_code firn_set_family(firn_manager* manager, const firn_key* keys, size_t key_count);

/* --- namespaces --- */

typedef struct firn_quota { /* frozen. Bytes; 0: none */
  uint64_t device_floor, device_ceiling, host_floor, host_ceiling;
} firn_quota;
typedef struct firn_usage { /* a result */
  uint32_t struct_size, struct_version;
  firn_quota quota;
  uint64_t device_bytes, host_bytes;
  uint32_t sequences, blocks;
} firn_usage;
/* FIRN_UNAVAILABLE: with these bounds what is kept for sequences (reserve) could not be had; nothing has changed. */
FIRN_C_API firn_code firn_set_quota(firn_manager* manager, const void* name_space, size_t name_space_bytes,
                                    const firn_quota* quota);
FIRN_C_API firn_code firn_get_usage(const firn_manager* manager, const void* name_space, size_t name_space_bytes,
                                    firn_usage* usage);
FIRN_C_API firn_code firn_namespace_tag(const firn_manager* manager, const void* name_space, size_t name_space_bytes,
                                        uint64_t* tag);

/* --- knowing --- */

enum { FIRN_EVENT_STORED = 0, FIRN_EVENT_MOVED = 1, FIRN_EVENT_REMOVED = 2, FIRN_EVENT_CLEARED = 3 };
enum { FIRN_ON_DEVICE = 1, FIRN_ON_HOST = 2 }; /* tiers, added */

typedef struct firn_key_place { /* frozen. A key and where it is */
  firn_key key, parent;
  uint32_t page_set, tiers, position, tokens;
  uint64_t name_space; /* firn_namespace_tag */
} firn_key_place;
typedef struct firn_event { /* frozen */
  uint64_t sequence;
  uint32_t kind, tiers_before;
  firn_key_place block;
} firn_event;
/* Events after number `since` (0: from the first), at most max. all: of every namespace; else of the one named, by
 * numbers of its own. *next: what to ask for next time. *gap: some are lost, take a snapshot. */
FIRN_C_API firn_code firn_take_events(const firn_manager* manager, uint64_t since, size_t max, int32_t all,
                                      const void* name_space, size_t name_space_bytes, firn_event** events,
                                      size_t* event_count, uint64_t* next, int32_t* gap);
FIRN_C_API void firn_event_free(firn_event* events);
/* Everything that can be found now, parents first; true after event number *sequence. */
FIRN_C_API firn_code firn_event_snapshot(const firn_manager* manager, int32_t all, const void* name_space,
                                         size_t name_space_bytes, firn_key_place** places, size_t* place_count,
                                         uint64_t* sequence);
FIRN_C_API void firn_key_place_free(firn_key_place* places);

/* For each block of the prompt a hit or the reason: {"text", "first_miss", "blocks": [{"key", "reason", ...}]}. */
FIRN_C_API firn_code firn_explain_json(const firn_manager* manager, const firn_token* tokens, size_t token_count,
                                       const firn_begin_params* params, char** json);
FIRN_C_API firn_code firn_stats_json(const firn_manager* manager, char** json);
/* One figure of firn_stats_json by its name: "slots_free", "misses.never_stored". */
FIRN_C_API firn_code firn_stat(const firn_manager* manager, const char* name, double* value);
FIRN_C_API firn_code firn_ledger_json(const firn_manager* manager, char** json); /* budgets: limit, spent, peak */
FIRN_C_API firn_code firn_layout_json(const firn_manager* manager, char** json); /* page sets and their groups */
FIRN_C_API firn_code firn_effective_config_json(const firn_manager* manager, char** json);
FIRN_C_API firn_code firn_dump_json(const firn_manager* manager, char** json); /* who holds what */
/* XXH3-64 of a resident block's raw bytes. */
FIRN_C_API firn_code firn_hash_slot(const firn_manager* manager, uint32_t slot, uint64_t* hash);
typedef struct firn_slot_info { /* a result */
  uint32_t struct_size, struct_version;
  firn_key key;        /* of the block in it; zero: empty, or not full yet */
  uint32_t references; /* entries of live sequences' tables */
  uint32_t page_set;
  uint32_t empty; /* 1: no block is in it */
} firn_slot_info;
FIRN_C_API firn_code firn_get_slot_info(const firn_manager* manager, uint32_t slot, firn_slot_info* info);
typedef struct firn_block_view { /* frozen. Row of token t and head h: k + t * token_stride + h * head_stride, likewise
                                    v */
  firn_address k, v;
  uint32_t token_stride, head_stride, v_token_stride, v_head_stride; /* bytes */
} firn_block_view;
/* Where one layer of what is in a slot lies on the device, until the pool is resized. FIRN_INVALID_ARGUMENT: there is
 * no such slot or layer, or the block in it is of a page set that the layer is not in; FIRN_UNAVAILABLE: device none.
 */
FIRN_C_API firn_code firn_slot_view(const firn_manager* manager, uint32_t slot, uint32_t layer, firn_block_view* view);
/* The slots firn_allocate would take, the next one first: empty ones, then evictable ones. */
FIRN_C_API firn_code firn_reuse_order(const firn_manager* manager, uint32_t* slots, size_t capacity, size_t* count);
/* Every invariant, checked from scratch: *violations is how many are broken, *json (may be NULL) their sentences. */
FIRN_C_API firn_code firn_verify(const firn_manager* manager, size_t* violations, char** json);

#ifdef __cplusplus
}
#endif

#include <firn/cold.h> /* the cold side alone, for engines that own their KV memory */

#endif
