// capi.cpp: firn.h on top of manager.h. Every call is the same three steps: check what came in, call, translate what
// went wrong. Nothing is decided here.
//
// No exception leaves: guarded() catches what the library or the standard library throws. No abort because of a caller:
// whatever the C++ side asserts about its arguments is checked here first.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "capi/calls.h"
#include "core/json_text.h"
#include "firn/firn.h"
#include "firn/manager.h"

// What the handles are.
struct firn_config {
  bool of_process = false;  // with this process's environment, and the file at path unless that is empty
  std::string path;
  firn::ConfigInput input;
};
struct firn_manager {
  std::unique_ptr<firn::Manager> manager;
};
struct firn_key_chain {
  firn::KeyChain chain;
};

namespace {

using firn::Code;
using firn::index;
using firn::JsonText;
using firn::Manager;
using firn::Result;
using firn::Status;

static_assert(sizeof(firn_key) == sizeof(firn::Key) && alignof(firn_key) == alignof(firn::Key));
static_assert(FIRN_BLOCK_TOKENS == firn::kBlockTokens && std::is_same_v<firn_token, firn::TokenId>);
static_assert(FIRN_IO == static_cast<int>(Code::kIo) && FIRN_UNAVAILABLE == static_cast<int>(Code::kUnavailable));
static_assert(FIRN_FIDELITY_EXACT == static_cast<int>(firn::Fidelity::kExact) &&
              FIRN_FIDELITY_DERIVED == static_cast<int>(firn::Fidelity::kDerived));
static_assert(FIRN_MISS_GROUP == static_cast<int>(firn::MissReason::kGroup) &&
              FIRN_MISS_DEVICE_LOST == static_cast<int>(firn::MissReason::kDeviceLost) &&
              FIRN_MISS_IDENTITY == static_cast<int>(firn::MissReason::kIdentity) &&
              FIRN_MISS_IDENTITY + 1 == static_cast<int>(firn::MissReason::kCount));
static_assert(FIRN_EVENT_CLEARED == static_cast<int>(firn::EventKind::kCleared) &&
              FIRN_EVENT_REMOVED == static_cast<int>(firn::EventKind::kRemoved));
static_assert(FIRN_ADMIT_RESERVE == static_cast<int>(firn::Admission::kReserve));
static_assert(FIRN_BLOCK_LOST == static_cast<int>(firn::BlockState::kLost));
static_assert(FIRN_GROUP_STATE == static_cast<int>(firn::GroupKind::kState));
static_assert(FIRN_NO_SLOT == index(firn::SlotId::kNone));

// The last failure's sentence, in an array of fixed size: writing down that memory ran out must not need any.
thread_local char last_error[4096] = "";

void remember(std::string_view message) noexcept {
  const std::size_t bytes = std::min(message.size(), sizeof(last_error) - 1);
  std::memcpy(last_error, message.data(), bytes);
  last_error[bytes] = '\0';
}

firn_code report(const Status& status) noexcept {
  if (!status.ok()) remember(status.message());
  return static_cast<firn_code>(status.code());
}

// Runs the body of one call, which returns a Status.
template <class Body>
firn_code guarded(Body&& body) noexcept {
  try {
    return report(body());
  } catch (const std::bad_alloc&) {
    remember("out of memory");
    return FIRN_NO_SPACE;
  } catch (const std::exception& error) {
    remember(error.what());
    return FIRN_INTERNAL;
  } catch (...) {
    remember("an exception that is none of the standard library's");
    return FIRN_INTERNAL;
  }
}

Status invalid(std::string message) { return {Code::kInvalidArgument, std::move(message)}; }

// --- arguments ---

struct Argument {
  const void* pointer;
  const char* name;
};

Status need(std::initializer_list<Argument> arguments) {
  for (const Argument& argument : arguments)
    if (!argument.pointer) return invalid(fmt::format("{} is NULL", argument.name));
  return {};
}

// A pointer and a count, which may be NULL and 0. A count that no caller can mean is answered before anything is read.
template <class T>
Result<std::span<const T>> read_span(const T* first, std::size_t count, const char* name, std::size_t most) {
  if (!first && count != 0) return invalid(fmt::format("{} is NULL, but its count is {}", name, count));
  if (count > most) return invalid(fmt::format("{}: a count of {}; at most {}", name, count, most));
  return std::span<const T>(first, count);
}

Result<std::string_view> read_bytes(const void* first, std::size_t count, const char* name,
                                    std::size_t most = FIRN_MAX_NAME_BYTES) {
  if (!first && count != 0) return invalid(fmt::format("{} is NULL, but its length is {}", name, count));
  if (count > most) return invalid(fmt::format("{}: {} bytes; at most {}", name, count, most));
  return std::string_view(static_cast<const char*>(first), count);
}

Result<std::span<const firn_token>> read_tokens(const firn_token* tokens, std::size_t count) {
  return read_span(tokens, count, "tokens", FIRN_MAX_TOKENS);
}

// What is documented as 0 or 1 is nothing else.
Result<bool> read_flag(std::uint32_t value, const char* name) {
  if (value > 1) return invalid(fmt::format("{} is {}, not 0 or 1", name, value));
  return value == 1;
}

Result<std::span<const firn::Key>> read_keys(const firn_key* keys, std::size_t count) {
  FIRN_ASSIGN(const std::span<const firn_key> given, read_span(keys, count, "keys", FIRN_MAX_KEYS));
  return std::span(reinterpret_cast<const firn::Key*>(given.data()), given.size());
}

// The two fields every growing struct begins with.
struct Head {
  std::uint32_t struct_size, struct_version;
};

// What a struct had in the first version of this header: programs built with that one go on working.
template <class T>
constexpr std::size_t kFirstSize = sizeof(T);
template <>
constexpr std::size_t kFirstSize<firn_begin_params> = offsetof(firn_begin_params, adapter);
template <>
constexpr std::size_t kFirstSize<firn_attend_params> = offsetof(firn_attend_params, mass_blocks);

// Where a struct that has grown may end: at the fields that came later.
template <class T>
constexpr std::array<std::size_t, 0> kLaterEnds{};
#define FIRN_END(type, field) (offsetof(type, field) + sizeof(type::field))
template <>
constexpr std::array kLaterEnds<firn_begin_params>{FIRN_END(firn_begin_params, adapter),
                                                   FIRN_END(firn_begin_params, adapter_bytes),
                                                   FIRN_END(firn_begin_params, media),
                                                   FIRN_END(firn_begin_params, media_count),
                                                   FIRN_END(firn_begin_params, max_reuse_tokens),
                                                   FIRN_END(firn_begin_params, drop_last_block)};
template <>
constexpr std::array kLaterEnds<firn_attend_params>{FIRN_END(firn_attend_params, mass_blocks),
                                                    FIRN_END(firn_attend_params, mass),
                                                    FIRN_END(firn_attend_params, mass_scratch)};
#undef FIRN_END

// Whether a T of this many bytes ends where one of its fields does, or is one of a newer header: those come in words.
template <class T>
bool ends_well(std::size_t size) {
  if (size > sizeof(T)) return size <= 65536 && size % alignof(T) == 0;
  return size == sizeof(T) || size == kFirstSize<T> ||
         std::find(kLaterEnds<T>.begin(), kLaterEnds<T>.end(), size) != kLaterEnds<T>.end();
}

template <class T>
Status check_size(std::size_t size, const char* name, const char* what) {
  if (size < kFirstSize<T> || size > 65536)
    return invalid(fmt::format("{}: {} is {}, a {} of this version has {}", name, what, size, name, sizeof(T)));
  if (!ends_well<T>(size))
    return invalid(fmt::format("{}: {} is {}, which ends within a field; a {} of this version has {}", name, what, size,
                               name, sizeof(T)));
  return {};
}

template <class T>
Status check_head(const T* given, const char* name) {
  Head head;
  std::memcpy(&head, given, sizeof(head));
  if (head.struct_version != FIRN_STRUCT_VERSION)
    return invalid(
        fmt::format("{}: struct_version is {}, this library knows {}", name, head.struct_version, FIRN_STRUCT_VERSION));
  return check_size<T>(head.struct_size, name, "struct_size");
}

// Parameters as this library knows them: a shorter struct takes defaults for the rest. Of a longer one the rest must be
// zero: it asks for nothing that is not known here.
template <class T>
Result<T> read_params(const T* given, const T& defaults, const char* name) {
  if (!given) return defaults;
  FIRN_TRY(check_head(given, name));
  Head head;
  std::memcpy(&head, given, sizeof(head));
  T params = defaults;
  std::memcpy(&params, given, std::min<std::size_t>(sizeof(T), head.struct_size));
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  if (head.struct_size > sizeof(T) &&
      std::any_of(bytes + sizeof(T), bytes + head.struct_size, [](unsigned char byte) { return byte != 0; }))
    return invalid(fmt::format("{}: of a newer version, and asks for what this library does not know", name));
  return params;
}

// A result into a struct whose length the caller has said.
template <class T>
Status write_result(T value, T* to, const char* name) {
  FIRN_TRY(check_head(to, name));
  value.struct_size = to->struct_size;
  value.struct_version = to->struct_version;
  std::memcpy(to, &value, sizeof(T));
  return {};
}

template <class T>
firn_code write_defaults(T* params, std::size_t size, T defaults, const char* name) noexcept {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{params, "params"}}));
    FIRN_TRY(check_size<T>(size, name, "its size"));
    std::memset(params, 0, size);
    defaults.struct_size = static_cast<std::uint32_t>(size);
    defaults.struct_version = FIRN_STRUCT_VERSION;
    std::memcpy(params, &defaults, std::min(size, sizeof(T)));
    return {};
  });
}

