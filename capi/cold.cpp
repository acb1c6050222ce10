// cold.cpp: cold.h on top of cold_cache.h. Every call checks what came in, calls, and translates what went wrong.
#include "firn/cold.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "capi/calls.h"
#include "firn/cold_cache.h"

struct firn_cold {
  std::unique_ptr<firn::ThreadPool> threads;
  std::unique_ptr<firn::ColdCache> cache;  // uses threads
};

namespace {

using firn::Code;
using firn::ColdCache;
using firn::ColdKind;
using firn::Result;
using firn::Status;

static_assert(sizeof(firn_block_view) == sizeof(firn::BlockView) &&
              offsetof(firn_block_view, v_head_stride) == offsetof(firn::BlockView, v_head_stride));
static_assert(sizeof(firn_key) == sizeof(firn::Key));
static_assert(FIRN_TIER_REMOTE == static_cast<int>(firn::TierId::kRemote));
static_assert(FIRN_COLD_PENDING == static_cast<int>(firn::ColdAnswer::kPending) &&
              FIRN_COLD_STATE == static_cast<int>(ColdKind::kState));

Status invalid(std::string message) { return {Code::kInvalidArgument, std::move(message)}; }

template <class Body>
firn_code guarded(Body&& body) noexcept {
  try {
    return firn::capi::report(body());
  } catch (const std::bad_alloc&) {
    firn::capi::remember("out of memory");
    return FIRN_NO_SPACE;
  } catch (const std::exception& error) {
    firn::capi::remember(error.what());
    return FIRN_INTERNAL;
  }
}

Status need(std::initializer_list<std::pair<const void*, const char*>> arguments) {
  for (const auto& [pointer, name] : arguments)
    if (pointer == nullptr) return invalid(fmt::format("{} is NULL", name));
  return {};
}

template <class T>
Result<std::span<const T>> read_span(const T* first, std::size_t count, const char* name) {
  if (first == nullptr && count != 0) return invalid(fmt::format("{} is NULL, but its count is {}", name, count));
  if (count > FIRN_MAX_KEYS) return invalid(fmt::format("{}: {} of them; at most {}", name, count, FIRN_MAX_KEYS));
  return std::span<const T>(first, count);
}

Result<std::span<const firn::Key>> read_keys(const firn_key* keys, std::size_t count) {
  FIRN_ASSIGN(const std::span<const firn_key> given, read_span(keys, count, "keys"));
  return std::span(reinterpret_cast<const firn::Key*>(given.data()), given.size());
}

Result<ColdKind> read_kind(std::uint32_t kind) {
  if (kind > FIRN_COLD_STATE) return invalid(fmt::format("kind is {}; 0 and 1 are known", kind));
  return static_cast<ColdKind>(kind);
}

Result<firn::Fidelity> read_fidelity(std::uint32_t fidelity, const char* name) {
  if (fidelity < FIRN_FIDELITY_EXACT || fidelity > FIRN_FIDELITY_DERIVED)
    return invalid(fmt::format("{} is {}; 1 to 3 are known", name, fidelity));
  return static_cast<firn::Fidelity>(fidelity);
}

// Parameters as this library knows them. These structs are as old as the library: none is shorter.
template <class T>
Result<T> read_params(const T* given, const char* name) {
  FIRN_TRY(need({{given, name}}));
  if (given->struct_version != FIRN_STRUCT_VERSION || given->struct_size < sizeof(T) || given->struct_size > 65536)
    return invalid(fmt::format("{}: struct_size {} and struct_version {}; this library has {} and {}", name,
                               given->struct_size, given->struct_version, sizeof(T), FIRN_STRUCT_VERSION));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (std::any_of(bytes + sizeof(T), bytes + given->struct_size, [](unsigned char byte) { return byte != 0; }))
    return invalid(fmt::format("{}: of a newer version, and asks for what this library does not know", name));
  return *given;
}

template <class T>
firn_code write_defaults(T* params, std::size_t size, T defaults, const char* name) noexcept {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{params, name}}));
    if (size < sizeof(T) || size > 65536)
      return invalid(fmt::format("{}: its size is {}, one of this version has {}", name, size, sizeof(T)));
    std::memset(params, 0, size);
    defaults.struct_size = static_cast<std::uint32_t>(size);
    defaults.struct_version = FIRN_STRUCT_VERSION;
    std::memcpy(params, &defaults, sizeof(T));
    return {};
  });
}

Status check_flag(std::uint32_t value, const char* name) {
  return value <= 1 ? Status() : invalid(fmt::format("{} is {}; 0 and 1 are known", name, value));
}

