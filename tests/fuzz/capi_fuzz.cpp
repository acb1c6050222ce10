// capi_fuzz.cpp: random calls of the C interface with random arguments, right and wrong: handles that are NULL,
// sequences, tickets and leases that have ended, absurd counts, sizes of structs that end anywhere, fences of nobody,
// clocks that jump. Nothing may crash, a refused call leaves its outputs alone, and the managers stay sound. Memory
// that a caller hands over is of exactly the size it says, so that a sanitizer sees one byte too many.
//   capi_fuzz SECONDS SEED     FIRN_FUZZ_SECONDS is stronger than SECONDS
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "firn/cold.h"
#include "firn/firn.h"

namespace {

std::mt19937_64 random_bits;
std::uint64_t seed = 0, calls = 0, refused = 0;
const char* current = "";

void say_where() {
  std::fprintf(stderr, "capi_fuzz: seed %llu, call %llu, %s\n", static_cast<unsigned long long>(seed),
               static_cast<unsigned long long>(calls), current);
}
void on_abort(int signal) {
  say_where();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}
[[noreturn]] void fail(const std::string& why) {
  say_where();
  std::fprintf(stderr, "capi_fuzz: %s\n", why.c_str());
  std::abort();
}

std::uint64_t pick(std::uint64_t below) { return below == 0 ? 0 : random_bits() % below; }
bool once_in(std::uint64_t n) { return pick(n) == 0; }
template <class T>
T wild() {  // any number, likely an edge
  const std::uint64_t edges[] = {0,          1,          2,          15,         16,    17,         0x7fffffff,
                                 0x80000000, 0xffffffff, 1ull << 32, 1ull << 63, ~0ull, ~0ull >> 1, random_bits(),
                                 pick(100),  pick(5000)};
  return static_cast<T>(edges[pick(std::size(edges))]);
}
std::uint32_t small_or_wild(std::uint32_t below) {
  return once_in(20) ? wild<std::uint32_t>() : static_cast<std::uint32_t>(pick(below));
}

// Bytes of exactly so many.
struct Exact {
  explicit Exact(std::size_t bytes, int fill = -1)
      : size(bytes), at(static_cast<unsigned char*>(std::malloc(bytes == 0 ? 1 : bytes))) {
    for (std::size_t i = 0; i < bytes; ++i)
      at[i] = static_cast<unsigned char>(fill < 0 ? random_bits() : static_cast<unsigned>(fill));
  }
  Exact(const Exact&) = delete;
  ~Exact() { std::free(at); }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(at);
  }
  std::size_t size;
  unsigned char* at;
};

// A struct of any size, in memory of that size; its head says so, or something else that is not more.
template <class T>
struct Sized {
  explicit Sized(firn_code (*defaults)(T*, std::size_t) = nullptr) {
    const bool right = !once_in(8);
    const std::size_t bytes = right ? sizeof(T) : 8 + pick(sizeof(T) + 24);
    memory = std::make_unique<Exact>(bytes, 0);
    T value{};
    if (defaults) defaults(&value, sizeof value);
    std::memcpy(memory->at, &value, std::min(bytes, sizeof(T)));
    const std::uint32_t head[2] = {static_cast<std::uint32_t>(bytes),
                                   once_in(200) ? wild<std::uint32_t>() : FIRN_STRUCT_VERSION};
    std::memcpy(memory->at, head, sizeof head);
    if (!right && once_in(4)) memory->at[pick(bytes)] = 0xff;
    std::uint32_t said = 0;
    std::memcpy(&said, memory->at, sizeof said);
    if (said > bytes) std::memcpy(memory->at, head, 4);
    whole = bytes >= sizeof(T);
  }
  T* get() { return once_in(60) ? nullptr : memory->as<T>(); }
  std::unique_ptr<Exact> memory;
  bool whole = false;  // its fields may be set
};

constexpr std::uint32_t kHeads = 2, kDim = 16, kQueryHeads = 4, kRows = 300;

struct One {
  firn_manager* manager = nullptr;
  bool bytes = false;
  std::vector<firn_seq> sequences;  // some have ended
  std::vector<firn_ticket> tickets;
  std::vector<firn_lease> leases;
  std::vector<firn_key> keys;
};

// A cold cache, and what its tickets read and write until they have been collected.
constexpr std::size_t kNameCount = 60, kColdLayers = 2,
                      kLayerBytes = std::size_t{16} * 4 * 2 * 2;  // 16 x 4 f16, K and V
constexpr std::size_t kStateBytes = 300;
struct Transfer {
  firn_ticket ticket = 0;
  bool load = false, state = false, compare = false;
  std::vector<firn_key> keys;
  std::vector<std::size_t> names;  // of keys
  std::vector<unsigned char> bytes;
  std::vector<firn_block_view> views;
  std::vector<firn_cold_state> states;
  std::vector<std::uint8_t> bound;
};
struct Cold {
  firn_cold* cache = nullptr;
  bool exact = false;  // every frame is what was stored
  std::vector<firn_key> keys;
  std::vector<std::unique_ptr<Transfer>> transfers;
};
Cold cold;

std::vector<One> all;
std::vector<firn_fence> fences;  // of all managers, so that some are another one's
std::int64_t now = 0;

// Threads of a mover ask it too, so it has a generator of its own.
std::int64_t jumping_clock(void*) {
  static std::mutex one_at_a_time;
  static std::mt19937_64 bits(7);
  const std::lock_guard lock(one_at_a_time);
  const auto step = static_cast<std::int64_t>(bits() % 1000000);
  constexpr std::int64_t kEnd = std::numeric_limits<std::int64_t>::max();
  return now = bits() % 400 == 0 ? static_cast<std::int64_t>(bits()) : now > kEnd - step ? kEnd : now + step;
}