// Entries into the caller's array, or their count alone.
template <class From, class To, class Convert>
Status write_entries(const std::vector<From>& entries, To* to, std::size_t capacity, std::size_t* count,
                     Convert convert) {
  *count = entries.size();
  if (!to)
    return capacity == 0 ? Status() : invalid(fmt::format("the array is NULL, but its capacity is {}", capacity));
  if (capacity < entries.size())
    return invalid(fmt::format("room for {} entries, and there are {}", capacity, entries.size()));
  std::transform(entries.begin(), entries.end(), to, convert);
  return {};
}

// What the caller frees with free() by another name. NULL for no entries.
template <class From, class To, class Convert>
void give_entries(const std::vector<From>& entries, To** to, std::size_t* count, Convert convert) {
  static_assert(std::is_trivially_copyable_v<To>);
  To* made = nullptr;
  if (!entries.empty()) {
    made = static_cast<To*>(std::calloc(entries.size(), sizeof(To)));
    if (!made) throw std::bad_alloc();
    std::transform(entries.begin(), entries.end(), made, convert);
  }
  *to = made;
  *count = entries.size();
}

// Memory for what a call will tell, taken before the call: what is done is told, whatever memory runs out after it.
template <class To>
class Room {
 public:
  explicit Room(std::size_t most)
      : most_(most), at_(static_cast<To*>(std::calloc(std::max<std::size_t>(most, 1), sizeof(To)))) {
    if (!at_) throw std::bad_alloc();
  }
  ~Room() { std::free(at_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  template <class From, class Convert>
  void give(const std::vector<From>& entries, To** to, std::size_t* count, Convert convert) {
    if (entries.empty() || entries.size() > most_) return give_entries(entries, to, count, convert);
    std::transform(entries.begin(), entries.end(), at_, convert);
    *to = std::exchange(at_, nullptr);
    *count = entries.size();
  }

 private:
  std::size_t most_;
  To* at_;
};

void give_text(const std::string& text, char** to) {
  auto* made = static_cast<char*>(std::malloc(text.size() + 1));
  if (!made) throw std::bad_alloc();
  std::memcpy(made, text.c_str(), text.size() + 1);
  *to = made;
}

// Text that came from outside may be anything; JSON is UTF-8.
// One line of it.
JsonText json_line() { return JsonText(JsonText::Layout::kOneLine); }

// --- both ways ---

firn_key key_of(const firn::Key& key) {
  firn_key out;
  std::memcpy(out.bytes, key.bytes.data(), sizeof(out.bytes));
  return out;
}

firn::Digest digest_of(const std::uint8_t* bytes) {
  firn::Digest digest;
  std::memcpy(digest.bytes.data(), bytes, digest.bytes.size());
  return digest;
}

Result<firn::Fence> fence_of(const firn_fence* fence) {
  if (!fence) return firn::Fence{};
  if (fence->kind > 2) return invalid(fmt::format("fence: kind is {}, not 0, 1 or 2", fence->kind));
  return firn::Fence{static_cast<firn::Fence::Kind>(fence->kind), fence->handle, fence->value};
}

firn_fence fence_of(const firn::Fence& fence) {
  return {static_cast<std::uint32_t>(fence.kind), 0, fence.handle, fence.value};
}

firn_match match_of(const firn::PrefixMatch& match) {
  firn_match out{};
  FIRN_RESULT(out);
  out.tokens = match.tokens;
  out.tokens_partial = match.tokens_partial;
  out.tokens_on_device = match.tokens_on_device;
  out.tokens_on_host = match.tokens_on_host;
  out.tokens_found = match.tokens_found;
  out.recompute_from = match.recompute_from;
  out.tokens_full = match.tokens_full;
  out.first_miss = static_cast<std::uint32_t>(match.first_miss);
  return out;
}

firn_key_place place_of(const firn::EventBlock& block) {
  return {key_of(block.key), key_of(block.parent), index(block.page_set), block.tiers,
          block.position,    block.tokens,         block.name_space};
}

firn_group_params group_defaults() {
  firn_group_params params{};
  FIRN_RESULT(params);
  params.kind = FIRN_GROUP_FULL;
  params.dtype = FIRN_DTYPE_F16;
  return params;
}

firn_model_params model_defaults() {
  firn_model_params params{};
  FIRN_RESULT(params);
  params.attention_factor = 1;
  params.shard_count = 1;
  return params;
}

firn_begin_params begin_defaults() {
  firn_begin_params params{};
  FIRN_RESULT(params);
  params.read_cache = 1;
  params.min_fidelity = FIRN_FIDELITY_DERIVED;
  params.shared_tokens = ~0u;
  params.max_reuse_tokens = ~0u;
  return params;
}

firn_attend_params attend_defaults() {
  firn_attend_params params{};
  FIRN_RESULT(params);
  return params;
}
firn_create_params create_defaults() {
  firn_create_params params{};
  FIRN_RESULT(params);
  return params;
}

Result<firn::GroupSpec> group_of(const firn_group_params* given) {
  FIRN_ASSIGN(const firn_group_params params, read_params(given, group_defaults(), "firn_group_params"));
  // Values outside of the enumerations must not become one; validate() says the rest.
  if (params.kind < FIRN_GROUP_FULL || params.kind > FIRN_GROUP_STATE)
    return invalid(fmt::format("firn_group_params: kind is {}; 1 to 4 are known", params.kind));
  if (params.dtype < FIRN_DTYPE_F16 || params.dtype > FIRN_DTYPE_BITS8)
    return invalid(fmt::format("firn_group_params: dtype is {}; 1 to 4 are known", params.dtype));
  firn::GroupSpec group;
  group.kind = static_cast<firn::GroupKind>(params.kind);
  group.layer_count = params.layer_count;
  group.kv = {static_cast<firn::Dtype>(params.dtype), params.kv_heads, params.head_dim, params.value_dim};
  group.window = params.window;
  group.query_heads = params.query_heads;
  return group;
}

Result<firn::ModelSpec> read_model(const firn_model_params* given) {
  FIRN_TRY(need({{given, "model"}}));
  FIRN_ASSIGN(const firn_model_params params, read_params(given, model_defaults(), "firn_model_params"));
  if (params.group_count > firn::kMaxGroups || (params.group_count != 0 && !params.groups))
    return invalid(fmt::format("firn_model_params: {} groups at {}; at most {}", params.group_count,
                               static_cast<const void*>(params.groups), firn::kMaxGroups));
  if (params.rotation_pairing > FIRN_ROTATION_HALVES)
    return invalid(fmt::format("firn_model_params: rotation_pairing is {}; 0 to 2 are known", params.rotation_pairing));
  if (params.frequency_count > firn::kMaxHeadDim)
    return invalid(fmt::format("firn_model_params: {} inverse frequencies; at most {}", params.frequency_count,
                               firn::kMaxHeadDim));
  firn::ModelSpec model;
  if (params.name) model.name = params.name;
  model.weights = digest_of(params.weights);
  FIRN_ASSIGN(const std::string_view adapters, read_bytes(params.adapters, params.adapters_bytes, "adapters"));
  model.adapters = adapters;
  const auto* at = reinterpret_cast<const unsigned char*>(params.groups);
  std::uint32_t distance = 0;
  if (params.group_count != 0) {
    FIRN_TRY(check_head(params.groups, "firn_group_params"));
    distance = params.groups->struct_size;
  }
  for (std::size_t i = 0; i < params.group_count; ++i, at += distance) {
    std::uint32_t size = 0;
    std::memcpy(&size, at, sizeof(size));
    if (size != distance)
      return invalid(
          fmt::format("firn_group_params: struct_size of groups[{}] is {}, that of groups[0] {}", i, size, distance));
    FIRN_ASSIGN(const firn::GroupSpec group, group_of(reinterpret_cast<const firn_group_params*>(at)));
    model.groups.push_back(group);
  }
  FIRN_ASSIGN(const std::span<const float> frequencies,
              read_span(params.inverse_frequencies, params.frequency_count, "inverse_frequencies", firn::kMaxHeadDim));
  model.rotation = {static_cast<firn::RotationSpec::Pairing>(params.rotation_pairing),
                    params.rotation_dims,
                    {frequencies.begin(), frequencies.end()},
                    params.attention_factor};
  model.shard_rank = params.shard_rank;
  model.shard_count = params.shard_count;
  return model;
}

Result<firn::ModelSpec> model_of(const firn_model_params* given) {
  FIRN_ASSIGN(firn::ModelSpec model, read_model(given));
  FIRN_TRY(validate(model));
  return model;
}

Result<firn::KeyExtras> extras_of(const firn_begin_params& params) {
  firn::KeyExtras extras;
  FIRN_ASSIGN(extras.adapter, read_bytes(params.adapter, params.adapter_bytes, "adapter"));
  FIRN_ASSIGN(const std::span<const firn_media_item> media,
              read_span(params.media, params.media_count, "media", FIRN_MAX_TOKENS));
  for (const firn_media_item& item : media) {
    FIRN_ASSIGN(const std::string_view digest, read_bytes(item.digest, item.digest_bytes, "digest"));
    extras.media.push_back({item.first_token, item.token_count, std::string(digest)});
  }
  FIRN_TRY(validate(extras));
  return extras;
}

Result<firn::BeginOptions> begin_options(const firn_begin_params* given) {
  FIRN_ASSIGN(const firn_begin_params params, read_params(given, begin_defaults(), "firn_begin_params"));
  if (params.min_fidelity < FIRN_FIDELITY_EXACT || params.min_fidelity > FIRN_FIDELITY_DERIVED)
    return invalid(fmt::format("firn_begin_params: min_fidelity is {}; 1 to 3 are known", params.min_fidelity));
  firn::BeginOptions options;
  FIRN_ASSIGN(options.name_space, read_bytes(params.name_space, params.name_space_bytes, "name_space"));
  FIRN_ASSIGN(options.read_cache, read_flag(params.read_cache, "firn_begin_params: read_cache"));
  options.min_fidelity = static_cast<firn::Fidelity>(params.min_fidelity);
  if (params.shared_scope || params.shared_scope_bytes != 0) {
    FIRN_ASSIGN(const std::string_view scope,
                read_bytes(params.shared_scope, params.shared_scope_bytes, "shared_scope"));
    options.shared_scope = scope;
  }
  options.shared_tokens = params.shared_tokens;
  FIRN_ASSIGN(options.share, read_flag(params.share, "firn_begin_params: share"));
  if (params.admission > FIRN_ADMIT_RESERVE)
    return invalid(fmt::format("firn_begin_params: admission is {}; 0 to 2 are known", params.admission));
  options.admission = static_cast<firn::Admission>(params.admission);
  options.expected_tokens = params.expected_tokens;
  FIRN_ASSIGN(options.extras, extras_of(params));
  options.max_reuse_tokens = params.max_reuse_tokens;
  FIRN_ASSIGN(options.drop_last_block, read_flag(params.drop_last_block, "firn_begin_params: drop_last_block"));
  return options;
}

Result<std::vector<firn::StepRows>> rows_of(const firn_step_rows* rows, std::size_t count) {
  FIRN_ASSIGN(const std::span<const firn_step_rows> given, read_span(rows, count, "rows", FIRN_MAX_ROWS));
  std::vector<firn::StepRows> out;
  for (const firn_step_rows& row : given) out.push_back({firn::SeqId{row.seq}, row.row, row.row_count, row.position});
  return out;
}

Result<std::optional<std::string_view>> scope_of(int32_t all, const void* name_space, std::size_t bytes) {
  if (all != 0) return std::optional<std::string_view>();
  FIRN_ASSIGN(const std::string_view name, read_bytes(name_space, bytes, "name_space"));
  return std::optional<std::string_view>(name);
}

Result<firn::LoadedConfig> load(const firn_config* config) {
  if (!config) return firn::load_config_file({});
  return config->of_process ? load_config_file(config->path, config->input.overrides) : load_config(config->input);
}

std::string_view origin_name(firn::ConfigOrigin::Kind kind) {
  switch (kind) {
    case firn::ConfigOrigin::Kind::kDefault:
      return "default";
    case firn::ConfigOrigin::Kind::kFile:
      return "file";
    case firn::ConfigOrigin::Kind::kEnvironment:
      return "environment";
    case firn::ConfigOrigin::Kind::kOverride:
      return "override";
  }
  return "unknown";
}

// For calls that answer about a sequence that does not exist as about one that is empty.
Status check_sequence(const Manager& manager, firn_seq seq) {
  if (manager.has_sequence(firn::SeqId{seq})) return {};
  return invalid(fmt::format("sequence {} does not exist", seq));
}

// One call on a manager, after its handle and outputs were found to be there.
template <class Body>
firn_code on(const firn_manager* manager, std::initializer_list<Argument> outputs, Body&& body) noexcept {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{manager, "manager"}}));
    FIRN_TRY(need(outputs));
    return body(*manager->manager);
  });
}

}  // namespace