Result<firn::ColdRun> read_run(const firn_cold_run* given) {
  FIRN_ASSIGN(const firn_cold_run run, read_params(given, "run"));
  FIRN_TRY(check_flag(run.exact, "exact"));
  if (run.group > 0xffff) return invalid(fmt::format("group is {}", run.group));
  if (run.priority > 254) return invalid(fmt::format("priority is {}; 0 to 254 are known", run.priority));
  firn::ColdRun out;
  out.group = firn::GroupId{static_cast<std::uint16_t>(run.group)};
  out.first_position = run.first_position;
  FIRN_ASSIGN(out.keys, read_keys(run.keys, run.key_count));
  FIRN_ASSIGN(const std::span<const firn_block_view> views, read_span(run.views, run.view_count, "views"));
  out.views = {reinterpret_cast<const firn::BlockView*>(views.data()), views.size()};
  if (run.bound != nullptr) out.bound = {run.bound, run.key_count};
  FIRN_ASSIGN(out.fidelity, read_fidelity(run.fidelity, "fidelity"));
  FIRN_ASSIGN(out.least, read_fidelity(run.least, "least"));
  out.exact = run.exact != 0;
  out.priority = static_cast<std::uint8_t>(run.priority);
  out.deadline_ns = run.deadline_ns;
  return out;
}

firn_cold_result result_of(const firn::ColdResult& result) {
  firn_cold_result out{};
  out.found = result.found;
  out.already = result.already;
  out.miss = static_cast<std::uint32_t>(result.miss);
  out.tier = index(result.tier);
  out.fidelity = static_cast<std::uint32_t>(result.fidelity);
  out.code = static_cast<firn_code>(result.status.code());
  out.bytes = result.bytes;
  const std::string& message = result.status.message();
  std::memcpy(out.message, message.data(), std::min(message.size(), sizeof(out.message) - 1));
  return out;
}

// A run or states are read by the job when the caller's structs may be gone: only what they point at has to stay.
template <class Start>
firn_code begin(firn_cold* cache, firn_ticket* ticket, Start start) noexcept {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}, {ticket, "ticket"}}));
    FIRN_ASSIGN(const firn::Ticket begun, start(*cache->cache));
    *ticket = index(begun);
    return {};
  });
}

template <class Each>
firn_code each_key(firn_cold* cache, const firn_key* keys, std::size_t count, std::uint32_t kind, std::uint32_t* done,
                   Each each) noexcept {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}}));
    FIRN_ASSIGN(const std::span<const firn::Key> names, read_keys(keys, count));
    FIRN_ASSIGN(const ColdKind what, read_kind(kind));
    const std::uint32_t touched = each(*cache->cache, names, what);
    if (done != nullptr) *done = touched;
    return {};
  });
}

}  // namespace

extern "C" {

firn_code firn_cold_default_params(firn_cold_params* params, size_t params_size) {
  const firn::ColdCacheOptions usual;
  firn_cold_params defaults{};
  defaults.workers = usual.workers;
  defaults.queue_blocks = usual.queue_blocks;
  defaults.queue_tickets = usual.queue_tickets;
  return write_defaults(params, params_size, defaults, "params");
}

firn_code firn_cold_run_default_params(firn_cold_run* run, size_t run_size) {
  firn_cold_run defaults{};
  defaults.fidelity = FIRN_FIDELITY_EXACT;
  defaults.least = FIRN_FIDELITY_DERIVED;
  return write_defaults(run, run_size, defaults, "run");
}

firn_code firn_cold_create(const firn_model_params* model, const firn_cold_params* given, firn_cold** cache) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}}));
    FIRN_ASSIGN(const firn_cold_params params, read_params(given, "params"));
    firn::ColdCacheOptions options;
    FIRN_ASSIGN(options.model, firn::capi::read_model(model));
    options.budget_bytes = params.budget_bytes;
    if (params.codec != nullptr) options.codec = params.codec;
    if (params.artefact != nullptr) options.artefact = params.artefact;
    if (params.eviction != nullptr) options.eviction = params.eviction;
    FIRN_TRY(check_flag(params.names, "names"));
    FIRN_TRY(check_flag(params.workers, "workers"));
    FIRN_TRY(check_flag(params.allow_unmeasured, "allow_unmeasured"));
    FIRN_TRY(check_flag(params.admit_second_use, "admit_second_use"));
    if (params.threads > 1024) return invalid(fmt::format("threads is {}; at most 1024", params.threads));
    options.names = static_cast<firn::ColdNames>(params.names);
    options.workers = params.workers != 0;
    options.allow_unmeasured = params.allow_unmeasured != 0;
    options.admit_second_use = params.admit_second_use != 0;
    options.max_blocks = params.max_blocks;
    options.queue_blocks = params.queue_blocks;
    options.queue_tickets = params.queue_tickets;
    auto made = std::make_unique<firn_cold>();
    firn::ColdEnvironment environment;
    if (params.threads != 1) made->threads = std::make_unique<firn::ThreadPool>(params.threads);
    environment.threads = made->threads.get();
    FIRN_ASSIGN(made->cache, ColdCache::create(options, environment));
    *cache = made.release();
    return {};
  });
}