firn_seq a_sequence(const One& one) {
  return one.sequences.empty() || once_in(25) ? wild<firn_seq>() : one.sequences[pick(one.sequences.size())];
}
firn_fence* a_fence(firn_fence& out) {
  if (once_in(3)) return nullptr;
  if (!fences.empty() && !once_in(4))
    out = fences[pick(fences.size())];
  else
    out = {once_in(10) ? wild<std::uint32_t>() : static_cast<std::uint32_t>(pick(4)), 0, wild<std::uint64_t>(),
           wild<std::uint64_t>()};
  return &out;
}
std::int64_t a_timeout() { return once_in(10) ? ~wild<std::int64_t>() : static_cast<std::int64_t>(pick(300000)); }
std::int64_t a_ttl() { return once_in(6) ? wild<std::int64_t>() : static_cast<std::int64_t>(pick(5000000)); }

// Prompts that share beginnings.
std::vector<firn_token> a_prompt() {
  std::vector<firn_token> tokens(once_in(30) ? 0 : 1 + pick(once_in(5) ? 400 : 90));
  const firn_token base = static_cast<firn_token>(pick(4)) * 1000;
  const std::size_t turn = pick(120);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = once_in(5000) ? wild<firn_token>() : base + static_cast<firn_token>(i < turn ? i : 500 + i + turn);
  return tokens;
}

firn_code code(firn_code got) {
  ++calls;
  if (got < FIRN_OK || got > FIRN_IO) fail("the code is " + std::to_string(got) + ": " + firn_last_error());
  refused += got != FIRN_OK;
  return got;
}
// Outputs of a refused call are as they were.
template <class T>
struct Untouched {
  T value;
  T before;
  Untouched() {
    for (std::size_t i = 0; i < sizeof(T); ++i)
      reinterpret_cast<unsigned char*>(&before)[i] = static_cast<unsigned char>(0x5a + i);
    std::memcpy(&value, &before, sizeof(T));
  }
  T* out() { return &value; }
  void check(firn_code got) const {
    if (got != FIRN_OK && std::memcmp(&value, &before, sizeof(T)) != 0) fail("a refused call has changed an output");
  }
};

const char* const kNames[] = {"", "a", "tenant-7", "\xff\xfe"};

void set_request(firn_begin_params& params, std::vector<firn_media_item>& media) {
  const char* const name = kNames[pick(std::size(kNames))];
  if (once_in(2))
    params.name_space = name,
    params.name_space_bytes = once_in(40) ? wild<std::size_t>() | (1u << 30) : std::strlen(name);
  if (once_in(40)) params.name_space = nullptr;
  if (once_in(20)) params.read_cache = wild<std::uint32_t>();
  if (once_in(4)) params.min_fidelity = small_or_wild(5);
  if (once_in(8))
    params.shared_scope = "s", params.shared_scope_bytes = 1, params.shared_tokens = small_or_wild(200),
    params.share = static_cast<std::uint32_t>(pick(3));
  if (once_in(4)) params.admission = small_or_wild(4), params.expected_tokens = small_or_wild(400);
  if (once_in(10)) params.adapter = "lora", params.adapter_bytes = once_in(10) ? wild<std::size_t>() | 4096 : 4;
  if (params.adapter_bytes > 4 && params.adapter_bytes <= FIRN_MAX_NAME_BYTES) params.adapter_bytes = 3;
  if (once_in(10)) {
    for (std::uint64_t i = pick(4); i > 0; --i)
      media.push_back(
          {small_or_wild(200), small_or_wild(20), once_in(9) ? nullptr : "digest", once_in(20) ? std::size_t{0} : 6});
    params.media = once_in(20) ? nullptr : media.data();
    params.media_count = media.size();
  }
  if (once_in(8)) params.max_reuse_tokens = small_or_wild(200);
  if (once_in(8)) params.drop_last_block = static_cast<std::uint32_t>(pick(3));
}

struct Request {
  Request() : sized(firn_begin_default_params) {
    if (sized.whole) set_request(*sized.memory->as<firn_begin_params>(), media);
  }
  firn_begin_params* get() { return once_in(3) ? nullptr : sized.get(); }
  Sized<firn_begin_params> sized;
  std::vector<firn_media_item> media;
};

// --- making ---

firn_config* a_config(bool& bytes) {
  static const char* const kinds[] = {
      "device: none\npool: {budget: 64KiB}\n",
      "device: none\npool: {slots: 40}\nevents: {capacity: 64}\neviction: sieve\n",
      "device: cpu\nthreads: 1\npool: {budget: 512KiB, max_step_tokens: 64}\nmover: {worker: false}\n",
      "device: cpu\nthreads: 1\npool: {slots: 40, max_step_tokens: 64}\nhost: {budget: 2MiB}\nprotect: {recent: "
      "32}\nmover: {worker: false}\nevents: {capacity: 256}\n",
      "device: cpu\nthreads: 2\npool: {budget: 512KiB, max_step_tokens: 64, max_budget: 2MiB}\nhost: {budget: 2MiB, "
      "codec: raw}\nprotect: {recent: 32}\npartial_reuse: true\n",
      "device: cpu\nthreads: 1\npool: {budget: 768KiB, max_step_tokens: 64}\nhost: {budget: 1MiB, codec: q8, "
      "allow_unmeasured: true}\nprotect: {recent: 32}\n"};
  const std::size_t kind = pick(std::size(kinds));
  bytes = kind >= 2;
  firn_config* config = nullptr;
  std::string yaml = kinds[kind];
  if (once_in(12)) {  // a damaged text is only read: it may ask for more memory than there is
    yaml[pick(yaml.size())] = static_cast<char>(1 + pick(255));
    char* json = nullptr;
    if (code(firn_config_parse(once_in(20) ? nullptr : yaml.c_str(), &config)) == FIRN_OK) {
      code(firn_config_check(config));
      if (code(firn_config_json(config, &json)) == FIRN_OK) firn_string_free(json);
      firn_config_destroy(config);
    }
    yaml = kinds[kind];
    config = nullptr;
  }
  code(firn_config_parse(yaml.c_str(), &config));
  static const char* const keys[] = {"pool.staging",
                                     "protect.sinks",
                                     "protect.recent",
                                     "eviction",
                                     "admission.watermark",
                                     "mover.queue",
                                     "max_sequences",
                                     "max_sequence_tokens",
                                     "pool.zero_on_free",
                                     "retention.pin_budget",
                                     "quotas",
                                     "mode",
                                     "nonsense",
                                     "partial_reuse"};
  static const char* const values[] = {"0",   "1",       "16",   "4096", "true",          "lru",
                                       "arc", "session", "1KiB", "1MiB", "opportunistic", "a device=64KiB..",
                                       "",    "-1",      "\xff"};
  for (std::uint64_t n = pick(3); n > 0 && config; --n)
    code(firn_config_set(config, once_in(30) ? nullptr : keys[pick(std::size(keys))],
                         once_in(30) ? nullptr : values[pick(std::size(values))]));
  return config;
}

