// module.cpp: firn for Python. Arguments are translated and statuses become exceptions; nothing is decided here.
//
// Every call lets go of the interpreter's lock: it may wait for the manager's lock, whose holder may be calling a
// Python clock. Arrays are never copied where their type fits.
#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "firn/manager.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace firn::python {
namespace {

// --- failures ---

std::array<PyObject*, 7> exceptions{};  // by Code; kept for the life of the process, as CPython's own are

[[noreturn]] void raise(const Status& status) {
  PyErr_SetString(exceptions[static_cast<std::size_t>(status.code())], status.message().c_str());
  throw nb::python_error();
}

// Runs a call without the interpreter's lock. Its Status or Result is unpacked with the lock again.
template <class Call>
auto unlocked(Call&& call) {
  nb::gil_scoped_release release;
  return call();
}

template <class Call>
auto checked(Call&& call) {
  auto outcome = unlocked(std::forward<Call>(call));
  if constexpr (std::is_same_v<decltype(outcome), Status>) {
    if (!outcome.ok()) raise(outcome);
  } else {
    if (!outcome.ok()) raise(outcome.status());
    return std::move(outcome).value();
  }
}

// --- arguments ---

// Tokens of a prompt: an int32 array as it is, anything else with integers in it by a copy.
class Tokens {
 public:
  explicit Tokens(nb::handle given) {
    using Array = nb::ndarray<const TokenId, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    if (nb::ndarray_check(given) && nb::try_cast(given, array_, /*convert=*/false)) {
      view_ = std::span(array_.data(), array_.size());
      return;
    }
    const nb::object list = nb::steal(PySequence_Fast(given.ptr(), "tokens: an array or a sequence of integers"));
    if (!list.is_valid()) throw nb::python_error();
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(list.ptr());
    copy_.reserve(static_cast<std::size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i) copy_.push_back(token(PySequence_Fast_GET_ITEM(list.ptr(), i)));
    view_ = copy_;
    static_assert(std::is_same_v<Array::Scalar, const TokenId>);
  }
  operator std::span<const TokenId>() const { return view_; }  // NOLINT: that is what it is