void firn_cold_destroy(firn_cold* cache) { delete cache; }

firn_code firn_cold_key(const firn_cold* cache, const void* name, size_t name_bytes, const void* name_space,
                        size_t name_space_bytes, firn_key* key) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}, {key, "key"}}));
    FIRN_ASSIGN(const auto text, read_span(static_cast<const char*>(name), name_bytes, "name"));
    FIRN_ASSIGN(const auto space, read_span(static_cast<const char*>(name_space), name_space_bytes, "name_space"));
    FIRN_ASSIGN(const firn::Key made, cache->cache->key({text.data(), text.size()}, {space.data(), space.size()}));
    std::memcpy(key, &made, sizeof(made));
    return {};
  });
}

firn_code firn_cold_lookup(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind, uint32_t least,
                           firn_cold_found* found, firn_ticket* pending) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}, {found, "found"}}));
    firn::ColdQuery query;
    FIRN_ASSIGN(query.keys, read_keys(keys, key_count));
    FIRN_ASSIGN(query.kind, read_kind(kind));
    FIRN_ASSIGN(query.least, read_fidelity(least, "least"));
    query.follow = pending != nullptr;
    std::vector<firn::ColdFound> answers(key_count);
    FIRN_ASSIGN(const firn::Ticket ticket, cache->cache->lookup(query, answers));
    std::transform(answers.begin(), answers.end(), found, [](const firn::ColdFound& answer) {
      return firn_cold_found{static_cast<std::uint32_t>(answer.answer), static_cast<std::uint32_t>(answer.miss),
                             index(answer.tier), static_cast<std::uint32_t>(answer.fidelity), answer.bytes};
    });
    if (pending != nullptr) *pending = index(ticket);
    return {};
  });
}

const char* firn_cold_miss_name(uint32_t miss) {
  const auto most = static_cast<std::uint32_t>(firn::ColdMiss::kCount);
  return to_string(static_cast<firn::ColdMiss>(std::min(miss, most))).data();  // beyond: "unknown"
}

firn_code firn_cold_store(firn_cold* cache, const firn_cold_run* run, firn_ticket* ticket) {
  return begin(cache, ticket, [&](ColdCache& cold) -> Result<firn::Ticket> {
    FIRN_ASSIGN(const firn::ColdRun blocks, read_run(run));
    return cold.store(blocks);
  });
}

firn_code firn_cold_load(firn_cold* cache, const firn_cold_run* run, firn_ticket* ticket) {
  return begin(cache, ticket, [&](ColdCache& cold) -> Result<firn::Ticket> {
    FIRN_ASSIGN(const firn::ColdRun blocks, read_run(run));
    return cold.load(blocks);
  });
}

static firn_code move_states(firn_cold* cache, const firn_cold_state* states, size_t state_count, int64_t deadline_ns,
                             firn_ticket* ticket, bool store) {
  return begin(cache, ticket, [&](ColdCache& cold) -> Result<firn::Ticket> {
    FIRN_ASSIGN(const auto given, read_span(states, state_count, "states"));
    std::vector<firn::ColdState> blobs(given.size());
    for (std::size_t i = 0; i < given.size(); ++i) {
      FIRN_TRY(need({{given[i].bytes, "bytes of a state"}}));
      FIRN_TRY(check_flag(given[i].bound, "bound"));
      std::copy_n(given[i].key.bytes, FIRN_KEY_BYTES, blobs[i].key.bytes.begin());
      auto* bytes = static_cast<std::byte*>(given[i].bytes);
      if (store)
        blobs[i].bytes = {bytes, given[i].size};
      else
        blobs[i].room = {bytes, given[i].size};
      blobs[i].bound = given[i].bound != 0;
    }
    return store ? cold.store_state(blobs, deadline_ns) : cold.load_state(blobs, deadline_ns);
  });
}

