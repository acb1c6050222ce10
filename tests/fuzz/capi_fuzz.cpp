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
#include <random>
#include <string>
#include <vector>

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

std::vector<One> all;
std::vector<firn_fence> fences;  // of all managers, so that some are another one's
std::int64_t now = 0;

std::int64_t jumping_clock(void*) {
  return once_in(400) ? now = wild<std::int64_t>() : now += static_cast<std::int64_t>(pick(1000000));
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
std::int64_t a_timeout() { return once_in(10) ? -wild<std::int64_t>() : static_cast<std::int64_t>(pick(300000)); }
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
    if (once_in(100)) group.struct_size = wild<std::uint32_t>() & 63;
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
  std::printf("capi_fuzz: seed %llu, %llu calls, %llu refused\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(calls), static_cast<unsigned long long>(refused));
  return 0;
}