 private:
  static TokenId token(PyObject* item) {
    const nb::object number = nb::steal(PyNumber_Index(item));
    if (!number.is_valid()) throw nb::python_error();
    int overflow = 0;
    const long value = PyLong_AsLongAndOverflow(number.ptr(), &overflow);
    if (overflow != 0 || value != static_cast<TokenId>(value)) {
      PyErr_SetString(PyExc_OverflowError, "tokens: each fits 32 bits");
      throw nb::python_error();
    }
    return static_cast<TokenId>(value);
  }
  nb::ndarray<const TokenId, nb::ndim<1>, nb::c_contig, nb::device::cpu> array_;
  std::vector<TokenId> copy_;
  std::span<const TokenId> view_;
};

// A namespace, a salt: str (as UTF-8) or bytes.
std::string bytes_of(nb::handle given) {
  if (PyBytes_Check(given.ptr()))
    return {PyBytes_AS_STRING(given.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(given.ptr()))};
  return nb::cast<std::string>(given);
}

Digest digest_of(const nb::bytes& bytes, const char* what) {
  Digest digest;
  if (bytes.size() != digest.bytes.size())
    throw nb::value_error(fmt::format("{}: 32 bytes, not {}", what, bytes.size()).c_str());
  std::memcpy(digest.bytes.data(), bytes.c_str(), digest.bytes.size());
  return digest;
}

nb::bytes bytes_from(const Digest& digest) {
  return nb::bytes(reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size());
}

nb::object key_or_none(const Key& key) { return key.is_zero() ? nb::none() : nb::object(bytes_from(key)); }

std::vector<Key> keys_of(const std::vector<nb::bytes>& given) {
  std::vector<Key> keys;
  for (const nb::bytes& key : given) keys.push_back(digest_of(key, "key"));
  return keys;
}

nb::list keys_from(const std::vector<Key>& keys) {
  nb::list list;
  for (const Key& key : keys) list.append(bytes_from(key));
  return list;
}

Fidelity fidelity_of(std::string_view name) {
  for (const Fidelity fidelity : {Fidelity::kExact, Fidelity::kLossy, Fidelity::kDerived})
    if (to_string(fidelity) == name) return fidelity;
  throw nb::value_error(fmt::format("min_fidelity: exact, lossy or derived, not {}", name).c_str());
}

using Media = std::vector<std::tuple<std::uint32_t, std::uint32_t, nb::bytes>>;  // first token, tokens, digest

KeyExtras extras_of(nb::handle adapter, const Media& media) {
  KeyExtras extras;
  extras.adapter = bytes_of(adapter);
  for (const auto& [first_token, token_count, digest] : media)
    extras.media.push_back({first_token, token_count, std::string(digest.c_str(), digest.size())});
  if (const Status status = validate(extras); !status.ok()) raise(status);
  return extras;
}

Admission admission_of(std::string_view name) {
  if (name == "always") return Admission::kAlways;
  if (name == "must_fit") return Admission::kMustFit;
  if (name == "reserve") return Admission::kReserve;
  throw nb::value_error(fmt::format("admission: always, must_fit or reserve, not {}", name).c_str());
}

// BeginOptions with what its views look at.
struct Options {
  std::string name_space, shared_scope;
  BeginOptions options;
};

// One array of 32-bit numbers that the caller owns from now on: the vector moves into it.
nb::object array_of(std::vector<SlotId> slots) {
  auto owned = std::make_unique<std::vector<SlotId>>(std::move(slots));
  auto* data = reinterpret_cast<std::uint32_t*>(owned->data());
  const std::size_t size = owned->size();
  nb::capsule owner(owned.release(), [](void* p) noexcept { delete static_cast<std::vector<SlotId>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<1>>(data, {size}, owner));
}

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

// Rows times heads times elements must lie in the array: an address says nothing about its length.
void check_floats(std::size_t have, std::span<const StepRows> rows, std::uint64_t row_size, const char* name) {
  std::uint64_t last = 0;
  for (const StepRows& row : rows) last = std::max<std::uint64_t>(last, std::uint64_t{row.row} + row.row_count);
  if (have < last * row_size)
    throw nb::value_error(
        fmt::format("{}: {} numbers, but {} rows need {}", name, have, last, last * row_size).c_str());
}

// --- the manager ---

class PyManager {
 public:
  PyManager(const ModelSpec& model, const std::optional<std::string>& path,
            const std::vector<std::pair<std::string, std::string>>& settings, nb::object clock)
      : clock_(std::move(clock)) {
    std::vector<ConfigInput::Override> overrides;
    for (const auto& [key, value] : settings) overrides.push_back({key, value, "Manager()"});
    ManagerEnvironment environment;
    if (!clock_.is_none()) environment.clock = [this] { return now(); };
    manager_ = checked([&]() -> Result<std::unique_ptr<Manager>> {
      ConfigInput input;
      input.overrides = overrides;
      FIRN_ASSIGN(const LoadedConfig loaded, path ? load_config_file(*path, overrides) : load_config(input));
      return Manager::create(loaded.config, model, environment);
    });
  }
  ~PyManager() {
    nb::gil_scoped_release release;  // the worker may be asking the clock
    manager_.reset();
  }
  Manager& operator*() { return *manager_; }
  Manager* operator->() { return manager_.get(); }

 private:
  Instant now() {
    nb::gil_scoped_acquire acquire;
    try {
      last_ = Instant{nb::cast<std::int64_t>(clock_())};
    } catch (nb::python_error& error) {
      error.discard_as_unraisable("firn's clock");  // time stands still; a policy must not fail
    } catch (const std::exception&) {
    }
    return last_;
  }
  nb::object clock_;
  Instant last_;
  std::unique_ptr<Manager> manager_;  // last: it calls the clock
};

Options options_of(nb::handle name_space, bool read_cache, std::string_view min_fidelity, nb::handle shared_scope,
                   std::optional<std::uint32_t> shared_tokens, bool share, std::string_view admission,
                   std::uint32_t expected_tokens, nb::handle adapter, const Media& media,
                   std::optional<std::uint32_t> max_reuse_tokens, bool drop_last_block) {
  Options out;
  out.name_space = bytes_of(name_space);
  out.options.read_cache = read_cache;
  out.options.min_fidelity = fidelity_of(min_fidelity);
  if (!shared_scope.is_none()) {
    out.shared_scope = bytes_of(shared_scope);
    out.options.shared_scope = std::string_view();
  }
  if (shared_tokens) out.options.shared_tokens = *shared_tokens;
  out.options.share = share;
  out.options.admission = admission_of(admission);
  out.options.expected_tokens = expected_tokens;
  out.options.extras = extras_of(adapter, media);
  if (max_reuse_tokens) out.options.max_reuse_tokens = *max_reuse_tokens;
  out.options.drop_last_block = drop_last_block;
  return out;
}

// The views point into an Options that has stopped moving.
const BeginOptions& settled(Options& options) {
  options.options.name_space = options.name_space;
  if (options.options.shared_scope) options.options.shared_scope = options.shared_scope;
  return options.options;
}

#define FIRN_OPTION_PARAMETERS                                                                    \
  nb::handle name_space, bool read_cache, std::string_view min_fidelity, nb::handle shared_scope, \
      std::optional<std::uint32_t> shared_tokens, bool share, std::string_view admission,         \
      std::uint32_t expected_tokens, nb::handle adapter, const Media &media,                      \
      std::optional<std::uint32_t> max_reuse_tokens, bool drop_last_block
#define FIRN_OPTION_VALUES                                                                                       \
  name_space, read_cache, min_fidelity, shared_scope, shared_tokens, share, admission, expected_tokens, adapter, \
      media, max_reuse_tokens, drop_last_block
#define FIRN_OPTION_ARGUMENTS                                                                                       \
  nb::kw_only(), "name_space"_a = "", "read_cache"_a = true, "min_fidelity"_a = "derived",                          \
                 "shared_scope"_a = nb::none(), "shared_tokens"_a = nb::none(), "share"_a = false,                  \
                 "admission"_a = "always", "expected_tokens"_a = 0, "adapter"_a = "", "media"_a = nb::make_tuple(), \
                 "max_reuse_tokens"_a = nb::none(), "drop_last_block"_a = false

void bind_values(nb::module_& m) {
  nb::class_<GroupSpec>(m, "Group", "Layers that share geometry and lifetime.")
      .def(
          "__init__",
          [](GroupSpec* self, std::uint32_t layer_count, std::uint32_t kv_heads, std::uint32_t head_dim,
             std::optional<std::uint32_t> value_dim, std::string_view kind, std::string_view dtype,
             std::uint32_t window, std::uint32_t query_heads) {
            constexpr std::string_view kinds[] = {"full", "sliding_window", "latent", "state"};
            GroupSpec group;
            const auto found = std::find(std::begin(kinds), std::end(kinds), kind);
            if (found == std::end(kinds)) throw nb::value_error("kind: full, sliding_window, latent or state");
            group.kind = static_cast<GroupKind>(found - std::begin(kinds) + 1);
            group.layer_count = layer_count;
            bool known = false;
            for (const Dtype one : {Dtype::kF16, Dtype::kBf16, Dtype::kF32})
              if (to_string(one) == dtype) group.kv.dtype = one, known = true;
            if (!known) throw nb::value_error("dtype: f16, bf16 or f32");
            group.kv.kv_heads = kv_heads;
            group.kv.head_dim = head_dim;
            group.kv.value_dim = value_dim.value_or(head_dim);
            group.window = window;
            group.query_heads = query_heads;
            new (self) GroupSpec(group);
          },
          "layer_count"_a, "kv_heads"_a, "head_dim"_a, "value_dim"_a = nb::none(), nb::kw_only(), "kind"_a = "full",
          "dtype"_a = "f16", "window"_a = 0, "query_heads"_a = 0)
      .def_ro("layer_count", &GroupSpec::layer_count)
      .def_ro("window", &GroupSpec::window)
      .def_prop_ro("token_bytes", &GroupSpec::token_bytes);

  nb::class_<ModelSpec>(m, "Model",
                        "What firn must know of a model: geometry, and all that makes two caches different.")
      .def(
          "__init__",
          [](ModelSpec* self, const std::vector<GroupSpec>& groups, std::string name, const nb::bytes& weights,
             nb::handle adapters, std::string_view rotation, std::uint32_t rotation_dims,
             const std::vector<float>& inverse_frequencies, float attention_factor, std::uint32_t shard_rank,
             std::uint32_t shard_count) {
            ModelSpec model;
            model.name = std::move(name);
            if (weights.size() != 0) model.weights = digest_of(weights, "weights");
            model.adapters = bytes_of(adapters);
            model.groups = groups;
            constexpr std::string_view pairings[] = {"none", "adjacent", "halves"};
            const auto found = std::find(std::begin(pairings), std::end(pairings), rotation);
            if (found == std::end(pairings)) throw nb::value_error("rotation: none, adjacent or halves");
            model.rotation = {static_cast<RotationSpec::Pairing>(found - std::begin(pairings)), rotation_dims,
                              inverse_frequencies, attention_factor};
            model.shard_rank = shard_rank;
            model.shard_count = shard_count;
            if (const Status status = validate(model); !status.ok()) raise(status);
            new (self) ModelSpec(std::move(model));
          },
          "groups"_a, nb::kw_only(), "name"_a = "", "weights"_a = nb::bytes(""), "adapters"_a = "",
          "rotation"_a = "none", "rotation_dims"_a = 0, "inverse_frequencies"_a = std::vector<float>(),
          "attention_factor"_a = 1.0f, "shard_rank"_a = 0, "shard_count"_a = 1)
      .def_ro("name", &ModelSpec::name)
      .def_prop_ro("token_bytes", &ModelSpec::token_bytes)
      .def_prop_ro("block_bytes", &ModelSpec::block_bytes)
      .def_prop_ro("identity", [](const ModelSpec& model) { return bytes_from(model_identity(model)); });

  nb::class_<KeyChain>(m, "KeyChain", "Names blocks of one model in one namespace (docs/keys.md).")
      .def(
          "__init__",
          [](KeyChain* self, const nb::bytes& identity, nb::handle salt) {
            new (self) KeyChain(digest_of(identity, "identity"), bytes_of(salt));
          },
          "identity"_a, "salt"_a = "")
      .def_prop_ro("root", [](const KeyChain& chain) { return bytes_from(chain.root()); })
      .def(
          "next",
          [](const KeyChain& chain, const std::optional<nb::bytes>& parent, nb::handle tokens, const nb::bytes& extra) {
            const Tokens given(tokens);
            const std::span<const TokenId> block = given;
            if (block.size() != kBlockTokens) throw nb::value_error("tokens: a block has 16 of them");
            if (extra.size() > 4096) throw nb::value_error("extra: at most 4,096 bytes");
            return bytes_from(chain.next(parent ? digest_of(*parent, "parent") : Key{}, block,
                                         std::as_bytes(std::span(extra.c_str(), extra.size()))));
          },
          "parent"_a.none(), "tokens"_a, "extra"_a = nb::bytes(""))
      .def(
          "keys",
          [](const KeyChain& chain, nb::handle tokens, nb::handle adapter, const Media& media) {
            const Tokens given(tokens);
            const KeyExtras extras = extras_of(adapter, media);
            return keys_from(unlocked([&] { return chain.keys(given, extras); }));
          },
          "tokens"_a, nb::kw_only(), "adapter"_a = "", "media"_a = nb::make_tuple());

  nb::class_<PrefixMatch>(m, "PrefixMatch")
      .def_ro("tokens", &PrefixMatch::tokens)
      .def_ro("tokens_partial", &PrefixMatch::tokens_partial)
      .def_ro("tokens_on_device", &PrefixMatch::tokens_on_device)
      .def_ro("tokens_on_host", &PrefixMatch::tokens_on_host)
      .def_ro("tokens_found", &PrefixMatch::tokens_found)
      .def_ro("tokens_full", &PrefixMatch::tokens_full)
      .def_ro("recompute_from", &PrefixMatch::recompute_from)
      .def_prop_ro("first_miss", [](const PrefixMatch& match) { return to_string(match.first_miss); })
      .def("__repr__", [](const PrefixMatch& match) {
        return fmt::format("PrefixMatch(tokens={}, first_miss='{}')", match.tokens, to_string(match.first_miss));
      });
  nb::class_<Begun>(m, "Begun")
      .def_prop_ro("seq", [](const Begun& begun) { return index(begun.seq); })
      .def_ro("match", &Begun::match);
  nb::class_<CopyOrder>(m, "CopyOrder")
      .def_prop_ro("from_slot", [](const CopyOrder& order) { return index(order.from); })
      .def_prop_ro("to_slot", [](const CopyOrder& order) { return index(order.to); })
      .def_ro("tokens", &CopyOrder::tokens)
      .def_prop_ro("page_set", [](const CopyOrder& order) { return static_cast<unsigned>(index(order.page_set)); });
  nb::class_<StepPlan>(m, "StepPlan")
      .def_ro("chunk_limit", &StepPlan::chunk_limit)
      .def_ro("chunk_limit_moved", &StepPlan::chunk_limit_moved)
      .def_ro("blocks_needed", &StepPlan::blocks_needed)
      .def_ro("staging_bytes", &StepPlan::staging_bytes)
      .def_ro("workspace_bytes", &StepPlan::workspace_bytes)
      .def_prop_ro("blocked", [](const StepPlan& plan) { return plan.blocked.message(); });
  nb::class_<StepRows>(m, "StepRows", "Consecutive tokens of one sequence within append and attend.")
      .def(
          "__init__",
          [](StepRows* self, std::uint64_t seq, std::uint32_t row_count, std::uint32_t position, std::uint32_t row) {
            new (self) StepRows{SeqId{seq}, row, row_count, position};
          },
          "seq"_a, "row_count"_a, "position"_a = 0, "row"_a = 0);
  nb::class_<Fence>(m, "Fence").def("__repr__", [](const Fence& fence) {
    return fmt::format("Fence(kind={}, value={})", static_cast<int>(fence.kind), fence.value);
  });
  nb::class_<SlotInfo>(m, "SlotInfo")
      .def_prop_ro("key", [](const SlotInfo& info) { return key_or_none(info.key); })
      .def_ro("references", &SlotInfo::references)
      .def_prop_ro("page_set", [](const SlotInfo& info) { return static_cast<unsigned>(index(info.page_set)); })
      .def_ro("empty", &SlotInfo::empty);
  nb::class_<PoolResize>(m, "PoolResize")
      .def_ro("budget_bytes", &PoolResize::budget_bytes)
      .def_ro("slots", &PoolResize::slots)
      .def_ro("evicted", &PoolResize::evicted)
      .def_prop_ro("moved", [](const PoolResize& resize) {
        nb::list moves;
        for (const SlotMove& move : resize.moved)
          moves.append(nb::make_tuple(index(move.from), index(move.to), static_cast<unsigned>(index(move.page_set))));
        return moves;
      });
}

void bind_knowledge(nb::module_& m) {
  nb::class_<EventBlock>(m, "EventBlock")
      .def_prop_ro("key", [](const EventBlock& block) { return bytes_from(block.key); })
      .def_prop_ro("parent", [](const EventBlock& block) { return key_or_none(block.parent); })
      .def_prop_ro("page_set", [](const EventBlock& block) { return static_cast<unsigned>(index(block.page_set)); })
      .def_prop_ro("tiers", [](const EventBlock& block) { return static_cast<unsigned>(block.tiers); })
      .def_ro("position", &EventBlock::position)
      .def_ro("tokens", &EventBlock::tokens)
      .def_ro("name_space", &EventBlock::name_space);
  nb::class_<Event>(m, "Event")
      .def_ro("sequence", &Event::sequence)
      .def_prop_ro("kind", [](const Event& event) { return to_string(event.kind); })
      .def_prop_ro("tiers_before", [](const Event& event) { return static_cast<unsigned>(event.tiers_before); })
      .def_ro("block", &Event::block);
  nb::class_<EventBatch>(m, "EventBatch")
      .def_ro("events", &EventBatch::events)
      .def_ro("next", &EventBatch::next)
      .def_ro("gap", &EventBatch::gap);
  nb::class_<EventSnapshot>(m, "EventSnapshot")
      .def_ro("sequence", &EventSnapshot::sequence)
      .def_ro("blocks", &EventSnapshot::blocks);
  nb::class_<BlockVerdict>(m, "BlockVerdict")
      .def_prop_ro("key", [](const BlockVerdict& block) { return key_or_none(block.key); })
      .def_prop_ro("reason", [](const BlockVerdict& block) { return to_string(block.reason); })
      .def_prop_ro("tiers", [](const BlockVerdict& block) { return static_cast<unsigned>(block.tiers); })
      .def_prop_ro("fidelity", [](const BlockVerdict& block) { return to_string(block.fidelity); })
      .def_ro("shared", &BlockVerdict::shared)
      .def_prop_ro("hit", &BlockVerdict::hit);
  nb::class_<Explanation>(m, "Explanation")
      .def_ro("blocks", &Explanation::blocks)
      .def_ro("first_miss", &Explanation::first_miss)
      .def_ro("text", &Explanation::text)
      .def("__str__", [](const Explanation& why) { return why.text; });
  nb::class_<PinReport>(m, "PinReport")
      .def_ro("pinned", &PinReport::pinned)
      .def_ro("absent", &PinReport::absent)
      .def_ro("pinned_bytes", &PinReport::pinned_bytes)
      .def_ro("budget_bytes", &PinReport::budget_bytes);
  nb::class_<LeaseInfo>(m, "LeaseInfo")
      .def_prop_ro("id", [](const LeaseInfo& lease) { return index(lease.id); })
      .def_ro("owner", &LeaseInfo::owner)
      .def_ro("blocks", &LeaseInfo::blocks)
      .def_ro("bytes", &LeaseInfo::bytes)
      .def_prop_ro("acquired_ns", [](const LeaseInfo& lease) { return lease.acquired.ns; })
      .def_prop_ro("deadline_ns", [](const LeaseInfo& lease) { return lease.deadline.ns; });
  nb::class_<NamespaceUsage>(m, "NamespaceUsage")
      .def_ro("device_bytes", &NamespaceUsage::device_bytes)
      .def_ro("host_bytes", &NamespaceUsage::host_bytes)
      .def_ro("sequences", &NamespaceUsage::sequences)
      .def_ro("blocks", &NamespaceUsage::blocks);
}

void bind_sequences(nb::class_<PyManager>& manager) {
  constexpr std::int64_t kDefaultWaitNs = 30'000'000'000;
  manager
      .def(
          "match_prefix",
          [](PyManager& self, nb::handle tokens, FIRN_OPTION_PARAMETERS) {
            const Tokens given(tokens);
            Options options = options_of(FIRN_OPTION_VALUES);
            return unlocked([&] { return self->match_prefix(given, settled(options)); });
          },
          "tokens"_a, FIRN_OPTION_ARGUMENTS, "What begin() would reuse. Nothing is held.")
      .def(
          "begin",
          [](PyManager& self, nb::handle tokens, FIRN_OPTION_PARAMETERS) {
            const Tokens given(tokens);
            Options options = options_of(FIRN_OPTION_VALUES);
            return checked([&] { return self->begin(given, settled(options)); });
          },
          "tokens"_a, FIRN_OPTION_ARGUMENTS, "A sequence with the reusable part of these tokens committed.")
      .def(
          "explain",
          [](PyManager& self, nb::handle tokens, FIRN_OPTION_PARAMETERS) {
            const Tokens given(tokens);
            Options options = options_of(FIRN_OPTION_VALUES);
            return unlocked([&] { return self->explain(given, settled(options)); });
          },
          "tokens"_a, FIRN_OPTION_ARGUMENTS, "For each block of the prompt a hit and where, or the reason.")
      .def(
          "plan_step",
          [](PyManager& self, const std::vector<std::pair<std::uint64_t, std::uint32_t>>& requests) {
            std::vector<StepRequest> wanted;
            for (const auto& [seq, new_tokens] : requests) wanted.push_back({SeqId{seq}, new_tokens});
            return checked([&] { return self->plan_step(wanted); });
          },
          "requests"_a, "Of (seq, new_tokens) pairs: how many tokens can go at once.")
      .def(
          "allocate",
          [](PyManager& self, std::uint64_t seq, std::uint32_t new_tokens, std::uint32_t lookahead) {
            return checked([&] { return self->allocate(SeqId{seq}, new_tokens, lookahead); });
          },
          "seq"_a, "new_tokens"_a, "lookahead"_a = 0, "Room behind the committed tokens, all or nothing; copy orders.")
      .def(
          "append",
          [](PyManager& self, std::uint32_t layer, const std::vector<StepRows>& rows, const Floats& k,
             const Floats& v) {
            const PageSet* set = nullptr;
            for (const PageSet& one : self->layout().sets)
              if (layer >= one.first_layer && layer < one.first_layer + one.layer_count) set = &one;
            if (set) {
              check_floats(k.size(), rows, std::uint64_t{set->kv.kv_heads} * set->kv.head_dim, "k");
              check_floats(v.size(), rows, std::uint64_t{set->kv.kv_heads} * set->kv.value_dim, "v");
            }
            return checked([&] {
              return self->append(layer, rows, reinterpret_cast<DeviceAddress>(k.data()),
                                  reinterpret_cast<DeviceAddress>(v.data()));
            });
          },
          "layer"_a, "rows"_a, "k"_a.noconvert(), "v"_a.noconvert(),
          "float32 [rows][kv_heads][dim], read in place (cpu device).")
      .def(
          "attend",
          [](PyManager& self, std::uint32_t layer, const std::vector<StepRows>& rows, const Floats& q,
             const FloatsOut& out, std::uint32_t query_heads, float scale, float soft_cap,
             std::optional<FloatsOut> mass) {
            const PageSet* set = nullptr;
            for (const PageSet& one : self->layout().sets)
              if (layer >= one.first_layer && layer < one.first_layer + one.layer_count) set = &one;
            if (set) {
              check_floats(q.size(), rows, std::uint64_t{query_heads} * set->kv.head_dim, "q");
              check_floats(out.size(), rows, std::uint64_t{query_heads} * set->kv.value_dim, "out");
            }
            AttendParams params{.query_heads = query_heads, .scale = scale, .soft_cap = soft_cap};
            std::vector<std::byte> scratch;
            if (mass) {
              std::uint32_t row_count = 0;
              for (const StepRows& one : rows) row_count = std::max(row_count, one.row + one.row_count);
              if (mass->ndim() != 2 || mass->shape(0) < row_count)
                throw nb::value_error("mass is float32 [rows][blocks of the longest sequence]");
              params.mass = reinterpret_cast<DeviceAddress>(mass->data());
              params.mass_blocks = static_cast<std::uint32_t>(mass->shape(1));
              scratch.resize(Kernels::mass_bytes(query_heads, row_count, params.mass_blocks));
              params.mass_scratch = reinterpret_cast<DeviceAddress>(scratch.data());
            }
            return checked([&] {
              return self->attend(layer, rows, params, reinterpret_cast<DeviceAddress>(q.data()),
                                  reinterpret_cast<DeviceAddress>(out.data()));
            });
          },
          "layer"_a, "rows"_a, "q"_a.noconvert(), "out"_a.noconvert(), nb::kw_only(), "query_heads"_a, "scale"_a,
          "soft_cap"_a = 0.0f, "mass"_a.noconvert() = nb::none(),
          "float32 [rows][query_heads][dim]; out is written in place (cpu device). mass: float32 [rows][blocks], "
          "written "
          "too: the softmax probability that each row's heads gave to each block, summed over the heads.")
      .def(
          "commit",
          [](PyManager& self, std::uint64_t seq, nb::handle tokens) {
            const Tokens given(tokens);
            checked([&] { return self->commit(SeqId{seq}, given); });
          },
          "seq"_a, "tokens"_a)
      .def(
          "fork",
          [](PyManager& self, std::uint64_t seq) { return index(checked([&] { return self->fork(SeqId{seq}); })); },
          "seq"_a)
      .def(
          "rewind",
          [](PyManager& self, std::uint64_t seq, std::uint32_t n) {
            checked([&] { return self->rewind(SeqId{seq}, n); });
          },
          "seq"_a, "n"_a, "Keeps the first n committed tokens.")
      .def(
          "free",
          [](PyManager& self, std::uint64_t seq, const std::optional<Fence>& fence) {
            checked([&] { return self->free(SeqId{seq}, fence.value_or(Fence{})); });
          },
          "seq"_a, "fence"_a = nb::none())
      .def(
          "preempt",
          [](PyManager& self, std::uint64_t seq, const std::optional<Fence>& fence) {
            checked([&] { return self->preempt(SeqId{seq}, fence.value_or(Fence{})); });
          },
          "seq"_a, "fence"_a = nb::none())
      .def(
          "resume",
          [](PyManager& self, std::uint64_t seq) { return checked([&] { return self->resume(SeqId{seq}); }); }, "seq"_a)
      .def(
          "token_count",
          [](PyManager& self, std::uint64_t seq) { return unlocked([&] { return self->token_count(SeqId{seq}); }); },
          "seq"_a)
      .def(
          "usable_tokens",
          [](PyManager& self, std::uint64_t seq) { return unlocked([&] { return self->usable_tokens(SeqId{seq}); }); },
          "seq"_a)
      .def(
          "block_table",
          [](PyManager& self, std::uint64_t seq, std::uint8_t page_set) {
            if (page_set >= self->layout().sets.size()) throw nb::index_error("page_set");
            return array_of(unlocked([&] { return self->block_table(SeqId{seq}, PageSetId{page_set}); }));
          },
          "seq"_a, "page_set"_a = 0, nb::sig("def block_table(self, seq: int, page_set: int = 0) -> numpy.ndarray"))
      .def(
          "block_keys",
          [](PyManager& self, std::uint64_t seq) {
            return keys_from(unlocked([&] { return self->block_keys(SeqId{seq}); }));
          },
          "seq"_a, nb::sig("def block_keys(self, seq: int) -> list[bytes]"))
      .def(
          "compute_keys",
          [](PyManager& self, nb::handle tokens, nb::handle name_space) {
            const Tokens given(tokens);
            const std::string name = bytes_of(name_space);
            return keys_from(unlocked([&] { return self->compute_keys(given, name); }));
          },
          "tokens"_a, "name_space"_a = "")
      .def(
          "block_states",
          [](PyManager& self, std::uint64_t seq) {
            constexpr const char* names[] = {"filling", "resident", "stored", "loading", "lost"};
            nb::list states;
            for (const BlockState state : unlocked([&] { return self->block_states(SeqId{seq}); }))
              states.append(names[static_cast<std::size_t>(state)]);
            return states;
          },
          "seq"_a)
      // --- moving ---
      .def(
          "prefetch",
          [](PyManager& self, std::uint64_t seq) { return index(checked([&] { return self->prefetch(SeqId{seq}); })); },
          "seq"_a, "A ticket; 0: nothing to do.")
      .def(
          "done",
          [](PyManager& self, std::uint64_t ticket) { return unlocked([&] { return self->done(Ticket{ticket}); }); },
          "ticket"_a)
      .def(
          "cancel",
          [](PyManager& self, std::uint64_t ticket) { checked([&] { return self->cancel(Ticket{ticket}); }); },
          "ticket"_a)
      .def(
          "pump",
          [](PyManager& self, std::optional<std::size_t> max_jobs) {
            return unlocked([&] { return self->pump(max_jobs.value_or(~std::size_t{0})); });
          },
          "max_jobs"_a = nb::none())
      .def(
          "wait",
          [](PyManager& self, std::uint64_t ticket, std::int64_t timeout_ns) {
            checked([&] { return self->wait(Ticket{ticket}, timeout_ns); });
          },
          "ticket"_a, "timeout_ns"_a = kDefaultWaitNs)
      .def(
          "wait_idle",
          [](PyManager& self, std::int64_t timeout_ns) { checked([&] { return self->wait_idle(timeout_ns); }); },
          "timeout_ns"_a = kDefaultWaitNs)
      .def(
          "wait_room",
          [](PyManager& self, std::uint64_t seq, std::uint32_t new_tokens, std::int64_t timeout_ns) {
            checked([&] { return self->wait_room(SeqId{seq}, new_tokens, timeout_ns); });
          },
          "seq"_a, "new_tokens"_a, "timeout_ns"_a = kDefaultWaitNs)
      .def(
          "wait_fence",
          [](PyManager& self, const Fence& fence, std::int64_t timeout_ns) {
            checked([&] { return self->device().timeline().wait(fence, timeout_ns); });
          },
          "fence"_a, "timeout_ns"_a = kDefaultWaitNs)
      .def(
          "empty_pool",
          [](PyManager& self, std::uint8_t poison) { return checked([&] { return self->empty_pool(poison); }); },
          "poison"_a = 0xA5)
      .def(
          "resize_pool",
          [](PyManager& self, std::uint64_t budget_bytes) {
            return checked([&] { return self->resize_pool(budget_bytes); });
          },
          "budget_bytes"_a)
      .def("reset", [](PyManager& self) { checked([&] { return self->reset(); }); });
}

void bind_keeping(nb::class_<PyManager>& manager) {
  manager
      .def(
          "set_retention",
          [](PyManager& self, std::uint64_t seq,
             const std::vector<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::int64_t>>& ranges) {
            std::vector<RetentionRange> out;
            for (const auto& [first, end, priority, duration_ns] : ranges) {
              if (priority > kMaxPriority) throw nb::value_error("priority: 0 to 100");
              out.push_back({first, end, static_cast<std::uint8_t>(priority), duration_ns});
            }
            checked([&] { return self->set_retention(SeqId{seq}, out); });
          },
          "seq"_a, "ranges"_a, "Of (first, end, priority, duration_ns).")
      .def(
          "pin",
          [](PyManager& self, const std::vector<nb::bytes>& keys, std::int64_t ttl_ns) {
            const std::vector<Key> given = keys_of(keys);
            return checked([&] { return self->pin(given, ttl_ns); });
          },
          "keys"_a, "ttl_ns"_a)
      .def(
          "unpin",
          [](PyManager& self, const std::vector<nb::bytes>& keys) {
            const std::vector<Key> given = keys_of(keys);
            return unlocked([&] { return self->unpin(given); });
          },
          "keys"_a)
      .def(
          "acquire_lease",
          [](PyManager& self, std::string_view owner, const std::vector<nb::bytes>& keys, std::int64_t ttl_ns) {
            const std::vector<Key> given = keys_of(keys);
            return index(checked([&] { return self->acquire_lease(owner, given, ttl_ns); }));
          },
          "owner"_a, "keys"_a, "ttl_ns"_a)
      .def(
          "renew_lease",
          [](PyManager& self, std::uint64_t lease, std::int64_t ttl_ns) {
            checked([&] { return self->renew_lease(LeaseId{lease}, ttl_ns); });
          },
          "lease"_a, "ttl_ns"_a)
      .def(
          "release_lease",
          [](PyManager& self, std::uint64_t lease) {
            return unlocked([&] { return self->release_lease(LeaseId{lease}); });
          },
          "lease"_a)
      .def("leases", [](PyManager& self) { return unlocked([&] { return self->leases(); }); })
      .def(
          "set_family",
          [](PyManager& self, const std::vector<nb::bytes>& keys) {
            const std::vector<Key> given = keys_of(keys);
            checked([&] { return self->set_family(given); });
          },
          "keys"_a)
      .def(
          "set_quota",
          [](PyManager& self, nb::handle name_space, std::uint64_t device_floor, std::uint64_t device_ceiling,
             std::uint64_t host_floor, std::uint64_t host_ceiling) {
            const std::string name = bytes_of(name_space);
            checked([&] { return self->set_quota(name, {device_floor, device_ceiling, host_floor, host_ceiling}); });
          },
          "name_space"_a, nb::kw_only(), "device_floor"_a = 0, "device_ceiling"_a = 0, "host_floor"_a = 0,
          "host_ceiling"_a = 0)
      .def(
          "usage",
          [](PyManager& self, nb::handle name_space) {
            const std::string name = bytes_of(name_space);
            return unlocked([&] { return self->usage(name); });
          },
          "name_space"_a = "")
      .def(
          "namespace_tag",
          [](PyManager& self, nb::handle name_space) {
            const std::string name = bytes_of(name_space);
            return unlocked([&] { return self->namespace_tag(name); });
          },
          "name_space"_a);
}

nb::dict ledger_dict(const Ledger& ledger) {
  nb::dict out;
  for (int i = 0; i < static_cast<int>(Budget::kCount); ++i) {
    const auto budget = static_cast<Budget>(i);
    nb::dict one;
    one["limit"] = ledger.limit(budget);
    one["spent"] = ledger.spent(budget);
    one["peak"] = ledger.peak(budget);
    out[nb::str(to_string(budget).data())] = one;
  }
  return out;
}

void bind_knowing(nb::class_<PyManager>& manager) {
  manager
      .def(
          "take_events",
          [](PyManager& self, std::uint64_t since, std::optional<std::size_t> max, nb::handle name_space) {
            std::string name;
            if (!name_space.is_none()) name = bytes_of(name_space);
            const std::optional<std::string_view> scope =
                name_space.is_none() ? std::nullopt : std::optional<std::string_view>(name);
            return checked([&] { return self->take_events(since, max.value_or(~std::size_t{0}), scope); });
          },
          "since"_a = 0, "max"_a = nb::none(), "name_space"_a = nb::none())
      .def(
          "event_snapshot",
          [](PyManager& self, nb::handle name_space) {
            std::string name;
            if (!name_space.is_none()) name = bytes_of(name_space);
            const std::optional<std::string_view> scope =
                name_space.is_none() ? std::nullopt : std::optional<std::string_view>(name);
            return checked([&] { return self->event_snapshot(scope); });
          },
          "name_space"_a = nb::none())
      .def(
          "stats",
          [](PyManager& self) {
            nb::dict out;
            for (const StatFigure& figure : unlocked([&] { return figures(self->stats()); }))
              if (figure.name.ends_with("_perc")) {
                out[nb::str(figure.name.c_str())] = figure.value;
              } else {
                out[nb::str(figure.name.c_str())] = static_cast<std::uint64_t>(figure.value);
              }
            return out;
          },
          nb::sig("def stats(self) -> dict[str, float]"))
      .def("ledger", [](PyManager& self) { return ledger_dict(self->ledger()); })
      .def(
          "dump", [](PyManager& self) { return unlocked([&] { return self->dump(); }); }, "JSON: who holds what.")
      .def("config",
           [](PyManager& self) {
             nb::dict out;
             for (const ConfigSetting& setting : settings_of(self->config()))
               out[nb::str(setting.key.c_str())] = setting.value;
             return out;
           })
      .def(
          "page_sets",
          [](PyManager& self) {
            nb::list sets;
            for (const PageSet& set : self->layout().sets)
              sets.append(nb::make_tuple(index(set.group), set.first_layer, set.layer_count));
            return sets;
          },
          "Of each page set: group, first layer, layer count.")
      .def(
          "hash_slot",
          [](PyManager& self, std::uint32_t slot) { return checked([&] { return self->hash_slot(SlotId{slot}); }); },
          "slot"_a)
      .def(
          "slot_info",
          [](PyManager& self, std::uint32_t slot) { return checked([&] { return self->slot_info(SlotId{slot}); }); },
          "slot"_a)
      .def(
          "reuse_order", [](PyManager& self) { return array_of(unlocked([&] { return self->reuse_order(); })); },
          nb::sig("def reuse_order(self) -> numpy.ndarray"))
      .def(
          "verify", [](PyManager& self) { return unlocked([&] { return self->verify(); }); },
          "What is broken; an empty list: nothing.");
}

void bind_exceptions(nb::module_& m) {
  const auto make = [&](const char* name, nb::handle bases) {
    const std::string full = std::string("firn.") + name;
    PyObject* made = PyErr_NewException(full.c_str(), bases.ptr(), nullptr);
    m.attr(name) = nb::borrow(made);
    return made;
  };
  PyObject* error = make("Error", PyExc_Exception);
  exceptions[static_cast<std::size_t>(Code::kOk)] = error;
  exceptions[static_cast<std::size_t>(Code::kInvalidArgument)] =
      make("InvalidArgument", nb::make_tuple(nb::borrow(error), nb::borrow(PyExc_ValueError)));
  exceptions[static_cast<std::size_t>(Code::kNoSpace)] = make("NoSpace", error);
  exceptions[static_cast<std::size_t>(Code::kUnavailable)] = make("Unavailable", error);
  exceptions[static_cast<std::size_t>(Code::kCorrupt)] = make("Corrupt", error);
  exceptions[static_cast<std::size_t>(Code::kIo)] = make("IoError", error);
}

}  // namespace
}  // namespace firn::python