extern "C" {

const char* firn_version(void) { return FIRN_VERSION_TEXT; }

const char* firn_code_name(firn_code code) {
  static constexpr const char* names[] = {"ok", "invalid_argument", "no_space", "unavailable", "corrupt",
                                          "io", "internal"};
  return code >= 0 && code <= FIRN_INTERNAL ? names[code] : "unknown";
}

const char* firn_last_error(void) { return last_error; }
void firn_string_free(char* text) { std::free(text); }
void firn_copy_order_free(firn_copy_order* orders) { std::free(orders); }
void firn_slot_move_free(firn_slot_move* moves) { std::free(moves); }
void firn_event_free(firn_event* events) { std::free(events); }
void firn_key_place_free(firn_key_place* places) { std::free(places); }

const char* firn_miss_name(uint32_t reason) {
  if (reason >= static_cast<uint32_t>(firn::MissReason::kCount)) return "unknown";
  return firn::to_string(static_cast<firn::MissReason>(reason)).data();  // of literals
}

// --- configuration ---

firn_code firn_config_create(const char* path, firn_config** config) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{config, "config"}}));
    auto made = std::make_unique<firn_config>();
    made->of_process = true;
    if (path) made->path = path;
    *config = made.release();
    return {};
  });
}

firn_code firn_config_parse(const char* yaml, firn_config** config) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{config, "config"}}));
    auto made = std::make_unique<firn_config>();
    if (yaml) made->input.file = "text", made->input.text = yaml;
    *config = made.release();
    return {};
  });
}