void make_manager(One& one) {
  firn_config* config = a_config(one.bytes);
  std::vector<firn_group_params> groups(1 + (once_in(3) ? 1 : 0));
  for (firn_group_params& group : groups) {
    firn_group_default_params(&group, sizeof group);
    group.layer_count = 2;
    group.kv_heads = kHeads, group.head_dim = group.value_dim = kDim, group.query_heads = kQueryHeads;
    group.dtype = 1 + static_cast<std::uint32_t>(pick(3));
    if (once_in(100)) group.layer_count = wild<std::uint32_t>();
    if (once_in(100)) group.kv_heads = wild<std::uint32_t>();
    if (once_in(100)) group.head_dim = wild<std::uint32_t>();
    if (once_in(100)) group.kind = wild<std::uint32_t>();
    if (once_in(100)) group.struct_size = static_cast<std::uint32_t>(pick(sizeof group + 1));
  }
  if (groups.size() == 2)
    groups[1].kind = once_in(4) ? static_cast<std::uint32_t>(pick(6)) : std::uint32_t{FIRN_GROUP_SLIDING_WINDOW},
    groups[1].window = small_or_wild(64);
  // Addresses below go with these shapes.
  for (const firn_group_params& group : groups)
    if (group.kv_heads > kHeads || group.head_dim > kDim || group.query_heads > kQueryHeads || group.layer_count > 4)
      one.bytes = false;
  firn_model_params model;
  firn_model_default_params(&model, sizeof model);
  model.name = once_in(2) ? nullptr : "fuzz";
  model.groups = groups.data(), model.group_count = once_in(100) ? groups.size() + (1ull << 40) : groups.size();
  model.weights[0] = 1;
  if (once_in(20)) model.shard_count = small_or_wild(4), model.shard_rank = small_or_wild(4);
  Sized<firn_create_params> create(firn_create_default_params);
  // A byte that was changed may lie in the clock: who hands over the address of no function gets what that does.
  constexpr std::size_t kClockEnd = offsetof(firn_create_params, clock_ns) + sizeof(firn_create_params::clock_ns);
  if (create.memory->size >= kClockEnd)
    create.memory->as<firn_create_params>()->clock_ns = once_in(2) ? jumping_clock : nullptr;
  Untouched<firn_manager*> made;
  const firn_code got = code(firn_manager_create(config, &model, create.get(), made.out()));
  made.check(got);
  one.manager = got == FIRN_OK ? made.value : nullptr;
  char* json = nullptr;
  if (config && code(firn_config_json(config, &json)) == FIRN_OK) firn_string_free(json);
  firn_config_destroy(config);
  std::uint8_t identity[32];
  code(firn_model_identity(&model, identity));
}

// --- calls; each is one way to use the interface, right more often than wrong ---

void begin(One& one) {
  const std::vector<firn_token> tokens = a_prompt();
  Request request;
  Sized<firn_match> match;
  Untouched<firn_seq> seq;
  const bool absurd = once_in(100);
  const firn_code got = code(firn_begin(one.manager, once_in(100) ? nullptr : tokens.data(),
                                        absurd ? ~std::size_t{0} >> pick(30) : tokens.size(), request.get(), seq.out(),
                                        once_in(3) ? nullptr : match.memory->as<firn_match>()));
  seq.check(got);
  if (got != FIRN_OK) return;
  std::uint32_t has = 0;
  code(firn_token_count(one.manager, seq.value, &has));
  one.sequences.push_back(seq.value);
  if (once_in(5)) return;
  firn_copy_order* orders = nullptr;
  std::size_t count = 0;
  const auto rest = static_cast<std::uint32_t>(tokens.size() - has);
  if (code(firn_allocate(one.manager, seq.value, rest, static_cast<std::uint32_t>(pick(20)), &orders, &count)) !=
      FIRN_OK)
    return;
  firn_copy_order_free(orders);
  code(firn_commit(one.manager, seq.value, tokens.data() + has, rest));
}

void step(One& one) {
  const firn_seq seq = a_sequence(one);
  const std::uint32_t n = small_or_wild(40);
  firn_copy_order* orders = nullptr;
  std::size_t count = 0;
  if (code(firn_allocate(one.manager, seq, n, small_or_wild(20), once_in(100) ? nullptr : &orders, &count)) == FIRN_OK)
    firn_copy_order_free(orders);
  std::vector<firn_token> tokens(std::min<std::uint32_t>(n, 64));
  for (firn_token& token : tokens) token = static_cast<firn_token>(pick(1000));
  code(firn_commit(one.manager, seq, tokens.data(), tokens.size()));
}