firn_code firn_cold_store_state(firn_cold* cache, const firn_cold_state* states, size_t state_count,
                                int64_t deadline_ns, firn_ticket* ticket) {
  return move_states(cache, states, state_count, deadline_ns, ticket, true);
}

firn_code firn_cold_load_state(firn_cold* cache, const firn_cold_state* states, size_t state_count, int64_t deadline_ns,
                               firn_ticket* ticket) {
  return move_states(cache, states, state_count, deadline_ns, ticket, false);
}

firn_code firn_cold_prefetch(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind,
                             int64_t deadline_ns, firn_ticket* ticket) {
  return begin(cache, ticket, [&](ColdCache& cold) -> Result<firn::Ticket> {
    FIRN_ASSIGN(const std::span<const firn::Key> names, read_keys(keys, key_count));
    FIRN_ASSIGN(const ColdKind what, read_kind(kind));
    return cold.prefetch(names, what, deadline_ns);
  });
}

firn_code firn_cold_pin(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind, uint32_t* done) {
  return each_key(cache, keys, key_count, kind, done,
                  [](ColdCache& cold, auto names, ColdKind what) { return cold.pin(names, what); });
}
firn_code firn_cold_unpin(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind, uint32_t* done) {
  return each_key(cache, keys, key_count, kind, done,
                  [](ColdCache& cold, auto names, ColdKind what) { return cold.unpin(names, what); });
}
firn_code firn_cold_touch(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind, uint32_t* done) {
  return each_key(cache, keys, key_count, kind, done,
                  [](ColdCache& cold, auto names, ColdKind what) { return cold.touch(names, what); });
}
firn_code firn_cold_erase(firn_cold* cache, const firn_key* keys, size_t key_count, uint32_t kind, uint32_t* done) {
  return each_key(cache, keys, key_count, kind, done,
                  [](ColdCache& cold, auto names, ColdKind what) { return cold.erase(names, what); });
}

firn_code firn_cold_wait(firn_cold* cache, firn_ticket ticket, int64_t timeout_ns, firn_cold_result* results,
                         size_t capacity, size_t* found) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}}));
    if (results == nullptr && capacity != 0)
      return invalid(fmt::format("results is NULL, but its capacity is {}", capacity));
    FIRN_ASSIGN(const firn::ColdDone done, cache->cache->wait(firn::Ticket{ticket}, timeout_ns));
    for (std::size_t i = 0; i < std::min(capacity, done.results.size()); ++i) results[i] = result_of(done.results[i]);
    if (found != nullptr) *found = done.found;
    return {};
  });
}

firn_code firn_cold_poll(firn_cold* cache, firn_ticket* ticket, firn_cold_result* results, size_t capacity,
                         size_t* count, size_t* found) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}, {ticket, "ticket"}}));
    if (results == nullptr && capacity != 0)
      return invalid(fmt::format("results is NULL, but its capacity is {}", capacity));
    const std::vector<firn::ColdDone> ended = cache->cache->poll(1);
    const firn::ColdDone none, &done = ended.empty() ? none : ended.front();
    *ticket = index(done.ticket);
    for (std::size_t i = 0; i < std::min(capacity, done.results.size()); ++i) results[i] = result_of(done.results[i]);
    if (count != nullptr) *count = done.results.size();
    if (found != nullptr) *found = done.found;
    return {};
  });
}

firn_code firn_cold_cancel(firn_cold* cache, firn_ticket ticket) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}}));
    cache->cache->cancel(firn::Ticket{ticket});
    return {};
  });
}

int firn_cold_event_fd(const firn_cold* cache) { return cache == nullptr ? -1 : cache->cache->event_fd(); }

firn_code firn_cold_pump(firn_cold* cache, int32_t* worked) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}}));
    const bool any = cache->cache->pump();
    if (worked != nullptr) *worked = any;
    return {};
  });
}

firn_code firn_cold_stats_json(const firn_cold* cache, char** json) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}, {json, "json"}}));
    const std::string text = stats_json(cache->cache->stats());
    auto* copy = static_cast<char*>(std::malloc(text.size() + 1));
    if (copy == nullptr) throw std::bad_alloc();
    std::memcpy(copy, text.c_str(), text.size() + 1);
    *json = copy;
    return {};
  });
}

firn_code firn_cold_verify(const firn_cold* cache) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{cache, "cache"}}));
    return cache->cache->verify();
  });
}

}  // extern "C"