firn_code firn_config_set(firn_config* config, const char* key, const char* value) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{config, "config"}, {key, "key"}, {value, "value"}}));
    auto& overrides = config->input.overrides;
    overrides.erase(std::remove_if(overrides.begin(), overrides.end(), [&](const auto& one) { return one.key == key; }),
                    overrides.end());
    overrides.push_back({key, value, "firn_config_set"});
    return {};
  });
}

firn_code firn_config_check(const firn_config* config) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{config, "config"}}));
    return load(config).status();
  });
}

firn_code firn_config_json(const firn_config* config, char** json) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{config, "config"}, {json, "json"}}));
    FIRN_ASSIGN(const firn::LoadedConfig loaded, load(config));
    JsonText out = json_line();
    out.begin_object();
    out.key("settings");
    out.begin_array();
    for (const firn::ConfigSetting& setting : loaded.settings) {
      out.begin_object();
      out.field("key", setting.key);
      out.field("value", setting.value);
      out.field("origin", origin_name(setting.origin.kind));
      out.field("where", setting.origin.where);
      out.field("description", setting.description);
      out.end_object();
    }
    out.end_array();
    out.key("warnings");
    out.begin_array();
    for (const std::string& warning : loaded.warnings) out.value(warning);
    out.end_array();
    out.end_object();
    give_text(out.take(), json);
    return {};
  });
}

void firn_config_destroy(firn_config* config) { delete config; }

// --- the model ---

firn_code firn_group_default_params(firn_group_params* params, size_t size) {
  return write_defaults(params, size, group_defaults(), "firn_group_params");
}
firn_code firn_model_default_params(firn_model_params* params, size_t size) {
  return write_defaults(params, size, model_defaults(), "firn_model_params");
}
firn_code firn_create_default_params(firn_create_params* params, size_t size) {
  return write_defaults(params, size, create_defaults(), "firn_create_params");
}
firn_code firn_begin_default_params(firn_begin_params* params, size_t size) {
  return write_defaults(params, size, begin_defaults(), "firn_begin_params");
}

firn_code firn_block_extra(const firn_begin_params* given, uint64_t first_token, uint8_t* extra, size_t capacity,
                           size_t* count) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{count, "count"}}));
    FIRN_ASSIGN(const firn_begin_params params, read_params(given, begin_defaults(), "firn_begin_params"));
    FIRN_ASSIGN(const firn::KeyExtras extras, extras_of(params));
    return write_entries(block_extra(extras, first_token), extra, capacity, count,
                         [](std::byte byte) { return static_cast<uint8_t>(byte); });
  });
}
uint32_t firn_tokens_on_all_ranks(const uint32_t* tokens_of_rank, size_t ranks) {
  return tokens_of_rank == nullptr || ranks == 0 ? 0 : *std::min_element(tokens_of_rank, tokens_of_rank + ranks);
}

firn_code firn_attend_default_params(firn_attend_params* params, size_t size) {
  return write_defaults(params, size, attend_defaults(), "firn_attend_params");
}

uint64_t firn_attend_mass_bytes(uint32_t query_heads, uint32_t rows, uint32_t mass_blocks) {
  return firn::Kernels::mass_bytes(query_heads, rows, mass_blocks);
}

firn_code firn_model_identity(const firn_model_params* model, uint8_t identity[32]) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{identity, "identity"}}));
    FIRN_ASSIGN(const firn::ModelSpec spec, model_of(model));
    const firn::Digest digest = firn::model_identity(spec);
    std::memcpy(identity, digest.bytes.data(), digest.bytes.size());
    return {};
  });
}

// --- keys ---

firn_code firn_hash(const void* bytes, size_t byte_count, uint8_t digest[32]) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{digest, "digest"}}));
    FIRN_ASSIGN(const std::string_view data, read_bytes(bytes, byte_count, "bytes", PTRDIFF_MAX));
    firn::Hasher hasher;
    hasher.update(std::as_bytes(std::span(data.data(), data.size())));
    const firn::Digest made = hasher.finish();
    std::memcpy(digest, made.bytes.data(), made.bytes.size());
    return {};
  });
}

firn_code firn_key_chain_create(const uint8_t identity[32], const void* salt, size_t salt_bytes,
                                firn_key_chain** chain) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{identity, "identity"}, {chain, "chain"}}));
    FIRN_ASSIGN(const std::string_view secret, read_bytes(salt, salt_bytes, "salt"));
    *chain = new firn_key_chain{firn::KeyChain(digest_of(identity), secret)};
    return {};
  });
}