NB_MODULE(_firn, m) {
  using namespace firn::python;
  m.attr("__version__") = "0.1.0";
  m.attr("BLOCK_TOKENS") = firn::kBlockTokens;
  m.attr("NULL_SLOT") = 0u;
  m.attr("NO_SLOT") = index(firn::SlotId::kNone);
  bind_exceptions(m);
  bind_values(m);
  bind_knowledge(m);
  m.def(
      "hash_bytes",
      [](const nb::bytes& bytes) {
        firn::Hasher hasher;
        hasher.update(std::as_bytes(std::span(bytes.c_str(), bytes.size())));
        return bytes_from(hasher.finish());
      },
      "bytes"_a, "BLAKE3, for model files and the like.");
  m.def(
      "block_extra",
      [](std::uint64_t first_token, nb::handle adapter, const Media& media) {
        const std::vector<std::byte> extra = block_extra(extras_of(adapter, media), first_token);
        return nb::bytes(reinterpret_cast<const char*>(extra.data()), extra.size());
      },
      "first_token"_a, nb::kw_only(), "adapter"_a = "", "media"_a = nb::make_tuple(),
      "What goes into the key of the block with this first token. media: (first_token, token_count, digest).");
  nb::class_<PyManager> manager(m, "Manager");
  manager.def(nb::init<const firn::ModelSpec&, const std::optional<std::string>&,
                       const std::vector<std::pair<std::string, std::string>>&, nb::object>(),
              "model"_a, "config"_a.none(), "settings"_a, "clock"_a.none());
  bind_sequences(manager);
  bind_keeping(manager);
  bind_knowing(manager);
}