void compute(One& one) {
  if (!one.bytes) return;
  static std::vector<float> k(kRows * kHeads * kDim, 0.5f), v(k), q(kRows * kQueryHeads * kDim, 0.25f), out(q.size());
  std::vector<firn_step_rows> rows(once_in(20) ? 0 : 1 + pick(3));
  std::uint32_t next = 0;
  for (firn_step_rows& row : rows) {
    const std::uint32_t count = small_or_wild(20);
    const firn_seq seq = a_sequence(one);
    std::uint32_t has = 0;
    code(firn_token_count(one.manager, seq, &has));
    row = {seq, once_in(30) ? wild<std::uint32_t>() : next, count, once_in(5) ? small_or_wild(300) : has, 0};
    next += count;
  }
  const auto at = [](std::vector<float>& values) {
    return once_in(100) ? 0 : reinterpret_cast<firn_address>(values.data());
  };
  const std::uint32_t layer = small_or_wild(4);
  firn_fence fence{};
  const bool absurd = once_in(200);
  if (code(firn_append(one.manager, layer, rows.data(), absurd ? ~std::size_t{0} / 2 : rows.size(), at(k), at(v),
                       &fence)) == FIRN_OK)
    fences.push_back(fence);
  Sized<firn_attend_params> params(firn_attend_default_params);
  std::vector<float> mass, scratch;
  if (params.whole) {
    auto& p = *params.memory->as<firn_attend_params>();
    p.query_heads = once_in(20) ? wild<std::uint32_t>() : kQueryHeads;
    p.scale = once_in(20) ? std::numeric_limits<float>::quiet_NaN() : 0.25f;
    if (once_in(4)) p.soft_cap = once_in(3) ? -1.0f : 30.0f;
    if (once_in(3)) {
      p.mass_blocks = static_cast<std::uint32_t>(pick(80));
      mass.assign(std::size_t{kRows} * p.mass_blocks + 1, 0);
      scratch.assign(firn_attend_mass_bytes(kQueryHeads, kRows, p.mass_blocks) / 4 + 1, 0);
      p.mass = at(mass), p.mass_scratch = at(scratch);
    }
  }
  if (code(firn_attend(one.manager, layer, rows.data(), rows.size(), params.get(), at(q), at(out), &fence)) == FIRN_OK)
    fences.push_back(fence);
  if (fences.size() > 200) fences.erase(fences.begin(), fences.begin() + 100);
}

void end_sequence(One& one) {
  const firn_seq seq = a_sequence(one);
  firn_fence fence{};
  switch (pick(6)) {
    case 0: {
      Untouched<firn_seq> child;
      const firn_code got = code(firn_fork(one.manager, seq, child.out()));
      child.check(got);
      if (got == FIRN_OK) one.sequences.push_back(child.value);
      break;
    }
    case 1:
      code(firn_rewind(one.manager, seq, small_or_wild(200)));
      break;
    case 2:
      code(firn_preempt(one.manager, seq, a_fence(fence)));
      break;
    case 3: {
      Sized<firn_match> match;
      code(firn_resume(one.manager, seq, match.get()));
      break;
    }
    default:
      code(firn_free(one.manager, seq, a_fence(fence)));
      if (one.sequences.size() > 40) {  // ids that have ended are asked about for a while
        for (std::size_t i = 0; i < 20; ++i) code(firn_free(one.manager, one.sequences[i], nullptr));
        one.sequences.erase(one.sequences.begin(), one.sequences.begin() + 20);
      }
  }
}

void look(One& one) {
  const firn_seq seq = a_sequence(one);
  const std::size_t room = pick(40);
  Exact space(room * 32);
  std::size_t count = 0;
  std::uint32_t number = 0;
  switch (pick(9)) {
    case 0:
      code(firn_block_table(one.manager, seq, small_or_wild(4), once_in(10) ? nullptr : space.as<std::uint32_t>(), room,
                            &count));
      break;
    case 1:
      if (code(firn_block_keys(one.manager, seq, space.as<firn_key>(), room, &count)) == FIRN_OK)
        for (std::size_t i = 0; i < count; ++i) one.keys.push_back(space.as<firn_key>()[i]);
      if (one.keys.size() > 200) one.keys.erase(one.keys.begin(), one.keys.begin() + 100);
      break;
    case 2:
      code(firn_block_states(one.manager, seq, space.as<std::uint8_t>(), room, &count));
      break;
    case 3:
      code(firn_usable_tokens(one.manager, seq, &number));
      break;
    case 4: {
      const std::vector<firn_token> tokens = a_prompt();
      code(firn_compute_keys(one.manager, tokens.data(), tokens.size(), once_in(2) ? nullptr : "a", once_in(2) ? 0 : 1,
                             space.as<firn_key>(), room, &count));
      break;
    }
    case 5: {
      std::uint32_t tokens = small_or_wild(60);
      if (tokens > 4096) tokens = 1;
      Exact k(std::size_t{tokens} * kHeads * kDim * (2 + 2 * pick(2))), v(k.size);
      code(firn_gather(one.manager, seq, small_or_wild(4), small_or_wild(60),
                       once_in(20) ? wild<std::uint32_t>() : tokens, k.at, k.size, v.at, once_in(20) ? 0 : v.size));
      break;
    }
    case 6: {
      firn_block_view view;
      code(firn_slot_view(one.manager, small_or_wild(50), small_or_wild(4), once_in(50) ? nullptr : &view));
      break;
    }
    case 7: {
      Sized<firn_slot_info> info;
      code(firn_get_slot_info(one.manager, small_or_wild(50), info.get()));
      break;
    }
    default: {
      std::uint64_t hash = 0;
      code(firn_hash_slot(one.manager, small_or_wild(50), &hash));
    }
  }
}

void ask(One& one) {
  const std::vector<firn_token> tokens = a_prompt();
  Request request;
  char* json = nullptr;
  switch (pick(9)) {
    case 0: {
      Sized<firn_match> match;
      code(firn_match_prefix(one.manager, tokens.data(), tokens.size(), request.get(), match.get()));
      break;
    }
    case 1:
      code(firn_explain_json(one.manager, tokens.data(), tokens.size(), request.get(), &json));
      break;
    case 2: {
      std::vector<firn_step_request> requests(pick(5));
      for (firn_step_request& one_request : requests) one_request = {a_sequence(one), small_or_wild(100), 0};
      Sized<firn_step_plan> plan;
      code(firn_plan_step(one.manager, requests.data(), requests.size(), plan.get()));
      break;
    }
    case 3:
      code(firn_stats_json(one.manager, &json));
      break;
    case 4:
      code(firn_dump_json(one.manager, once_in(50) ? nullptr : &json));
      break;
    case 5:
      code(once_in(2) ? firn_ledger_json(one.manager, &json) : firn_layout_json(one.manager, &json));
      break;
    case 6:
      code(once_in(2) ? firn_effective_config_json(one.manager, &json) : firn_leases_json(one.manager, &json));
      break;
    case 7: {
      double value = 0;
      code(firn_stat(one.manager, once_in(2) ? "slots_free" : "what", &value));
      break;
    }
    default: {
      std::uint8_t extra[64];
      std::size_t count = 0;
      code(firn_block_extra(request.get(), small_or_wild(300), extra, pick(64), &count));
    }
  }
  firn_string_free(json);
}