firn_code firn_key_chain_root(const firn_key_chain* chain, uint8_t root[32]) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{chain, "chain"}, {root, "root"}}));
    std::memcpy(root, chain->chain.root().bytes.data(), 32);
    return {};
  });
}

firn_code firn_key_chain_next(const firn_key_chain* chain, const firn_key* parent, const firn_token* tokens,
                              const void* extra, size_t extra_bytes, firn_key* key) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{chain, "chain"}, {tokens, "tokens"}, {key, "key"}}));
    FIRN_ASSIGN(const std::string_view more, read_bytes(extra, extra_bytes, "extra"));
    if (more.size() > 4096) return invalid(fmt::format("extra: {} bytes; at most 4096", more.size()));
    *key =
        key_of(chain->chain.next(parent ? digest_of(parent->bytes) : firn::Key{}, std::span(tokens, FIRN_BLOCK_TOKENS),
                                 std::as_bytes(std::span(more.data(), more.size()))));
    return {};
  });
}

firn_code firn_key_chain_keys(const firn_key_chain* chain, const firn_token* tokens, size_t token_count, firn_key* keys,
                              size_t key_capacity, size_t* key_count) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{chain, "chain"}, {key_count, "key_count"}}));
    FIRN_ASSIGN(const std::span<const firn_token> given, read_tokens(tokens, token_count));
    if (!keys && key_capacity == 0) return *key_count = given.size() / FIRN_BLOCK_TOKENS, Status();
    return write_entries(chain->chain.keys(given), keys, key_capacity, key_count, key_of);
  });
}

void firn_key_chain_destroy(firn_key_chain* chain) { delete chain; }

// --- a manager ---

firn_code firn_manager_create(const firn_config* config, const firn_model_params* model,
                              const firn_create_params* given, firn_manager** manager) {
  return guarded([&]() -> Status {
    FIRN_TRY(need({{manager, "manager"}}));
    FIRN_ASSIGN(const firn_create_params params, read_params(given, create_defaults(), "firn_create_params"));
    FIRN_ASSIGN(const firn::ModelSpec spec, model_of(model));
    FIRN_ASSIGN(const firn::LoadedConfig loaded, load(config));
    firn::ManagerEnvironment environment;
    if (params.clock_ns)
      environment.clock = [clock = params.clock_ns, user = params.clock_user] { return firn::Instant{clock(user)}; };
    FIRN_ASSIGN(std::unique_ptr<Manager> made, Manager::create(loaded.config, spec, environment));
    *manager = new firn_manager{std::move(made)};
    return {};
  });
}

void firn_manager_destroy(firn_manager* manager) {
  guarded([&] { return delete manager, Status(); });
}

// --- sequences ---

firn_code firn_match_prefix(const firn_manager* manager, const firn_token* tokens, size_t token_count,
                            const firn_begin_params* params, firn_match* match) {
  return on(manager, {{match, "match"}}, [&](Manager& m) -> Status {
    FIRN_TRY(check_head(match, "firn_match"));
    FIRN_ASSIGN(const std::span<const firn_token> given, read_tokens(tokens, token_count));
    FIRN_ASSIGN(const firn::BeginOptions options, begin_options(params));
    return write_result(match_of(m.match_prefix(given, options)), match, "firn_match");
  });
}

firn_code firn_begin(firn_manager* manager, const firn_token* tokens, size_t token_count,
                     const firn_begin_params* params, firn_seq* seq, firn_match* match) {
  return on(manager, {{seq, "seq"}}, [&](Manager& m) -> Status {
    if (match) FIRN_TRY(check_head(match, "firn_match"));
    FIRN_ASSIGN(const std::span<const firn_token> given, read_tokens(tokens, token_count));
    FIRN_ASSIGN(const firn::BeginOptions options, begin_options(params));
    FIRN_ASSIGN(const firn::Begun begun, m.begin(given, options));
    *seq = index(begun.seq);
    return match ? write_result(match_of(begun.match), match, "firn_match") : Status();
  });
}

firn_code firn_plan_step(const firn_manager* manager, const firn_step_request* requests, size_t request_count,
                         firn_step_plan* plan) {
  return on(manager, {{plan, "plan"}}, [&](Manager& m) -> Status {
    FIRN_TRY(check_head(plan, "firn_step_plan"));
    FIRN_ASSIGN(const std::span<const firn_step_request> given,
                read_span(requests, request_count, "requests", FIRN_MAX_ROWS));
    std::vector<firn::StepRequest> wanted;
    for (const firn_step_request& one : given) wanted.push_back({firn::SeqId{one.seq}, one.new_tokens});
    FIRN_ASSIGN(const firn::StepPlan made, m.plan_step(wanted));
    firn_step_plan out{};
    FIRN_RESULT(out);
    out.chunk_limit = made.chunk_limit;
    out.chunk_limit_moved = made.chunk_limit_moved;
    out.blocks_needed = made.blocks_needed;
    out.blocked = report(made.blocked);
    out.staging_bytes = made.staging_bytes;
    out.workspace_bytes = made.workspace_bytes;
    return write_result(out, plan, "firn_step_plan");
  });
}

firn_code firn_allocate(firn_manager* manager, firn_seq seq, uint32_t new_tokens, uint32_t lookahead,
                        firn_copy_order** orders, size_t* order_count) {
  return on(manager, {{orders, "orders"}, {order_count, "order_count"}}, [&](Manager& m) -> Status {
    Room<firn_copy_order> room(m.layout().sets.size());  // the last block of each page set
    FIRN_ASSIGN(const std::vector<firn::CopyOrder> made, m.allocate(firn::SeqId{seq}, new_tokens, lookahead));
    room.give(made, orders, order_count, [](const firn::CopyOrder& order) {
      return firn_copy_order{index(order.from), index(order.to), order.tokens, index(order.page_set)};
    });
    return {};
  });
}

firn_code firn_append(firn_manager* manager, uint32_t layer, const firn_step_rows* rows, size_t rows_count,
                      firn_address k, firn_address v, firn_fence* fence) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::vector<firn::StepRows> given, rows_of(rows, rows_count));
    if (k == 0 || v == 0) return invalid("append: k and v are addresses, not 0");
    FIRN_ASSIGN(const firn::Fence made, m.append(layer, given, k, v));
    if (fence) *fence = fence_of(made);
    return {};
  });
}

firn_code firn_attend(firn_manager* manager, uint32_t layer, const firn_step_rows* rows, size_t rows_count,
                      const firn_attend_params* params, firn_address q, firn_address out, firn_fence* fence) {
  return on(manager, {{params, "params"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::vector<firn::StepRows> given, rows_of(rows, rows_count));
    FIRN_ASSIGN(const firn_attend_params read, read_params(params, attend_defaults(), "firn_attend_params"));
    if (q == 0 || out == 0) return invalid("attend: q and out are addresses, not 0");
    const firn::AttendParams attend{.query_heads = read.query_heads,
                                    .scale = read.scale,
                                    .soft_cap = read.soft_cap,
                                    .mass = read.mass,
                                    .mass_blocks = read.mass_blocks,
                                    .mass_scratch = read.mass_scratch};
    FIRN_ASSIGN(const firn::Fence made, m.attend(layer, given, attend, q, out));
    if (fence) *fence = fence_of(made);
    return {};
  });
}

