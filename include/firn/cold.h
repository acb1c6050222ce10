/* cold.h: ColdCache (cold_cache.h) for every language that can call C: an engine that owns its KV memory stores blocks
 * and states by name and loads them back. Part of firn.h, whose rules for failures, structs and threads hold here.
 *
 *   firn_cold_store(cache, &run, &ticket)      K/V of consecutive blocks into frames
 *   firn_cold_lookup(cache, keys, ...)         what is here, and why the rest is not
 *   firn_cold_load(cache, &run, &ticket)       back into your memory
 *   firn_cold_wait(cache, ticket, ...)         how it ended, name by name
 *
 * What you pass by pointer (keys, views, bytes and the memory they point at) must stay until its ticket has been
 * collected. Any number of threads may call, except firn_cold_destroy, which comes alone and last.
 */
#ifndef FIRN_COLD_H
#define FIRN_COLD_H

#include <firn/firn.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct firn_cold firn_cold;

enum { FIRN_COLD_BLOCK = 0, FIRN_COLD_STATE = 1 };         /* a name may have one of each */
enum { FIRN_COLD_INDEPENDENT = 0, FIRN_COLD_CHAINED = 1 }; /* chained: keys of firn_key_chain */
enum { FIRN_COLD_MISS = 0, FIRN_COLD_HIT = 1, FIRN_COLD_PENDING = 2 };
enum { FIRN_TIER_DEVICE = 0, FIRN_TIER_HOST = 1, FIRN_TIER_DISK = 2, FIRN_TIER_REMOTE = 3 };

typedef struct firn_cold_params {
  uint32_t struct_size, struct_version;
  uint64_t budget_bytes; /* of host memory, everything. Hard */
  const char* codec;     /* NULL: lossless. raw | lossless, or lossy: q8 | q4 | q8/q4 | kvtc@RATE */
  const char* artefact;  /* kvtc: the file; NULL: none */
  const char* eviction;  /* NULL: lru */
  uint32_t threads;      /* that codecs share; 1: none beside the cache's own; 0: one a processor */
  uint32_t names;        /* FIRN_COLD_INDEPENDENT */
  uint32_t workers;      /* 1; 0: firn_cold_pump and firn_cold_wait do the work */
  uint32_t allow_unmeasured, admit_second_use;
  uint32_t max_blocks;    /* names at once; 0: from the budget */
  uint32_t queue_blocks;  /* 8192 names in tickets that nobody has collected */
  uint32_t queue_tickets; /* 256 */
} firn_cold_params;
FIRN_C_API firn_code firn_cold_default_params(firn_cold_params* params, size_t params_size);
FIRN_C_API firn_code firn_cold_create(const firn_model_params* model, const firn_cold_params* params,
                                      firn_cold** cache);
FIRN_C_API void firn_cold_destroy(firn_cold* cache); /* cancels what is queued, waits for what runs */

/* An engine's own name, 1 to 256 bytes, under a namespace of up to 256, as a key of this model. */
FIRN_C_API firn_code firn_cold_key(const firn_cold* cache, const void* name, size_t name_bytes, const void* name_space,
                                   size_t name_space_bytes, firn_key* key);

/* Consecutive blocks of one group. Fill by firn_cold_run_default_params. */
typedef struct firn_cold_run {
  uint32_t struct_size, struct_version;
  uint32_t group;
  uint32_t fidelity; /* store: of the content, FIRN_FIDELITY_EXACT */
  uint32_t least;    /* load: what is less exact is a miss, FIRN_FIDELITY_DERIVED: nothing is */
  uint32_t exact;    /* store: 1: by an exact codec, whatever codec the cache has */
  uint32_t priority; /* 0 to 254, higher first */
  uint32_t reserved;
  uint64_t first_position; /* tokens, a multiple of 16 */
  const firn_key* keys;
  size_t key_count;
  const firn_block_view* views; /* [layer][block], all layers of the group */
  size_t view_count;
  const uint8_t* bound; /* NULL, or one a block: nonzero: served only together with the state of its name */
  int64_t deadline_ns;  /* from now; 0: none */
} firn_cold_run;
FIRN_C_API firn_code firn_cold_run_default_params(firn_cold_run* run, size_t run_size);