void move(One& one) {
  std::size_t done = 0;
  firn_fence fence{};
  std::int32_t flag = 0;
  const firn_ticket ticket =
      one.tickets.empty() || once_in(5) ? wild<firn_ticket>() : one.tickets[pick(one.tickets.size())];
  switch (pick(11)) {
    case 0: {
      Untouched<firn_ticket> made;
      const firn_code got = code(firn_prefetch(one.manager, a_sequence(one), made.out()));
      made.check(got);
      if (got == FIRN_OK) one.tickets.push_back(made.value);
      break;
    }
    case 1:
      code(firn_done(one.manager, ticket, &flag));
      break;
    case 2:
      code(firn_cancel(one.manager, ticket));
      break;
    case 3:
      code(firn_wait(one.manager, ticket, a_timeout()));
      break;
    case 4:
      code(firn_wait_idle(one.manager, a_timeout()));
      break;
    case 5:
      code(firn_wait_room(one.manager, a_sequence(one), small_or_wild(200), a_timeout()));
      break;
    case 6:
      code(firn_wait_fence(one.manager, a_fence(fence), a_timeout()));
      break;
    case 7: {
      Untouched<std::int32_t> passed;
      passed.check(code(firn_fence_passed(one.manager, a_fence(fence), passed.out())));
      break;
    }
    case 8: {
      std::uint32_t emptied = 0;
      code(firn_empty_pool(one.manager, static_cast<std::uint8_t>(pick(256)), once_in(2) ? nullptr : &emptied));
      break;
    }
    case 9: {
      Sized<firn_resize> resize;
      firn_slot_move* moves = nullptr;
      std::size_t count = 0;
      const std::uint64_t budget = once_in(4) ? wild<std::uint32_t>() % (8u << 20) : (256u + pick(1800)) << 10;
      if (code(firn_resize_pool(one.manager, once_in(50) ? wild<std::uint64_t>() : budget, resize.get(),
                                once_in(9) ? nullptr : &moves, &count)) == FIRN_OK)
        firn_slot_move_free(moves);
      break;
    }
    default:
      code(firn_pump(one.manager, once_in(9) ? wild<std::size_t>() : pick(8), once_in(5) ? nullptr : &done));
  }
}

void keep(One& one) {
  std::vector<firn_key> keys(pick(6));
  for (firn_key& key : keys)
    if (one.keys.empty() || once_in(8))
      key.bytes[pick(32)] = static_cast<std::uint8_t>(random_bits());
    else
      key = one.keys[pick(one.keys.size())];
  const std::size_t count = once_in(60) ? ~std::size_t{0} >> pick(20) : keys.size();
  const firn_lease lease = one.leases.empty() || once_in(5) ? wild<firn_lease>() : one.leases[pick(one.leases.size())];
  std::uint32_t number = 0;
  std::int32_t flag = 0;
  switch (pick(8)) {
    case 0: {
      std::vector<firn_retention_range> ranges(pick(4));
      for (firn_retention_range& range : ranges)
        range = {small_or_wild(100), small_or_wild(200), small_or_wild(102), 0, a_ttl()};
      code(firn_set_retention(one.manager, a_sequence(one), ranges.data(),
                              once_in(60) ? ~std::size_t{0} / 3 : ranges.size()));
      break;
    }
    case 1: {
      Sized<firn_pin_report> report;
      code(firn_pin(one.manager, keys.data(), count, a_ttl(), once_in(3) ? nullptr : report.get()));
      break;
    }
    case 2:
      code(firn_unpin(one.manager, keys.data(), count, once_in(3) ? nullptr : &number));
      break;
    case 3: {
      Untouched<firn_lease> made;
      const firn_code got =
          code(firn_acquire_lease(one.manager, once_in(30) ? nullptr : kNames[pick(std::size(kNames))], keys.data(),
                                  count, a_ttl(), made.out()));
      made.check(got);
      if (got == FIRN_OK) one.leases.push_back(made.value);
      break;
    }
    case 4:
      code(firn_renew_lease(one.manager, lease, a_ttl()));
      break;
    case 5:
      code(firn_release_lease(one.manager, lease, once_in(3) ? nullptr : &flag));
      break;
    case 6:
      code(firn_set_family(one.manager, keys.data(), count));
      break;
    default: {
      const firn_quota quota{
          once_in(3) ? 0 : wild<std::uint64_t>() % (1u << 20), once_in(3) ? 0 : wild<std::uint64_t>(),
          once_in(2) ? 0 : wild<std::uint64_t>() % (1u << 20), once_in(2) ? 0 : wild<std::uint64_t>()};
      const char* const name = kNames[pick(std::size(kNames))];
      code(firn_set_quota(one.manager, name, once_in(60) ? ~std::size_t{0} : std::strlen(name),
                          once_in(50) ? nullptr : &quota));
      Sized<firn_usage> usage;
      code(firn_get_usage(one.manager, name, std::strlen(name), usage.get()));
      std::uint64_t tag = 0;
      code(firn_namespace_tag(one.manager, name, std::strlen(name), &tag));
    }
  }
}

void events(One& one) {
  std::size_t count = 0;
  std::uint64_t next = 0;
  std::int32_t gap = 0;
  firn_event* got = nullptr;
  if (code(firn_take_events(one.manager, once_in(3) ? wild<std::uint64_t>() : pick(500),
                            once_in(5) ? wild<std::size_t>() : pick(50), static_cast<std::int32_t>(pick(2)),
                            once_in(2) ? nullptr : "a", once_in(2) ? 0 : 1, once_in(50) ? nullptr : &got, &count, &next,
                            &gap)) == FIRN_OK)
    firn_event_free(got);
  firn_key_place* places = nullptr;
  if (code(firn_event_snapshot(one.manager, static_cast<std::int32_t>(pick(2)), nullptr, 0, &places, &count, &next)) ==
      FIRN_OK)
    firn_key_place_free(places);
  std::vector<std::uint32_t> slots(pick(60));
  code(firn_reuse_order(one.manager, slots.empty() ? nullptr : slots.data(), slots.size(), &count));
}