firn_code firn_commit(firn_manager* manager, firn_seq seq, const firn_token* tokens, size_t token_count) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::span<const firn_token> given, read_tokens(tokens, token_count));
    return m.commit(firn::SeqId{seq}, given);
  });
}

firn_code firn_fork(firn_manager* manager, firn_seq seq, firn_seq* child) {
  return on(manager, {{child, "child"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const firn::SeqId made, m.fork(firn::SeqId{seq}));
    *child = index(made);
    return {};
  });
}

firn_code firn_rewind(firn_manager* manager, firn_seq seq, uint32_t token_count) {
  return on(manager, {}, [&](Manager& m) { return m.rewind(firn::SeqId{seq}, token_count); });
}

firn_code firn_free(firn_manager* manager, firn_seq seq, const firn_fence* fence) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const firn::Fence until, fence_of(fence));
    return m.free(firn::SeqId{seq}, until);
  });
}

firn_code firn_preempt(firn_manager* manager, firn_seq seq, const firn_fence* fence) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const firn::Fence until, fence_of(fence));
    return m.preempt(firn::SeqId{seq}, until);
  });
}

firn_code firn_resume(firn_manager* manager, firn_seq seq, firn_match* match) {
  return on(manager, {}, [&](Manager& m) -> Status {
    if (match) FIRN_TRY(check_head(match, "firn_match"));
    FIRN_ASSIGN(const firn::PrefixMatch found, m.resume(firn::SeqId{seq}));
    return match ? write_result(match_of(found), match, "firn_match") : Status();
  });
}

firn_code firn_gather(firn_manager* manager, firn_seq seq, uint32_t layer, uint32_t first, uint32_t count, void* k,
                      size_t k_bytes, void* v, size_t v_bytes) {
  return on(manager, {}, [&](Manager& m) -> Status {
    if ((!k && k_bytes != 0) || (!v && v_bytes != 0)) return invalid("k or v is NULL, but it has a length");
    return m.gather(firn::SeqId{seq}, layer, first, count, std::span(static_cast<std::byte*>(k), k_bytes),
                    std::span(static_cast<std::byte*>(v), v_bytes));
  });
}

firn_code firn_token_count(const firn_manager* manager, firn_seq seq, uint32_t* token_count) {
  return on(manager, {{token_count, "token_count"}}, [&](Manager& m) -> Status {
    FIRN_TRY(check_sequence(m, seq));
    *token_count = m.token_count(firn::SeqId{seq});
    return {};
  });
}

firn_code firn_usable_tokens(const firn_manager* manager, firn_seq seq, uint32_t* token_count) {
  return on(manager, {{token_count, "token_count"}}, [&](Manager& m) -> Status {
    FIRN_TRY(check_sequence(m, seq));
    *token_count = m.usable_tokens(firn::SeqId{seq});
    return {};
  });
}

firn_code firn_block_table(const firn_manager* manager, firn_seq seq, uint32_t page_set, uint32_t* slots,
                           size_t capacity, size_t* count) {
  return on(manager, {{count, "count"}}, [&](Manager& m) -> Status {
    if (page_set >= m.layout().sets.size())
      return invalid(fmt::format("page_set {}: the model has {}", page_set, m.layout().sets.size()));
    FIRN_TRY(check_sequence(m, seq));
    return write_entries(m.block_table(firn::SeqId{seq}, firn::PageSetId{static_cast<std::uint8_t>(page_set)}), slots,
                         capacity, count, [](firn::SlotId slot) { return index(slot); });
  });
}

firn_code firn_block_keys(const firn_manager* manager, firn_seq seq, firn_key* keys, size_t capacity, size_t* count) {
  return on(manager, {{count, "count"}}, [&](Manager& m) -> Status {
    FIRN_TRY(check_sequence(m, seq));
    return write_entries(m.block_keys(firn::SeqId{seq}), keys, capacity, count, key_of);
  });
}

firn_code firn_block_states(const firn_manager* manager, firn_seq seq, uint8_t* states, size_t capacity,
                            size_t* count) {
  return on(manager, {{count, "count"}}, [&](Manager& m) -> Status {
    FIRN_TRY(check_sequence(m, seq));
    return write_entries(m.block_states(firn::SeqId{seq}), states, capacity, count,
                         [](firn::BlockState state) { return static_cast<uint8_t>(state); });
  });
}

firn_code firn_compute_keys(const firn_manager* manager, const firn_token* tokens, size_t token_count,
                            const void* name_space, size_t name_space_bytes, firn_key* keys, size_t capacity,
                            size_t* count) {
  return on(manager, {{count, "count"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::span<const firn_token> given, read_tokens(tokens, token_count));
    FIRN_ASSIGN(const std::string_view name, read_bytes(name_space, name_space_bytes, "name_space"));
    return write_entries(m.compute_keys(given, name), keys, capacity, count, key_of);
  });
}

// --- moving ---

firn_code firn_prefetch(firn_manager* manager, firn_seq seq, firn_ticket* ticket) {
  return on(manager, {{ticket, "ticket"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const firn::Ticket made, m.prefetch(firn::SeqId{seq}));
    *ticket = index(made);
    return {};
  });
}

firn_code firn_done(const firn_manager* manager, firn_ticket ticket, int32_t* done) {
  return on(manager, {{done, "done"}}, [&](Manager& m) { return *done = m.done(firn::Ticket{ticket}), Status(); });
}

firn_code firn_cancel(firn_manager* manager, firn_ticket ticket) {
  return on(manager, {}, [&](Manager& m) { return m.cancel(firn::Ticket{ticket}); });
}

firn_code firn_pump(firn_manager* manager, size_t max_jobs, size_t* done) {
  return on(manager, {}, [&](Manager& m) {
    const std::size_t jobs = m.pump(max_jobs);
    if (done) *done = jobs;
    return Status();
  });
}

firn_code firn_wait(firn_manager* manager, firn_ticket ticket, int64_t timeout_ns) {
  return on(manager, {}, [&](Manager& m) { return m.wait(firn::Ticket{ticket}, timeout_ns); });
}

firn_code firn_wait_idle(firn_manager* manager, int64_t timeout_ns) {
  return on(manager, {}, [&](Manager& m) { return m.wait_idle(timeout_ns); });
}

firn_code firn_wait_room(firn_manager* manager, firn_seq seq, uint32_t new_tokens, int64_t timeout_ns) {
  return on(manager, {}, [&](Manager& m) { return m.wait_room(firn::SeqId{seq}, new_tokens, timeout_ns); });
}

firn_code firn_wait_fence(firn_manager* manager, const firn_fence* fence, int64_t timeout_ns) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const firn::Fence until, fence_of(fence));
    return m.wait_fence(until, timeout_ns);
  });
}

firn_code firn_fence_passed(firn_manager* manager, const firn_fence* fence, int32_t* passed) {
  return on(manager, {{passed, "passed"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const firn::Fence until, fence_of(fence));
    FIRN_ASSIGN(const bool has, m.fence_passed(until));
    *passed = has;
    return {};
  });
}