typedef struct firn_cold_found { /* frozen */
  uint32_t answer;               /* FIRN_COLD_HIT */
  uint32_t miss;                 /* of a miss: firn_cold_miss_name */
  uint32_t tier, fidelity;       /* of a hit */
  uint64_t bytes;                /* of a state: how many firn_cold_load_state writes */
} firn_cold_found;
/* found: one a key. least as in a run. pending: NULL: ask again; else *pending becomes a ticket, to be collected, which
 * ends when all that is pending is decided, or 0: nothing is. Pending: a store under way brings the name. */
FIRN_C_API firn_code firn_cold_lookup(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind,
                                      uint32_t least, firn_cold_found* found, firn_ticket* pending);
FIRN_C_API const char* firn_cold_miss_name(uint32_t miss); /* "evicted:host"; "unknown" */

/* FIRN_UNAVAILABLE: the queue is full, collect first. Nothing was taken then. */
FIRN_C_API firn_code firn_cold_store(firn_cold* cache, const firn_cold_run* run, firn_ticket* ticket);
FIRN_C_API firn_code firn_cold_load(firn_cold* cache, const firn_cold_run* run, firn_ticket* ticket);

typedef struct firn_cold_state { /* frozen */
  firn_key key;
  void* bytes;    /* store reads them, load writes there */
  size_t size;    /* store: of the state; load: room */
  uint32_t bound; /* store: 1: to the block of this name, neither is served without the other */
  uint32_t reserved;
} firn_cold_state;
FIRN_C_API firn_code firn_cold_store_state(firn_cold* cache, const firn_cold_state* states, size_t state_count,
                                           int64_t deadline_ns, firn_ticket* ticket);
FIRN_C_API firn_code firn_cold_load_state(firn_cold* cache, const firn_cold_state* states, size_t state_count,
                                          int64_t deadline_ns, firn_ticket* ticket);
FIRN_C_API firn_code firn_cold_prefetch(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind,
                                        int64_t deadline_ns, firn_ticket* ticket);

/* Pinned names are neither evicted nor erased. *done (may be NULL): for how many it was so. */
FIRN_C_API firn_code firn_cold_pin(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind,
                                   uint32_t* done);
FIRN_C_API firn_code firn_cold_unpin(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind,
                                     uint32_t* done);
FIRN_C_API firn_code firn_cold_touch(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind,
                                     uint32_t* done);
FIRN_C_API firn_code firn_cold_erase(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind,
                                     uint32_t* done);

typedef struct firn_cold_result { /* frozen. How one name of a ticket ended */
  uint32_t found;                 /* store: it can be found now; load: its bytes are in your memory */
  uint32_t already;               /* store: it was there before */
  uint32_t miss;                  /* why not found, where that is nobody's failure */
  uint32_t tier, fidelity;
  firn_code code;    /* not FIRN_OK: what went wrong... */
  uint64_t bytes;    /* load_state: written */
  char message[160]; /* ...in a sentence, perhaps cut short */
} firn_cold_result;
/* Collects a ticket: FIRN_OK once it has ended, however its names did; FIRN_UNAVAILABLE: timeout, nothing is lost.
 * results: NULL, or room for as many as there are names. *found (may be NULL): how many names were. */
FIRN_C_API firn_code firn_cold_wait(firn_cold* cache, firn_ticket ticket, int64_t timeout_ns, firn_cold_result* results,
                                    size_t capacity, size_t* found);
/* Collects the oldest ticket that has ended and is awaited by nobody: *ticket 0: none. Results beyond capacity are
 * dropped. *count: names of it. */
FIRN_C_API firn_code firn_cold_poll(firn_cold* cache, firn_ticket* ticket, firn_cold_result* results, size_t capacity,
                                    size_t* count, size_t* found);
FIRN_C_API firn_code firn_cold_cancel(firn_cold* cache, firn_ticket ticket); /* the ticket still has to be collected */
/* Readable while ended tickets wait to be collected. The cache's: do not read or close it. -1: cache is NULL. */
FIRN_C_API int firn_cold_event_fd(const firn_cold* cache);
/* One step of what is queued. *worked (may be NULL) 0: nothing could be done. */
FIRN_C_API firn_code firn_cold_pump(firn_cold* cache, int32_t* worked);
FIRN_C_API firn_code firn_cold_stats_json(const firn_cold* cache, char** json);
FIRN_C_API firn_code
firn_cold_verify(const firn_cold* cache); /* FIRN_CORRUPT: a fault of firn; the sentence says where */

#ifdef __cplusplus
}
#endif

#endif