void keys_alone(One&) {
  std::uint8_t digest[32];
  Exact bytes(pick(200));
  code(firn_hash(bytes.at, bytes.size, once_in(30) ? nullptr : digest));
  firn_key_chain* chain = nullptr;
  if (code(firn_key_chain_create(digest, once_in(3) ? nullptr : bytes.at, once_in(30) ? ~std::size_t{0} : bytes.size,
                                 &chain)) != FIRN_OK)
    return;
  const std::vector<firn_token> tokens = a_prompt();
  Exact space(32 * pick(30));
  std::size_t count = 0;
  code(firn_key_chain_keys(chain, tokens.data(), once_in(50) ? wild<std::size_t>() | (1ull << 40) : tokens.size(),
                           space.as<firn_key>(), space.size / 32, &count));
  if (tokens.size() >= FIRN_BLOCK_TOKENS && space.size >= 64)
    code(firn_key_chain_next(chain, once_in(2) ? nullptr : space.as<firn_key>(), tokens.data(), bytes.at,
                             once_in(30) ? wild<std::size_t>() | (1ull << 40) : bytes.size, space.as<firn_key>() + 1));
  code(firn_key_chain_root(chain, digest));
  firn_key_chain_destroy(chain);
  firn_code_name(wild<firn_code>());
  firn_miss_name(wild<std::uint32_t>());
}

// --- the cold side ---

void make_cold() {
  firn_group_params group;
  firn_group_default_params(&group, sizeof group);
  group.layer_count = kColdLayers, group.kv_heads = 1, group.head_dim = group.value_dim = 4, group.query_heads = 1;
  if (once_in(50)) group.kind = wild<std::uint32_t>();
  firn_model_params model;
  firn_model_default_params(&model, sizeof model);
  model.groups = &group, model.group_count = 1;
  Sized<firn_cold_params> params(firn_cold_default_params);
  cold = Cold();
  if (params.whole) {
    static const char* const codecs[] = {nullptr, "raw", "lossless", "q8", "q4", "q8/q4", "zip", "", "kvtc@3"};
    static const char* const evictions[] = {nullptr, "lru", "sieve", "s3fifo", "arc", "fifo", "nonsense"};
    auto& p = *params.memory->as<firn_cold_params>();
    p.budget_bytes = once_in(20) ? wild<std::uint32_t>() % (64u << 20) : (512u + pick(4096)) << 10;
    p.codec = once_in(2) ? nullptr : codecs[pick(std::size(codecs))];
    cold.exact = p.codec == nullptr || p.codec == codecs[1] || p.codec == codecs[2];
    // A byte that was changed may lie in a pointer: who hands over the address of nothing gets what that does.
    p.eviction = once_in(3) ? evictions[pick(std::size(evictions))] : nullptr;
    p.artefact = once_in(40) ? "/nowhere" : nullptr;
    p.threads = once_in(20) ? wild<std::uint32_t>() | 2048 : 1 + static_cast<std::uint32_t>(once_in(4));
    p.names = small_or_wild(2), p.workers = small_or_wild(2), p.admit_second_use = once_in(8);
    // A chained name speaks for those before it, and here they are anything.
    cold.exact = cold.exact && p.names == FIRN_COLD_INDEPENDENT;
    p.allow_unmeasured = once_in(4);
    if (once_in(4)) p.max_blocks = 1 + static_cast<std::uint32_t>(pick(100));
    if (once_in(4)) p.queue_blocks = once_in(5) ? wild<std::uint32_t>() & 0xffff : 40;
    if (once_in(4)) p.queue_tickets = once_in(5) ? wild<std::uint32_t>() & 0xffff : 6;
  }
  Untouched<firn_cold*> made;
  const firn_code got = code(firn_cold_create(once_in(50) ? nullptr : &model, params.get(), made.out()));
  made.check(got);
  if (got != FIRN_OK) return;
  cold.cache = made.value;
  const unsigned char chain[32] = {1};
  for (std::size_t i = 0; i < kNameCount; ++i) {
    firn_key key{};
    const std::string name = "name " + std::to_string(i);
    if (code(firn_cold_key(cold.cache, name.data(), name.size(), "s", i % 2, &key)) != FIRN_OK) {  // only firn's keys
      std::memcpy(key.bytes, chain, sizeof key.bytes);
      key.bytes[1] = static_cast<std::uint8_t>(i);
    }
    cold.keys.push_back(key);
  }
}

unsigned char content(std::size_t name, std::size_t at) {
  return static_cast<unsigned char>((at * 37 + name * 11) % 97);
}

// How a ticket's names ended: what was loaded is what was stored.
void collected(firn_ticket ticket, const std::vector<firn_cold_result>& results) {
  for (std::size_t i = 0; i < cold.transfers.size(); ++i) {
    const Transfer& one = *cold.transfers[i];
    if (one.ticket != ticket) continue;
    for (std::size_t n = 0; one.compare && n < std::min(results.size(), one.names.size()); ++n) {
      if (!results[n].found) continue;
      const std::size_t stride = one.state ? kStateBytes : kColdLayers * kLayerBytes;
      const std::size_t bytes = one.state ? results[n].bytes : stride;
      if (bytes > stride) fail("a state has become longer");
      for (std::size_t at = 0; at < bytes; ++at)
        if (one.bytes[n * stride + at] != content(one.names[n], at)) fail("other bytes come back than were stored");
    }
    cold.transfers.erase(cold.transfers.begin() + static_cast<std::ptrdiff_t>(i));
    return;
  }
}

std::int64_t a_deadline() {
  return once_in(3) ? wild<std::int64_t>() : once_in(2) ? 0 : static_cast<std::int64_t>(pick(1000000));
}