firn_code firn_empty_pool(firn_manager* manager, uint8_t poison, uint32_t* emptied) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::uint32_t slots, m.empty_pool(poison));
    if (emptied) *emptied = slots;
    return {};
  });
}

firn_code firn_resize_pool(firn_manager* manager, uint64_t budget_bytes, firn_resize* resize, firn_slot_move** moves,
                           size_t* move_count) {
  return on(manager, {}, [&](Manager& m) -> Status {
    if (resize) FIRN_TRY(check_head(resize, "firn_resize"));
    if (!moves != !move_count) return invalid("moves and move_count go together: both or neither is NULL");
    Room<firn_slot_move> room(moves ? m.stats().slots_total : 0);
    FIRN_ASSIGN(const firn::PoolResize made, m.resize_pool(budget_bytes));
    if (moves)
      room.give(made.moved, moves, move_count, [](const firn::SlotMove& move) {
        return firn_slot_move{index(move.from), index(move.to), index(move.page_set)};
      });
    if (!resize) return {};
    firn_resize out{};
    FIRN_RESULT(out);
    out.budget_bytes = made.budget_bytes, out.slots = made.slots, out.evicted = made.evicted;
    return write_result(out, resize, "firn_resize");
  });
}

firn_code firn_reset(firn_manager* manager) {
  return on(manager, {}, [](Manager& m) { return m.reset(); });
}

// --- keeping ---

firn_code firn_set_retention(firn_manager* manager, firn_seq seq, const firn_retention_range* ranges,
                             size_t range_count) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::span<const firn_retention_range> given,
                read_span(ranges, range_count, "ranges", firn::kMaxRetentionRanges));
    std::vector<firn::RetentionRange> out;
    for (const firn_retention_range& range : given) {
      if (range.priority > firn::kMaxPriority)
        return invalid(fmt::format("priority {}; at most {}", range.priority, firn::kMaxPriority));
      out.push_back({range.first, range.end, static_cast<std::uint8_t>(range.priority), range.duration_ns});
    }
    return m.set_retention(firn::SeqId{seq}, out);
  });
}

firn_code firn_pin(firn_manager* manager, const firn_key* keys, size_t key_count, int64_t ttl_ns,
                   firn_pin_report* report) {
  return on(manager, {}, [&](Manager& m) -> Status {
    if (report) FIRN_TRY(check_head(report, "firn_pin_report"));
    FIRN_ASSIGN(const std::span<const firn::Key> given, read_keys(keys, key_count));
    FIRN_ASSIGN(const firn::PinReport made, m.pin(given, ttl_ns));
    if (!report) return {};
    firn_pin_report out{};
    FIRN_RESULT(out);
    out.pinned = made.pinned, out.absent = made.absent;
    out.pinned_bytes = made.pinned_bytes, out.budget_bytes = made.budget_bytes;
    return write_result(out, report, "firn_pin_report");
  });
}

firn_code firn_unpin(firn_manager* manager, const firn_key* keys, size_t key_count, uint32_t* unpinned) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::span<const firn::Key> given, read_keys(keys, key_count));
    const std::uint32_t count = m.unpin(given);
    if (unpinned) *unpinned = count;
    return {};
  });
}

firn_code firn_acquire_lease(firn_manager* manager, const char* owner, const firn_key* keys, size_t key_count,
                             int64_t ttl_ns, firn_lease* lease) {
  return on(manager, {{owner, "owner"}, {lease, "lease"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::span<const firn::Key> given, read_keys(keys, key_count));
    FIRN_ASSIGN(const firn::LeaseId made, m.acquire_lease(owner, given, ttl_ns));
    *lease = index(made);
    return {};
  });
}

firn_code firn_renew_lease(firn_manager* manager, firn_lease lease, int64_t ttl_ns) {
  return on(manager, {}, [&](Manager& m) { return m.renew_lease(firn::LeaseId{lease}, ttl_ns); });
}

firn_code firn_release_lease(firn_manager* manager, firn_lease lease, int32_t* released) {
  return on(manager, {}, [&](Manager& m) {
    const bool was_held = m.release_lease(firn::LeaseId{lease});
    if (released) *released = was_held;
    return Status();
  });
}

firn_code firn_leases_json(const firn_manager* manager, char** json) {
  return on(manager, {{json, "json"}}, [&](Manager& m) {
    JsonText out = json_line();
    out.begin_array();
    for (const firn::LeaseInfo& lease : m.leases()) {
      out.begin_object();
      out.field("id", index(lease.id));
      out.field("owner", lease.owner);
      out.field("blocks", lease.blocks);
      out.field("bytes", lease.bytes);
      out.field("acquired_ns", lease.acquired.ns);
      out.field("deadline_ns", lease.deadline.ns);
      out.end_object();
    }
    out.end_array();
    return give_text(out.take(), json), Status();
  });
}

firn_code firn_set_family(firn_manager* manager, const firn_key* keys, size_t key_count) {
  return on(manager, {}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::span<const firn::Key> given, read_keys(keys, key_count));
    return m.set_family(given);
  });
}

// --- namespaces ---

firn_code firn_set_quota(firn_manager* manager, const void* name_space, size_t name_space_bytes,
                         const firn_quota* quota) {
  return on(manager, {{quota, "quota"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::string_view name, read_bytes(name_space, name_space_bytes, "name_space"));
    return m.set_quota(name, {quota->device_floor, quota->device_ceiling, quota->host_floor, quota->host_ceiling});
  });
}

firn_code firn_get_usage(const firn_manager* manager, const void* name_space, size_t name_space_bytes,
                         firn_usage* usage) {
  return on(manager, {{usage, "usage"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::string_view name, read_bytes(name_space, name_space_bytes, "name_space"));
    const firn::NamespaceUsage made = m.usage(name);
    firn_usage out{};
    FIRN_RESULT(out);
    out.quota = {made.quota.device_floor, made.quota.device_ceiling, made.quota.host_floor, made.quota.host_ceiling};
    out.device_bytes = made.device_bytes, out.host_bytes = made.host_bytes;
    out.sequences = made.sequences, out.blocks = made.blocks;
    return write_result(out, usage, "firn_usage");
  });
}

firn_code firn_namespace_tag(const firn_manager* manager, const void* name_space, size_t name_space_bytes,
                             uint64_t* tag) {
  return on(manager, {{tag, "tag"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::string_view name, read_bytes(name_space, name_space_bytes, "name_space"));
    *tag = m.namespace_tag(name);
    return {};
  });
}

// --- knowing ---

firn_code firn_take_events(const firn_manager* manager, uint64_t since, size_t max, int32_t all, const void* name_space,
                           size_t name_space_bytes, firn_event** events, size_t* event_count, uint64_t* next,
                           int32_t* gap) {
  return on(manager, {{events, "events"}, {event_count, "event_count"}, {next, "next"}, {gap, "gap"}},
            [&](Manager& m) -> Status {
              FIRN_ASSIGN(const std::optional<std::string_view> scope, scope_of(all, name_space, name_space_bytes));
              FIRN_ASSIGN(const firn::EventBatch batch, m.take_events(since, max, scope));
              give_entries(batch.events, events, event_count, [](const firn::Event& event) {
                return firn_event{event.sequence, static_cast<uint32_t>(event.kind), event.tiers_before,
                                  place_of(event.block)};
              });
              *next = batch.next;
              *gap = batch.gap;
              return {};
            });
}

firn_code firn_event_snapshot(const firn_manager* manager, int32_t all, const void* name_space, size_t name_space_bytes,
                              firn_key_place** places, size_t* place_count, uint64_t* sequence) {
  return on(manager, {{places, "places"}, {place_count, "place_count"}, {sequence, "sequence"}},
            [&](Manager& m) -> Status {
              FIRN_ASSIGN(const std::optional<std::string_view> scope, scope_of(all, name_space, name_space_bytes));
              FIRN_ASSIGN(const firn::EventSnapshot snapshot, m.event_snapshot(scope));
              give_entries(snapshot.blocks, places, place_count, place_of);
              *sequence = snapshot.sequence;
              return {};
            });
}

firn_code firn_explain_json(const firn_manager* manager, const firn_token* tokens, size_t token_count,
                            const firn_begin_params* params, char** json) {
  return on(manager, {{json, "json"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const std::span<const firn_token> given, read_tokens(tokens, token_count));
    FIRN_ASSIGN(const firn::BeginOptions options, begin_options(params));
    const firn::Explanation why = m.explain(given, options);
    JsonText out = json_line();
    out.begin_object();
    out.field("text", why.text);
    out.field("first_miss", why.first_miss);
    out.key("blocks");
    out.begin_array();
    for (const firn::BlockVerdict& block : why.blocks) {
      out.begin_object();
      out.field("key", firn::to_hex(block.key));
      out.field("reason", firn::to_string(block.reason));
      out.field("tiers", block.tiers);
      out.field("fidelity", firn::to_string(block.fidelity));
      out.field("shared", block.shared);
      out.end_object();
    }
    out.end_array();
    out.end_object();
    give_text(out.take(), json);
    return {};
  });
}

firn_code firn_stats_json(const firn_manager* manager, char** json) {
  return on(manager, {{json, "json"}},
            [&](Manager& m) { return give_text(firn::stats_json(m.stats()), json), Status(); });
}

firn_code firn_stat(const firn_manager* manager, const char* name, double* value) {
  return on(manager, {{name, "name"}, {value, "value"}}, [&](Manager& m) -> Status {
    for (const firn::StatFigure& figure : figures(m.stats()))
      if (figure.name == name) return *value = figure.value, Status();
    return invalid(fmt::format("there is no figure {}; firn_stats_json has their names", name));
  });
}

firn_code firn_ledger_json(const firn_manager* manager, char** json) {
  return on(manager, {{json, "json"}}, [&](Manager& m) {
    const firn::Ledger& ledger = m.ledger();
    JsonText out = json_line();
    out.begin_object();
    for (int i = 0; i < static_cast<int>(firn::Budget::kCount); ++i) {
      const auto budget = static_cast<firn::Budget>(i);
      out.key(to_string(budget));
      out.begin_object();
      out.field("limit", ledger.limit(budget));
      out.field("spent", ledger.spent(budget));
      out.field("peak", ledger.peak(budget));
      out.key("accounts");
      out.begin_object();
      for (int j = 0; j < static_cast<int>(firn::Account::kCount); ++j)
        if (const auto account = static_cast<firn::Account>(j); budget_of(account) == budget)
          out.field(to_string(account), ledger.spent(account));
      out.end_object();
      out.end_object();
    }
    out.end_object();
    return give_text(out.take(), json), Status();
  });
}

firn_code firn_layout_json(const firn_manager* manager, char** json) {
  return on(manager, {{json, "json"}}, [&](Manager& m) {
    const firn::PageLayout& layout = m.layout();
    JsonText out = json_line();
    out.begin_object();
    out.field("page_bytes", layout.page_bytes);
    out.field("layer_count", layout.layer_count);
    out.key("page_sets");
    out.begin_array();
    for (const firn::PageSet& set : layout.sets) {
      out.begin_object();
      out.field("group", index(set.group));
      out.field("kind", static_cast<int>(set.kind));
      out.field("first_layer", set.first_layer);
      out.field("layer_count", set.layer_count);
      out.field("window", set.window);
      out.field("block_bytes", set.block_bytes());
      out.end_object();
    }
    out.end_array();
    out.end_object();
    return give_text(out.take(), json), Status();
  });
}

firn_code firn_effective_config_json(const firn_manager* manager, char** json) {
  return on(manager, {{json, "json"}}, [&](Manager& m) {
    JsonText out = json_line();
    out.begin_object();
    for (const firn::ConfigSetting& setting : firn::settings_of(m.config())) out.field(setting.key, setting.value);
    out.end_object();
    return give_text(out.take(), json), Status();
  });
}

firn_code firn_dump_json(const firn_manager* manager, char** json) {
  return on(manager, {{json, "json"}}, [&](Manager& m) { return give_text(m.dump(), json), Status(); });
}

firn_code firn_hash_slot(const firn_manager* manager, uint32_t slot, uint64_t* hash) {
  return on(manager, {{hash, "hash"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(*hash, m.hash_slot(firn::SlotId{slot}));
    return {};
  });
}

firn_code firn_get_slot_info(const firn_manager* manager, uint32_t slot, firn_slot_info* info) {
  return on(manager, {{info, "info"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const firn::SlotInfo made, m.slot_info(firn::SlotId{slot}));
    firn_slot_info out{};
    FIRN_RESULT(out);
    out.key = key_of(made.key);
    out.references = made.references;
    out.page_set = index(made.page_set);
    out.empty = made.empty;
    return write_result(out, info, "firn_slot_info");
  });
}

firn_code firn_slot_view(const firn_manager* manager, uint32_t slot, uint32_t layer, firn_block_view* view) {
  return on(manager, {{view, "view"}}, [&](Manager& m) -> Status {
    FIRN_ASSIGN(const firn::BlockView made, m.slot_view(firn::SlotId{slot}, layer));
    *view = {made.k, made.v, made.token_stride, made.head_stride, made.v_token_stride, made.v_head_stride};
    return {};
  });
}

firn_code firn_reuse_order(const firn_manager* manager, uint32_t* slots, size_t capacity, size_t* count) {
  return on(manager, {{count, "count"}}, [&](Manager& m) {
    return write_entries(m.reuse_order(), slots, capacity, count, [](firn::SlotId slot) { return index(slot); });
  });
}

firn_code firn_verify(const firn_manager* manager, size_t* violations, char** json) {
  return on(manager, {{violations, "violations"}}, [&](Manager& m) {
    const firn::Violations broken = m.verify();
    if (json) {
      JsonText out = json_line();
      out.begin_array();
      for (const std::string& line : broken) out.value(line);
      out.end_array();
      give_text(out.take(), json);
    }
    *violations = broken.size();
    return Status();
  });
}

}  // extern "C"

// --- what cold.cpp shares ---
namespace firn::capi {

firn_code report(const Status& status) noexcept { return ::report(status); }
void remember(const char* message) noexcept { ::remember(message); }
Result<ModelSpec> read_model(const firn_model_params* given) { return ::read_model(given); }

}  // namespace firn::capi