void move_cold(bool load, bool state) {
  auto made = std::make_unique<Transfer>();
  Transfer& one = *made;
  one.load = load, one.state = state;
  const std::size_t count = once_in(30) ? 0 : 1 + pick(6);
  for (std::size_t i = 0, first = pick(kNameCount - 8); i < count; ++i) {
    one.names.push_back(once_in(10) ? pick(kNameCount) : first + i);
    one.keys.push_back(cold.keys[one.names.back()]);
    if (once_in(100)) one.keys.back() = firn_key{};
  }
  const std::size_t stride = state ? kStateBytes : kColdLayers * kLayerBytes;
  one.bytes.assign(count * stride + 1, 0);
  for (std::size_t n = 0; !load && n < count; ++n)
    for (std::size_t at = 0; at < stride; ++at) one.bytes[n * stride + at] = content(one.names[n], at);
  one.compare = load && (state || cold.exact);
  firn_cold* const cache = once_in(60) ? nullptr : cold.cache;
  Untouched<firn_ticket> ticket;
  firn_code got = FIRN_OK;
  if (state) {
    for (std::size_t i = 0; i < count; ++i)
      one.states.push_back({one.keys[i], once_in(100) ? nullptr : one.bytes.data() + i * stride,
                            load && !once_in(10) ? stride : pick(stride + 1), small_or_wild(2), 0});
    const auto* const states = once_in(50) ? nullptr : one.states.data();
    const std::int64_t deadline = a_deadline();
    const std::size_t said = once_in(100) ? ~std::size_t{0} >> pick(20) : count;
    got = code(load ? firn_cold_load_state(cache, states, said, deadline, ticket.out())
                    : firn_cold_store_state(cache, states, said, deadline, ticket.out()));
  } else {
    Sized<firn_cold_run> run(firn_cold_run_default_params);
    for (std::size_t layer = 0; layer < kColdLayers; ++layer)
      for (std::size_t i = 0; i < count; ++i) {
        const auto at = reinterpret_cast<firn_address>(one.bytes.data() + i * stride + layer * kLayerBytes);
        one.views.push_back({once_in(200) ? 0 : at, at + kLayerBytes / 2, 8, 8, 8, 8});
      }
    one.bound.assign(count, static_cast<std::uint8_t>(once_in(6)));
    if (run.whole) {
      auto& r = *run.memory->as<firn_cold_run>();
      r.keys = once_in(60) ? nullptr : one.keys.data();
      r.key_count = once_in(60) ? ~std::size_t{0} >> pick(30) : count;
      r.views = once_in(60) ? nullptr : one.views.data();
      r.view_count = once_in(60) ? wild<std::size_t>() : one.views.size();
      if (r.key_count != count && r.view_count != one.views.size()) r.view_count = one.views.size();
      const bool right = r.key_count == count && r.view_count == count * kColdLayers;
      r.bound = right && once_in(4) ? one.bound.data() : nullptr;
      if (once_in(20)) r.group = wild<std::uint32_t>();
      if (once_in(10)) r.fidelity = small_or_wild(5);
      if (once_in(10)) r.least = small_or_wild(5);
      if (once_in(10)) r.exact = small_or_wild(3);
      if (once_in(10)) r.priority = wild<std::uint32_t>();
      if (once_in(10)) r.first_position = once_in(2) ? wild<std::uint64_t>() : 16 * pick(50);
      r.deadline_ns = a_deadline();
    }
    got = code(load ? firn_cold_load(cache, run.get(), ticket.out()) : firn_cold_store(cache, run.get(), ticket.out()));
  }
  ticket.check(got);
  if (got != FIRN_OK) return;
  one.ticket = ticket.value;
  cold.transfers.push_back(std::move(made));
}

// Keys stay until their ticket has been collected.
void keep_cold(firn_ticket ticket, std::vector<firn_key> keys) {
  cold.transfers.push_back(std::make_unique<Transfer>());
  cold.transfers.back()->ticket = ticket;
  cold.transfers.back()->keys = std::move(keys);
}

void name_cold() {
  std::vector<firn_key> keys(pick(6));
  for (firn_key& key : keys) key = cold.keys[pick(cold.keys.size())];
  const firn_key* const names = once_in(40) ? nullptr : keys.data();
  const std::size_t count = once_in(60) ? ~std::size_t{0} >> pick(20) : keys.size();
  const std::uint32_t kind = small_or_wild(2);
  std::uint32_t done = 0;
  std::uint32_t* const out = once_in(3) ? nullptr : &done;
  firn_cold* const cache = once_in(60) ? nullptr : cold.cache;
  switch (pick(7)) {
    case 0:
      code(firn_cold_pin(cache, names, count, kind, out));
      break;
    case 1:
    case 2:
      code(firn_cold_unpin(cache, names, count, kind, out));
      break;
    case 3:
      code(firn_cold_touch(cache, names, count, kind, out));
      break;
    case 4:
      code(firn_cold_erase(cache, names, count, kind, out));
      break;
    case 5: {
      Untouched<firn_ticket> ticket;
      const firn_code got = code(firn_cold_prefetch(cache, names, count, kind, a_deadline(), ticket.out()));
      ticket.check(got);
      if (got == FIRN_OK) keep_cold(ticket.value, std::move(keys));
      break;
    }
    default: {
      Exact found(sizeof(firn_cold_found) * keys.size());
      firn_ticket ticket = 0;
      if (code(firn_cold_lookup(cache, names, count, kind, small_or_wild(4),
                                once_in(50) ? nullptr : found.as<firn_cold_found>(), once_in(2) ? nullptr : &ticket)) ==
          FIRN_OK)
        for (std::size_t i = 0; i < keys.size(); ++i)
          if (found.as<firn_cold_found>()[i].answer > FIRN_COLD_PENDING) fail("an answer that is none");
      if (ticket != 0) keep_cold(ticket, std::move(keys));
    }
  }
}

void collect_cold() {
  std::vector<firn_cold_result> results(pick(10));
  firn_cold_result* const room = results.empty() ? nullptr : results.data();
  firn_cold* const cache = once_in(60) ? nullptr : cold.cache;
  std::size_t count = 0, found = 0;
  firn_ticket ticket =
      cold.transfers.empty() || once_in(8) ? wild<firn_ticket>() : cold.transfers[pick(cold.transfers.size())]->ticket;
  char* json = nullptr;
  switch (pick(8)) {
    case 0:
    case 1:
      if (code(firn_cold_wait(cache, ticket, a_timeout(), room, results.size(), once_in(3) ? nullptr : &found)) ==
          FIRN_OK)
        collected(ticket, results);
      break;
    case 2:
    case 3:
      if (code(firn_cold_poll(cache, once_in(60) ? nullptr : &ticket, room, results.size(),
                              once_in(3) ? nullptr : &count, once_in(3) ? nullptr : &found)) == FIRN_OK)
        collected(ticket, results);
      break;
    case 4:
      code(firn_cold_cancel(cache, ticket));
      break;
    case 5:
      code(firn_cold_stats_json(cache, once_in(60) ? nullptr : &json));
      firn_string_free(json);
      if (cache && firn_cold_event_fd(cache) < 0) fail("a cache without its descriptor");
      break;
    default: {
      std::int32_t worked = 0;
      for (std::uint64_t n = pick(8); n > 0; --n) code(firn_cold_pump(cache, once_in(3) ? nullptr : &worked));
    }
  }
}

void cold_side(One&) {
  if (cold.cache == nullptr || once_in(400)) {
    if (cold.cache && code(firn_cold_verify(cold.cache)) != FIRN_OK) fail(firn_last_error());
    firn_cold_destroy(cold.cache);
    make_cold();
    if (cold.cache == nullptr) return;
  }
  switch (pick(10)) {
    case 0:
    case 1:
    case 2:
      move_cold(once_in(2), once_in(3));
      break;
    case 3:
    case 4:
      name_cold();
      break;
    case 5: {
      firn_key key;
      Exact name(pick(300));
      code(firn_cold_key(once_in(60) ? nullptr : cold.cache, once_in(30) ? nullptr : name.at,
                         once_in(30) ? ~std::size_t{0} >> pick(20) | 4096 : name.size, once_in(2) ? nullptr : "space",
                         once_in(30)  ? ~std::size_t{0}
                         : once_in(2) ? 0
                                      : 5,
                         once_in(40) ? nullptr : &key));
      firn_cold_miss_name(wild<std::uint32_t>());
      break;
    }
    default:
      collect_cold();
  }
  if (once_in(300) && code(firn_cold_verify(cold.cache)) != FIRN_OK) fail(firn_last_error());
}

void process_wide(One&) {
  std::vector<std::uint32_t> ranks(pick(5));
  for (std::uint32_t& rank : ranks) rank = wild<std::uint32_t>();
  const std::uint32_t least = firn_tokens_on_all_ranks(once_in(10) ? nullptr : ranks.data(), ranks.size());
  for (const std::uint32_t rank : ranks)
    if (least > rank) fail("more tokens on all ranks than on one");
  if (std::strlen(firn_version()) == 0) fail("no version");
  static const char* const paths[] = {nullptr, "", "/nowhere", "/", "/dev/null", "a\nb"};
  Untouched<firn_config*> config;
  const firn_code got = code(firn_config_create(paths[pick(std::size(paths))], once_in(20) ? nullptr : config.out()));
  config.check(got);
  if (got == FIRN_OK) code(firn_config_check(config.value)), firn_config_destroy(config.value);
}

void whole(One& one) {
  std::size_t violations = 0;
  char* json = nullptr;
  current = "verify";
  if (one.manager && code(firn_verify(one.manager, &violations, &json)) == FIRN_OK && violations != 0) fail(json);
  firn_string_free(json);
  switch (pick(8)) {
    case 0:
      current = "destroy";
      firn_manager_destroy(one.manager);
      one = One();
      current = "create";
      make_manager(one);
      break;
    case 1:
      current = "reset";
      code(firn_reset(one.manager));
      break;
    default:
      break;
  }
}

struct Call {
  const char* name;
  void (*run)(One&);
  unsigned weight;
};
const Call kCalls[] = {{"begin", begin, 20},
                       {"step", step, 15},
                       {"append and attend", compute, 12},
                       {"the end of a sequence", end_sequence, 22},
                       {"looking", look, 12},
                       {"asking", ask, 8},
                       {"moving", move, 12},
                       {"keeping", keep, 10},
                       {"events", events, 4},
                       {"keys", keys_alone, 3},
                       {"the cold side", cold_side, 20},
                       {"the process", process_wide, 1},
                       {"whole", whole, 2}};

}  // namespace

extern "C" void __asan_on_error() { say_where(); }  // NOLINT: the sanitizer's name

int main(int argc, char** argv) {
  const char* const environment = std::getenv("FIRN_FUZZ_SECONDS");
  const double seconds = std::atof(environment ? environment : argc > 1 ? argv[1] : "10");
  seed = std::strtoull(argc > 2 ? argv[2] : "1", nullptr, 10);
  std::signal(SIGABRT, on_abort);
  random_bits.seed(seed);
  std::printf("capi_fuzz: seed %llu, %.0f s\n", static_cast<unsigned long long>(seed), seconds);
  std::fflush(stdout);
  unsigned weights = 0;
  for (const Call& call : kCalls) weights += call.weight;
  all.resize(4);
  for (One& one : all) make_manager(one);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    One& one = all[pick(all.size())];
    std::uint64_t at = pick(weights);
    const Call* call = kCalls;
    for (; at >= call->weight; ++call) at -= call->weight;
    current = call->name;
    firn_manager* const held = one.manager;
    const bool hidden = call->run != whole && once_in(500);  // every call answers NULL
    if (hidden) one.manager = nullptr;
    call->run(one);
    if (hidden) one.manager = held;
    if (one.manager == nullptr && once_in(5)) make_manager(one);
  }
  current = "the end";
  for (One& one : all) {
    std::size_t violations = 0;
    char* json = nullptr;
    if (one.manager && firn_verify(one.manager, &violations, &json) == FIRN_OK && violations != 0) fail(json);
    firn_string_free(json);
    firn_manager_destroy(one.manager);
  }
  firn_cold_destroy(cold.cache);
  cold = Cold();
  std::printf("capi_fuzz: seed %llu, %llu calls, %llu refused\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(calls), static_cast<unsigned long long>(refused));
  return 0;
}
