// module.cpp: firn for Python. Arguments are translated and statuses become exceptions; nothing is decided here.
//
// Every call lets go of the interpreter's lock while the manager works, and no thread of the manager's ever asks for
// it: a clock in Python is read by the calls themselves. Arrays are never copied where their type fits. Whatever
// converting an argument may run (__index__ is the caller's code) runs before anything of the manager is touched.
#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/cpu/half.h"
#include "firn/manager.h"
#include "python/src/cold.h"
#include "python/src/convert.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace firn::python {
namespace {

// --- arguments ---

constexpr std::size_t kMaxTokens = 1 << 26;  // of a prompt: as max_sequence_tokens

// Tokens of a prompt: an int32 array as it is, anything else with integers in it by a copy.
class Tokens {
 public:
  explicit Tokens(nb::handle given) {
    if (nb::ndarray_check(given) && nb::try_cast(given, array_, /*convert=*/false)) {
      view_ = std::span(array_.data(), array_.size());
    } else {
      const nb::tuple items = items_of(given, "tokens", "an array or a sequence of integers");
      copy_.reserve(items.size());
      for (const nb::handle item : items) copy_.push_back(integer<TokenId>(item, "tokens"));
      view_ = copy_;
    }
    if (view_.size() > kMaxTokens) refuse(PyExc_ValueError, fmt::format("tokens: at most {}", kMaxTokens));
  }
  operator std::span<const TokenId>() const { return view_; }  // NOLINT: that is what it is

 private:
  nb::ndarray<const TokenId, nb::ndim<1>, nb::c_contig, nb::device::cpu> array_;
  std::vector<TokenId> copy_;
  std::span<const TokenId> view_;
};

KeyExtras extras_of(nb::handle adapter, nb::handle media) {
  constexpr std::string_view what = "a sequence of (first_token, token_count, digest)";
  KeyExtras extras;
  extras.adapter = bytes_of(adapter, "adapter");
  for (const nb::handle item : items_of(media, "media", what)) {
    const nb::tuple fields = fields_of(item, "media", what, 3);
    if (!PyBytes_Check(fields[2].ptr()))
      refuse(PyExc_TypeError, fmt::format("media: digest is bytes, not {}", type_of(fields[2])));
    const auto digest = nb::borrow<nb::bytes>(fields[2]);
    extras.media.push_back({integer<std::uint32_t>(fields[0], "media: first_token"),
                            integer<std::uint32_t>(fields[1], "media: token_count"),
                            std::string(digest.c_str(), digest.size())});
  }
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

// --- arrays of keys, values, queries and results ---

enum class Element { kF32, kF16, kBf16 };

std::uint16_t bf16_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // a quiet NaN
  return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

float float_of(std::uint16_t value, Element element) {
  if (element == Element::kBf16) return std::bit_cast<float>(std::uint32_t{value} << 16);
  const std::uint32_t sign = (value & 0x8000u) << 16, exponent = (value >> 10) & 31u, mantissa = value & 0x3FFu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float small = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -small : small;
}

std::uint16_t half_of(float value, Element element) {
  return element == Element::kBf16 ? bf16_of(value) : cpu::f16_of(value);
}

struct Axis {
  std::string_view name;
  std::uint64_t size;
  bool least = false;  // or more
};

// An array that a caller gave, where it lies: float32, float16, bfloat16 (ml_dtypes', a torch tensor's, or its bits as
// uint16), in C order, on the host. Every refusal names the argument.
class Array {
 public:
  Array(nb::handle given, std::string name, bool written, std::initializer_list<Axis> axes) : name_(std::move(name)) {
    nb::object array = nb::borrow(given);
    // NumPy hands a type that is not its own to nobody: its bits are as good.
    if (nb::hasattr(array, "dtype") && nb::hasattr(array, "view") &&
        nb::str(nb::handle(array.attr("dtype"))).equal(nb::str("bfloat16")))
      array = array.attr("view")("uint16"), bits_ = true;
    if (!nb::ndarray_check(array) || !nb::try_cast(array, array_, /*convert=*/false))
      refuse(PyExc_TypeError,
             fmt::format("{}: a float32, float16 or bfloat16 array {}, not {}", name_, shape_of(axes), type_of(given)));
    if (array_.device_type() != nb::device::cpu::value)
      refuse(PyExc_TypeError, fmt::format("{}: an array in host memory, not on another device", name_));
    const nb::dlpack::dtype type = array_.dtype();
    if (type == nb::dtype<float>())
      element_ = Element::kF32;
    else if (type.lanes == 1 && type.bits == 16 &&
             type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float))
      element_ = Element::kF16;
    else if (type.lanes == 1 && type.bits == 16 &&
             (type.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) ||
              type == nb::dtype<std::uint16_t>()))
      element_ = Element::kBf16;
    else
      refuse(PyExc_TypeError, fmt::format("{}: float32, float16 or bfloat16 (or its bits as uint16), not {} of {} bits",
                                          name_, code_name(type.code), type.bits));
    check_order();
    check_shape(axes);
    nb::ndarray<> writable;
    if (written && !nb::try_cast(array, writable, /*convert=*/false))
      refuse(PyExc_TypeError, fmt::format("{}: is read-only, and is written to", name_));
    rows_ = array_.shape(0);
    row_size_ = rows_ == 0 ? 0 : array_.size() / rows_;
  }

  Element element() const { return element_; }
  std::uint64_t rows() const { return rows_; }
  std::uint64_t row_size() const { return row_size_; }
  std::byte* bytes() const { return static_cast<std::byte*>(const_cast<void*>(array_.data())); }

  // Its numbers as float32: where they lie, or a copy.
  float* floats() {
    if (element_ == Element::kF32) return reinterpret_cast<float*>(bytes());
    if (copy_.empty()) {
      copy_.resize(array_.size());
      for (std::size_t i = 0; i < copy_.size(); ++i) copy_[i] = float_of(at(i), element_);
    }
    return copy_.data();
  }
  DeviceAddress address() { return reinterpret_cast<DeviceAddress>(floats()); }

  // What was written to floats() in these rows, into the array.
  void take(std::span<const StepRows> parts) {
    if (element_ == Element::kF32) return;
    for (const StepRows& part : parts)
      for (std::uint64_t i = part.row * row_size_; i < (std::uint64_t{part.row} + part.row_count) * row_size_; ++i) {
        const std::uint16_t value = half_of(copy_[i], element_);
        std::memcpy(bytes() + 2 * i, &value, sizeof(value));
      }
  }

 private:
  std::uint16_t at(std::size_t i) const {
    std::uint16_t value;
    std::memcpy(&value, bytes() + 2 * i, sizeof(value));
    return value;
  }
  static std::string code_name(std::uint8_t code) {
    switch (static_cast<nb::dlpack::dtype_code>(code)) {
      case nb::dlpack::dtype_code::Int:
        return "an integer";
      case nb::dlpack::dtype_code::UInt:
        return "an unsigned integer";
      case nb::dlpack::dtype_code::Float:
        return "a float";
      case nb::dlpack::dtype_code::Bool:
        return "a bool";
      case nb::dlpack::dtype_code::Complex:
        return "a complex number";
      default:
        return "something";
    }
  }
  static std::string shape_of(std::initializer_list<Axis> axes) {
    std::string text;
    for (const Axis& axis : axes) text += fmt::format("[{}]", axis.name);
    return text;
  }
  void check_shape(std::initializer_list<Axis> axes) {
    bool right = array_.ndim() == axes.size();
    std::size_t i = 0;
    for (const Axis& axis : axes) {
      right = right && (axis.least ? array_.shape(i) >= axis.size : array_.shape(i) == axis.size);
      ++i;
    }
    if (right) return;
    std::string shape, wanted;
    for (i = 0; i < array_.ndim(); ++i) shape += fmt::format("[{}]", array_.shape(i));
    for (const Axis& axis : axes) wanted += fmt::format("[{}{}]", axis.size, axis.least ? " or more" : "");
    refuse(PyExc_ValueError, fmt::format("{}: its shape is {}, but these rows need {}: {}", name_,
                                         shape.empty() ? "that of one number" : shape, wanted, shape_of(axes)));
  }
  void check_order() {
    std::int64_t stride = 1;
    for (std::size_t i = array_.ndim(); array_.size() != 0 && i-- > 0;) {
      if (array_.shape(i) != 1 && array_.stride(i) != stride)
        refuse(
            PyExc_TypeError,
            fmt::format("{}: is not in C order without gaps (contiguous); numpy.ascontiguousarray makes a copy that is",
                        name_));
      stride *= static_cast<std::int64_t>(array_.shape(i));
    }
  }

  std::string name_;
  nb::ndarray<nb::ro> array_;
  Element element_ = Element::kF32;
  bool bits_ = false;
  std::uint64_t rows_ = 0, row_size_ = 0;
  std::vector<float> copy_;
};

// The first row behind those that a call names.
std::uint64_t rows_end(std::span<const StepRows> rows) {
  std::uint64_t end = 0;
  for (const StepRows& row : rows) end = std::max<std::uint64_t>(end, std::uint64_t{row.row} + row.row_count);
  return end;
}

const PageSet& set_of_layer(Manager& manager, std::uint32_t layer, std::string_view call) {
  for (const PageSet& set : manager.layout().sets)
    if (layer >= set.first_layer && layer - set.first_layer < set.layer_count) return set;
  refuse(PyExc_IndexError,
         fmt::format("{}: layer {} of a model with {} layers", call, layer, manager.layout().layer_count));
}

// Host memory is what the cpu device computes on.
void need_host_memory(Manager& manager, std::string_view call) {
  const std::string& device = manager.config().device;
  if (device != "cpu" && device != "none")
    raise(Status(Code::kInvalidArgument,
                 fmt::format("{}: arrays in host memory go with device cpu; this manager is on {}", call, device)));
}

// --- the manager ---

class PyManager {
 public:
  PyManager(const ModelSpec& model, const std::optional<std::string>& path,
            const std::vector<std::pair<std::string, std::string>>& settings, nb::object clock)
      : clock_(std::move(clock)), now_(std::make_shared<std::atomic<std::int64_t>>(0)) {
    if (!clock_.is_none() && !PyCallable_Check(clock_.ptr()))
      refuse(PyExc_TypeError,
             fmt::format("clock: a callable that gives nanoseconds, or None, not {}", type_of(clock_)));
    std::vector<ConfigInput::Override> overrides;
    for (const auto& [key, value] : settings) overrides.push_back({key, value, "Manager()"});
    ManagerEnvironment environment;
    if (!clock_.is_none()) {
      read_clock();
      environment.clock = [now = now_] { return Instant{now->load(std::memory_order_relaxed)}; };
    }
    manager_ = python::unpacked(python::unlocked([&]() -> Result<std::unique_ptr<Manager>> {
      ConfigInput input;
      input.overrides = overrides;
      FIRN_ASSIGN(const LoadedConfig loaded, path ? load_config_file(*path, overrides) : load_config(input));
      return Manager::create(loaded.config, model, environment);
    }));
  }
  ~PyManager() { close(); }

  // Calls under way end first: the last of them gives everything back.
  void close() {
    std::shared_ptr<Manager> last = std::move(manager_);
    manager_ = nullptr;
    clock_ = nb::none();
    if (!last) return;
    Released released;  // the worker may have something to finish
    last.reset();
  }
  bool closed() const { return !manager_; }

  // For one call: the clock is read here, by the caller's thread, and only here. No thread of firn's ever enters
  // Python, and what a clock raises is raised by the call, before it has done anything.
  std::shared_ptr<Manager> use() {
    need_open();
    if (!clock_.is_none()) {
      read_clock();
      need_open();
    }
    return manager_;
  }

  template <class Call>
  auto unlocked(Call&& call) {
    std::shared_ptr<Manager> manager = use();
    Released released;
    auto outcome = call(*manager);
    manager.reset();
    return outcome;
  }
  template <class Call>
  auto checked(Call&& call) {
    return unpacked(unlocked(std::forward<Call>(call)));
  }

  // The collector's: a clock that is a method of the object that has this manager makes a circle.
  static int traverse(PyObject* self, visitproc visit, void* arg) {
#if PY_VERSION_HEX >= 0x03090000
    Py_VISIT(Py_TYPE(self));
#endif
    if (!nb::inst_ready(self)) return 0;
    const nb::handle clock = nb::inst_ptr<PyManager>(self)->clock_;
    Py_VISIT(clock.ptr());
    return 0;
  }
  static int clear(PyObject* self) {
    if (nb::inst_ready(self)) nb::inst_ptr<PyManager>(self)->clock_ = nb::none();
    return 0;
  }

 private:
  void need_open() const {
    if (!manager_) raise(Status(Code::kInvalidArgument, "this manager is closed"));
  }
  void read_clock() {
    const nb::object clock = clock_;  // it may close the manager
    const nb::object given = called(clock);
    now_->store(integer<std::int64_t>(given, "clock: nanoseconds"), std::memory_order_relaxed);
  }

  nb::object clock_;
  std::shared_ptr<std::atomic<std::int64_t>> now_;  // shared with the manager's clock, which its worker asks
  std::shared_ptr<Manager> manager_;                // shared with every call under way; null: closed
};

// For what a manager answers about a sequence that does not exist as about one that is empty.
template <class Call>
auto of_sequence(Manager& manager, std::uint64_t seq, Call&& call) -> Result<decltype(call())> {
  if (!manager.has_sequence(SeqId{seq}))
    return Status(Code::kInvalidArgument, fmt::format("sequence {} does not exist", seq));
  return call();
}

Options options_of(nb::handle name_space, bool read_cache, std::string_view min_fidelity, nb::handle shared_scope,
                   std::optional<std::uint32_t> shared_tokens, bool share, std::string_view admission,
                   std::uint32_t expected_tokens, nb::handle adapter, nb::handle media,
                   std::optional<std::uint32_t> max_reuse_tokens, bool drop_last_block) {
  Options out;
  out.name_space = bytes_of(name_space, "name_space");
  out.options.read_cache = read_cache;
  out.options.min_fidelity = fidelity_of(min_fidelity);
  if (!shared_scope.is_none()) {
    out.shared_scope = bytes_of(shared_scope, "shared_scope");
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
      std::uint32_t expected_tokens, nb::handle adapter, nb::handle media,                        \
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
            for (const Dtype one : {Dtype::kF16, Dtype::kBf16, Dtype::kF32, Dtype::kBits8})
              if (to_string(one) == dtype) group.kv.dtype = one, known = true;
            if (!known) throw nb::value_error("dtype: f16, bf16, f32 or bits8");
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
      .def_prop_ro("token_bytes", &GroupSpec::token_bytes)
      .def("__repr__", [](const GroupSpec& group) {
        return fmt::format("Group(layer_count={}, kv_heads={}, head_dim={}, value_dim={}, dtype='{}', window={})",
                           group.layer_count, group.kv.kv_heads, group.kv.head_dim, group.kv.value_dim,
                           to_string(group.kv.dtype), group.window);
      });

  nb::class_<ModelSpec>(m, "Model",
                        "What firn must know of a model: geometry, and all that makes two caches different.")
      .def(
          "__init__",
          [](ModelSpec* self, const std::vector<GroupSpec>& groups, std::string name, const nb::bytes& weights,
             nb::handle adapters, std::string_view rotation, std::uint32_t rotation_dims,
             nb::handle inverse_frequencies, float attention_factor, std::uint32_t shard_rank,
             std::uint32_t shard_count) {
            ModelSpec model;
            model.name = std::move(name);
            if (weights.size() != 0) model.weights = digest_of(weights, "weights");
            model.adapters = bytes_of(adapters, "adapters");
            model.groups = groups;
            constexpr std::string_view pairings[] = {"none", "adjacent", "halves"};
            const auto found = std::find(std::begin(pairings), std::end(pairings), rotation);
            if (found == std::end(pairings)) throw nb::value_error("rotation: none, adjacent or halves");
            model.rotation = {
                static_cast<RotationSpec::Pairing>(found - std::begin(pairings)), rotation_dims, {}, attention_factor};
            for (const nb::handle item :
                 items_of(inverse_frequencies, "inverse_frequencies", "a sequence of numbers")) {
              const double number = PyFloat_AsDouble(item.ptr());
              if (number == -1 && PyErr_Occurred()) throw nb::python_error();
              model.rotation.inverse_frequencies.push_back(static_cast<float>(number));
            }
            model.shard_rank = shard_rank;
            model.shard_count = shard_count;
            if (const Status status = validate(model); !status.ok()) raise(status);
            new (self) ModelSpec(std::move(model));
          },
          "groups"_a, nb::kw_only(), "name"_a = "", "weights"_a = nb::bytes(""), "adapters"_a = "",
          "rotation"_a = "none", "rotation_dims"_a = 0, "inverse_frequencies"_a = nb::make_tuple(),
          "attention_factor"_a = 1.0f, "shard_rank"_a = 0, "shard_count"_a = 1)
      .def_ro("name", &ModelSpec::name)
      .def("__repr__",
           [](const ModelSpec& model) {
             return fmt::format("Model(name='{}', {} groups, {} bytes a token)", model.name, model.groups.size(),
                                model.token_bytes());
           })
      .def_prop_ro("token_bytes", &ModelSpec::token_bytes)
      .def_prop_ro("block_bytes", &ModelSpec::block_bytes)
      .def_prop_ro("identity", [](const ModelSpec& model) { return bytes_from(model_identity(model)); });

  nb::class_<KeyChain>(m, "KeyChain", "Names blocks of one model in one namespace (docs/keys.md).")
      .def(
          "__init__",
          [](KeyChain* self, const nb::bytes& identity, nb::handle salt) {
            new (self) KeyChain(digest_of(identity, "identity"), bytes_of(salt, "salt"));
          },
          "identity"_a, "salt"_a = "")
      .def_prop_ro("root", [](const KeyChain& chain) { return bytes_from(chain.root()); })
      .def("__repr__", [](const KeyChain& chain) { return fmt::format("KeyChain(root={})", to_hex(chain.root())); })
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
          [](const KeyChain& chain, nb::handle tokens, nb::handle adapter, nb::handle media) {
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
      .def("__repr__",
           [](const Begun& begun) {
             return fmt::format("Begun(seq={}, tokens={})", index(begun.seq), begun.match.tokens);
           })
      .def_ro("match", &Begun::match);
  nb::class_<CopyOrder>(m, "CopyOrder")
      .def_prop_ro("from_slot", [](const CopyOrder& order) { return index(order.from); })
      .def_prop_ro("to_slot", [](const CopyOrder& order) { return index(order.to); })
      .def_ro("tokens", &CopyOrder::tokens)
      .def("__repr__",
           [](const CopyOrder& order) {
             return fmt::format("CopyOrder(from_slot={}, to_slot={}, tokens={}, page_set={})", index(order.from),
                                index(order.to), order.tokens, index(order.page_set));
           })
      .def_prop_ro("page_set", [](const CopyOrder& order) { return static_cast<unsigned>(index(order.page_set)); });
  nb::class_<StepPlan>(m, "StepPlan")
      .def_ro("chunk_limit", &StepPlan::chunk_limit)
      .def("__repr__",
           [](const StepPlan& plan) {
             return fmt::format("StepPlan(chunk_limit={}, chunk_limit_moved={}, blocks_needed={}, blocked='{}')",
                                plan.chunk_limit, plan.chunk_limit_moved, plan.blocks_needed, plan.blocked.message());
           })
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
          "seq"_a, "row_count"_a, "position"_a = 0, "row"_a = 0)
      .def("__repr__", [](const StepRows& rows) {
        return fmt::format("StepRows(seq={}, row_count={}, position={}, row={})", index(rows.seq), rows.row_count,
                           rows.position, rows.row);
      });
  nb::class_<Fence>(m, "Fence").def("__repr__", [](const Fence& fence) {
    return fmt::format("Fence(kind={}, value={})", static_cast<int>(fence.kind), fence.value);
  });
  nb::class_<SlotInfo>(m, "SlotInfo")
      .def_prop_ro("key", [](const SlotInfo& info) { return key_or_none(info.key); })
      .def_ro("references", &SlotInfo::references)
      .def("__repr__",
           [](const SlotInfo& info) {
             return fmt::format("SlotInfo(key={}, references={}, page_set={}, empty={})",
                                info.key.is_zero() ? "None" : to_hex(info.key), info.references, index(info.page_set),
                                info.empty);
           })
      .def_prop_ro("page_set", [](const SlotInfo& info) { return static_cast<unsigned>(index(info.page_set)); })
      .def_ro("empty", &SlotInfo::empty);
  nb::class_<BlockView>(
      m, "BlockView",
      "Addresses of one layer of a slot: the row of token t and head h begins at k + t * token_stride + h "
      "* head_stride, likewise v; strides are bytes.")
      .def_ro("k", &BlockView::k)
      .def_ro("v", &BlockView::v)
      .def_ro("token_stride", &BlockView::token_stride)
      .def_ro("head_stride", &BlockView::head_stride)
      .def_ro("v_token_stride", &BlockView::v_token_stride)
      .def_ro("v_head_stride", &BlockView::v_head_stride)
      .def("__repr__", [](const BlockView& view) {
        return fmt::format("BlockView(k={:#x}, v={:#x}, token_stride={}, head_stride={})", view.k, view.v,
                           view.token_stride, view.head_stride);
      });
  nb::class_<PoolResize>(m, "PoolResize")
      .def_ro("budget_bytes", &PoolResize::budget_bytes)
      .def_ro("slots", &PoolResize::slots)
      .def("__repr__",
           [](const PoolResize& resize) {
             return fmt::format("PoolResize(budget_bytes={}, slots={}, evicted={}, moved={})", resize.budget_bytes,
                                resize.slots, resize.evicted, resize.moved.size());
           })
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
      .def("__repr__",
           [](const EventBlock& block) {
             return fmt::format("EventBlock(key={}, position={}, tokens={}, tiers={})", to_hex(block.key),
                                block.position, block.tokens, block.tiers);
           })
      .def_ro("tokens", &EventBlock::tokens)
      .def_ro("name_space", &EventBlock::name_space);
  nb::class_<Event>(m, "Event")
      .def_ro("sequence", &Event::sequence)
      .def("__repr__",
           [](const Event& event) {
             return fmt::format("Event(sequence={}, kind='{}', key={})", event.sequence, to_string(event.kind),
                                to_hex(event.block.key));
           })
      .def_prop_ro("kind", [](const Event& event) { return to_string(event.kind); })
      .def_prop_ro("tiers_before", [](const Event& event) { return static_cast<unsigned>(event.tiers_before); })
      .def_ro("block", &Event::block);
  nb::class_<EventBatch>(m, "EventBatch")
      .def_ro("events", &EventBatch::events)
      .def_ro("next", &EventBatch::next)
      .def("__repr__",
           [](const EventBatch& batch) {
             return fmt::format("EventBatch({} events, next={}, gap={})", batch.events.size(), batch.next, batch.gap);
           })
      .def_ro("gap", &EventBatch::gap);
  nb::class_<EventSnapshot>(m, "EventSnapshot")
      .def_ro("sequence", &EventSnapshot::sequence)
      .def("__repr__",
           [](const EventSnapshot& snapshot) {
             return fmt::format("EventSnapshot(sequence={}, {} blocks)", snapshot.sequence, snapshot.blocks.size());
           })
      .def_ro("blocks", &EventSnapshot::blocks);
  nb::class_<BlockVerdict>(m, "BlockVerdict")
      .def_prop_ro("key", [](const BlockVerdict& block) { return key_or_none(block.key); })
      .def_prop_ro("reason", [](const BlockVerdict& block) { return to_string(block.reason); })
      .def_prop_ro("tiers", [](const BlockVerdict& block) { return static_cast<unsigned>(block.tiers); })
      .def_prop_ro("fidelity", [](const BlockVerdict& block) { return to_string(block.fidelity); })
      .def_ro("shared", &BlockVerdict::shared)
      .def("__repr__",
           [](const BlockVerdict& block) {
             return fmt::format("BlockVerdict(hit={}, reason='{}', tiers={})", block.hit(), to_string(block.reason),
                                block.tiers);
           })
      .def_prop_ro("hit", &BlockVerdict::hit);
  nb::class_<Explanation>(m, "Explanation")
      .def_ro("blocks", &Explanation::blocks)
      .def_ro("first_miss", &Explanation::first_miss)
      .def_ro("text", &Explanation::text)
      .def("__repr__",
           [](const Explanation& why) {
             return fmt::format("Explanation(first_miss={}, text='{}')", why.first_miss, why.text);
           })
      .def("__str__", [](const Explanation& why) { return why.text; });
  nb::class_<PinReport>(m, "PinReport")
      .def_ro("pinned", &PinReport::pinned)
      .def("__repr__",
           [](const PinReport& pins) {
             return fmt::format("PinReport(pinned={}, absent={}, pinned_bytes={}, budget_bytes={})", pins.pinned,
                                pins.absent, pins.pinned_bytes, pins.budget_bytes);
           })
      .def_ro("absent", &PinReport::absent)
      .def_ro("pinned_bytes", &PinReport::pinned_bytes)
      .def_ro("budget_bytes", &PinReport::budget_bytes);
  nb::class_<LeaseInfo>(m, "LeaseInfo")
      .def_prop_ro("id", [](const LeaseInfo& lease) { return index(lease.id); })
      .def_ro("owner", &LeaseInfo::owner)
      .def("__repr__",
           [](const LeaseInfo& lease) {
             return fmt::format("LeaseInfo(id={}, owner='{}', blocks={}, bytes={})", index(lease.id), lease.owner,
                                lease.blocks, lease.bytes);
           })
      .def_ro("blocks", &LeaseInfo::blocks)
      .def_ro("bytes", &LeaseInfo::bytes)
      .def_prop_ro("acquired_ns", [](const LeaseInfo& lease) { return lease.acquired.ns; })
      .def_prop_ro("deadline_ns", [](const LeaseInfo& lease) { return lease.deadline.ns; });
  nb::class_<NamespaceUsage>(m, "NamespaceUsage")
      .def_ro("device_bytes", &NamespaceUsage::device_bytes)
      .def("__repr__",
           [](const NamespaceUsage& usage) {
             return fmt::format("NamespaceUsage(device_bytes={}, host_bytes={}, sequences={}, blocks={})",
                                usage.device_bytes, usage.host_bytes, usage.sequences, usage.blocks);
           })
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
            return self.unlocked([&](Manager& m) { return m.match_prefix(given, settled(options)); });
          },
          "tokens"_a, FIRN_OPTION_ARGUMENTS, "What begin() would reuse. Nothing is held.")
      .def(
          "begin",
          [](PyManager& self, nb::handle tokens, FIRN_OPTION_PARAMETERS) {
            const Tokens given(tokens);
            Options options = options_of(FIRN_OPTION_VALUES);
            return self.checked([&](Manager& m) { return m.begin(given, settled(options)); });
          },
          "tokens"_a, FIRN_OPTION_ARGUMENTS, "A sequence with the reusable part of these tokens committed.")
      .def(
          "explain",
          [](PyManager& self, nb::handle tokens, FIRN_OPTION_PARAMETERS) {
            const Tokens given(tokens);
            Options options = options_of(FIRN_OPTION_VALUES);
            return self.unlocked([&](Manager& m) { return m.explain(given, settled(options)); });
          },
          "tokens"_a, FIRN_OPTION_ARGUMENTS, "For each block of the prompt a hit and where, or the reason.")
      .def(
          "plan_step",
          [](PyManager& self, nb::handle requests) {
            constexpr std::string_view what = "a sequence of (seq, new_tokens)";
            std::vector<StepRequest> wanted;
            for (const nb::handle item : items_of(requests, "requests", what)) {
              const nb::tuple fields = fields_of(item, "requests", what, 2);
              wanted.push_back({SeqId{integer<std::uint64_t>(fields[0], "requests: seq")},
                                integer<std::uint32_t>(fields[1], "requests: new_tokens")});
            }
            return self.checked([&](Manager& m) { return m.plan_step(wanted); });
          },
          "requests"_a, "Of (seq, new_tokens) pairs: how many tokens can go at once.")
      .def(
          "allocate",
          [](PyManager& self, std::uint64_t seq, std::uint32_t new_tokens, std::uint32_t lookahead) {
            return self.checked([&](Manager& m) { return m.allocate(SeqId{seq}, new_tokens, lookahead); });
          },
          "seq"_a, "new_tokens"_a, "lookahead"_a = 0, "Room behind the committed tokens, all or nothing; copy orders.")
      .def(
          "append",
          [](PyManager& self, std::uint32_t layer, const std::vector<StepRows>& rows, nb::handle k, nb::handle v) {
            const std::shared_ptr<Manager> manager = self.use();
            need_host_memory(*manager, "append");
            const PageSet& set = set_of_layer(*manager, layer, "append");
            const std::uint64_t end = rows_end(rows);
            Array keys(k, "k", false,
                       {{"rows", end, true}, {"kv_heads", set.kv.kv_heads}, {"head_dim", set.kv.head_dim}});
            Array values(v, "v", false,
                         {{"rows", end, true}, {"kv_heads", set.kv.kv_heads}, {"value_dim", set.kv.value_dim}});
            const DeviceAddress k_at = keys.address(), v_at = values.address();
            return unpacked(unlocked([&] { return manager->append(layer, rows, k_at, v_at); }));
          },
          "layer"_a, "rows"_a, "k"_a.none(), "v"_a.none(),
          "k: [rows][kv_heads][head_dim], v: [rows][kv_heads][value_dim]. float32 is read in place (cpu device); "
          "float16 and "
          "bfloat16 (ml_dtypes', or its bits as uint16) by a copy.",
          nb::sig(
              "def append(self, layer: int, rows: collections.abc.Sequence[StepRows], k: numpy.typing.ArrayLike, v: "
              "numpy.typing.ArrayLike) -> Fence"))
      .def(
          "attend",
          [](PyManager& self, std::uint32_t layer, const std::vector<StepRows>& rows, nb::handle q, nb::handle out,
             std::uint32_t query_heads, float scale, float soft_cap, nb::handle mass) {
            const std::shared_ptr<Manager> manager = self.use();
            need_host_memory(*manager, "attend");
            const PageSet& set = set_of_layer(*manager, layer, "attend");
            const std::uint64_t end = rows_end(rows);
            Array queries(q, "q", false,
                          {{"rows", end, true}, {"query_heads", query_heads}, {"head_dim", set.kv.head_dim}});
            Array results(out, "out", true,
                          {{"rows", end, true}, {"query_heads", query_heads}, {"value_dim", set.kv.value_dim}});
            AttendParams params{.query_heads = query_heads, .scale = scale, .soft_cap = soft_cap};
            std::optional<Array> masses;
            std::vector<std::byte> scratch;
            if (!mass.is_none()) {
              std::uint64_t blocks = 0;  // of the longest sequence
              for (const StepRows& row : rows)
                blocks =
                    std::max(blocks, (std::uint64_t{row.position} + row.row_count + kBlockTokens - 1) / kBlockTokens);
              masses.emplace(
                  mass, "mass", true,
                  std::initializer_list<Axis>{{"rows", end, true}, {"blocks of the longest sequence", blocks, true}});
              if (masses->element() != Element::kF32) refuse(PyExc_TypeError, "mass: float32");
              if (end > 65536 || masses->row_size() > kMaxTokens) refuse(PyExc_ValueError, "mass: is too large");
              params.mass = masses->address();
              params.mass_blocks = static_cast<std::uint32_t>(masses->row_size());
              scratch.resize(Kernels::mass_bytes(query_heads, static_cast<std::uint32_t>(end), params.mass_blocks));
              params.mass_scratch = reinterpret_cast<DeviceAddress>(scratch.data());
            }
            const DeviceAddress q_at = queries.address(), out_at = results.address();
            const Fence fence = unpacked(unlocked([&] { return manager->attend(layer, rows, params, q_at, out_at); }));
            results.take(rows);
            return fence;
          },
          "layer"_a, "rows"_a, "q"_a.none(), "out"_a.none(), nb::kw_only(), "query_heads"_a, "scale"_a,
          "soft_cap"_a = 0.0f, "mass"_a = nb::none(),
          "q: [rows][query_heads][head_dim]; out: [rows][query_heads][value_dim], written in place. float32, or "
          "float16 and "
          "bfloat16 as in append. mass: float32 [rows][blocks of the longest sequence], written too: the softmax "
          "probability that each row's heads gave to each block, summed over the heads.",
          nb::sig(
              "def attend(self, layer: int, rows: collections.abc.Sequence[StepRows], q: numpy.typing.ArrayLike, out: "
              "numpy.typing.ArrayLike, *, query_heads: int, scale: float, soft_cap: float = 0.0, mass: "
              "numpy.typing.ArrayLike | None = None) -> Fence"))
      .def(
          "gather",
          [](PyManager& self, std::uint64_t seq, std::uint32_t layer, nb::handle out_k, nb::handle out_v,
             std::uint32_t first) {
            const std::shared_ptr<Manager> manager = self.use();
            const PageSet& set = set_of_layer(*manager, layer, "gather");
            Array k(out_k, "out_k", true,
                    {{"tokens", 0, true}, {"kv_heads", set.kv.kv_heads}, {"head_dim", set.kv.head_dim}});
            Array v(out_v, "out_v", true,
                    {{"tokens", k.rows()}, {"kv_heads", set.kv.kv_heads}, {"value_dim", set.kv.value_dim}});
            const Element stored = set.kv.dtype == Dtype::kF16    ? Element::kF16
                                   : set.kv.dtype == Dtype::kBf16 ? Element::kBf16
                                                                  : Element::kF32;
            for (const auto& [array, name] : {std::pair{&k, "out_k"}, std::pair{&v, "out_v"}})
              if (array->element() != stored && array->element() != Element::kF32)
                refuse(PyExc_TypeError,
                       fmt::format("{}: {} as the cache has it, or float32", name, to_string(set.kv.dtype)));
            if (k.rows() > kMaxTokens) refuse(PyExc_ValueError, "out_k: is too long");
            const auto count = static_cast<std::uint32_t>(k.rows());
            std::vector<std::byte> own_k, own_v;  // of what is widened on its way
            const auto target = [count](Array& array, std::uint64_t row_bytes, bool widened,
                                        std::vector<std::byte>& own) {
              if (widened) own.resize(count * row_bytes);
              return widened ? std::span<std::byte>(own) : std::span(array.bytes(), count * row_bytes);
            };
            const bool wide_k = k.element() != stored, wide_v = v.element() != stored;
            const std::span<std::byte> to_k = target(k, set.kv.key_bytes(), wide_k, own_k);
            const std::span<std::byte> to_v = target(v, set.kv.value_bytes(), wide_v, own_v);
            unpacked(unlocked([&] { return manager->gather(SeqId{seq}, layer, first, count, to_k, to_v); }));
            const auto widen = [stored](const std::vector<std::byte>& from, float* to) {
              for (std::size_t i = 0; i < from.size() / 2; ++i) {
                std::uint16_t value;
                std::memcpy(&value, from.data() + 2 * i, sizeof(value));
                to[i] = float_of(value, stored);
              }
            };
            if (wide_k) widen(own_k, k.floats());
            if (wide_v) widen(own_v, v.floats());
          },
          "seq"_a, "layer"_a, "out_k"_a.none(), "out_v"_a.none(), "first"_a = 0,
          "Keys and values of the committed tokens from `first` on, out of slots or host frames, as many as out_k has "
          "rows: "
          "out_k [tokens][kv_heads][head_dim], out_v [tokens][kv_heads][value_dim]. Bit by bit in the group's dtype "
          "(bfloat16: ml_dtypes', or its bits as uint16), or widened to float32.",
          nb::sig(
              "def gather(self, seq: int, layer: int, out_k: numpy.typing.ArrayLike, out_v: numpy.typing.ArrayLike, "
              "first: int = 0) -> None"))
      .def(
          "commit",
          [](PyManager& self, std::uint64_t seq, nb::handle tokens) {
            const Tokens given(tokens);
            self.checked([&](Manager& m) { return m.commit(SeqId{seq}, given); });
          },
          "seq"_a, "tokens"_a)
      .def(
          "fork",
          [](PyManager& self, std::uint64_t seq) {
            return index(self.checked([&](Manager& m) { return m.fork(SeqId{seq}); }));
          },
          "seq"_a,
          "A second sequence with the same tokens. Unavailable: no room for the copy of the tail that both share.")
      .def(
          "rewind",
          [](PyManager& self, std::uint64_t seq, std::uint32_t n) {
            self.checked([&](Manager& m) { return m.rewind(SeqId{seq}, n); });
          },
          "seq"_a, "n"_a,
          "Keeps the first n committed tokens. Unavailable: what slid out of a window is gone, or what is kept for "
          "sequences (reserve) would not be there any more.")
      .def(
          "free",
          [](PyManager& self, std::uint64_t seq, const std::optional<Fence>& fence) {
            self.checked([&](Manager& m) { return m.free(SeqId{seq}, fence.value_or(Fence{})); });
          },
          "seq"_a, "fence"_a = nb::none())
      .def(
          "preempt",
          [](PyManager& self, std::uint64_t seq, const std::optional<Fence>& fence) {
            self.checked([&](Manager& m) { return m.preempt(SeqId{seq}, fence.value_or(Fence{})); });
          },
          "seq"_a, "fence"_a = nb::none())
      .def(
          "resume",
          [](PyManager& self, std::uint64_t seq) {
            return self.checked([&](Manager& m) { return m.resume(SeqId{seq}); });
          },
          "seq"_a)
      .def(
          "token_count",
          [](PyManager& self, std::uint64_t seq) {
            return self.checked(
                [&](Manager& m) { return of_sequence(m, seq, [&] { return m.token_count(SeqId{seq}); }); });
          },
          "seq"_a)
      .def(
          "usable_tokens",
          [](PyManager& self, std::uint64_t seq) {
            return self.checked(
                [&](Manager& m) { return of_sequence(m, seq, [&] { return m.usable_tokens(SeqId{seq}); }); });
          },
          "seq"_a)
      .def(
          "block_table",
          [](PyManager& self, std::uint64_t seq, std::uint8_t page_set) {
            const std::shared_ptr<Manager> held = self.use();
            if (page_set >= held->layout().sets.size())
              throw nb::index_error(
                  fmt::format("page_set: {} of a model with {}", page_set, held->layout().sets.size()).c_str());
            return array_of(unpacked(unlocked([&] {
              return of_sequence(*held, seq, [&] { return held->block_table(SeqId{seq}, PageSetId{page_set}); });
            })));
          },
          "seq"_a, "page_set"_a = 0, nb::sig("def block_table(self, seq: int, page_set: int = 0) -> numpy.ndarray"))
      .def(
          "block_keys",
          [](PyManager& self, std::uint64_t seq) {
            return keys_from(self.checked(
                [&](Manager& m) { return of_sequence(m, seq, [&] { return m.block_keys(SeqId{seq}); }); }));
          },
          "seq"_a, nb::sig("def block_keys(self, seq: int) -> list[bytes]"))
      .def(
          "compute_keys",
          [](PyManager& self, nb::handle tokens, nb::handle name_space) {
            const Tokens given(tokens);
            const std::string name = bytes_of(name_space, "name_space");
            return keys_from(self.unlocked([&](Manager& m) { return m.compute_keys(given, name); }));
          },
          "tokens"_a, "name_space"_a = "")
      .def(
          "block_states",
          [](PyManager& self, std::uint64_t seq) {
            constexpr const char* names[] = {"filling", "resident", "stored", "loading", "lost"};
            nb::list states;
            for (const BlockState state : self.checked(
                     [&](Manager& m) { return of_sequence(m, seq, [&] { return m.block_states(SeqId{seq}); }); }))
              states.append(names[static_cast<std::size_t>(state)]);
            return states;
          },
          "seq"_a)
      // --- moving ---
      .def(
          "prefetch",
          [](PyManager& self, std::uint64_t seq) {
            return index(self.checked([&](Manager& m) { return m.prefetch(SeqId{seq}); }));
          },
          "seq"_a, "A ticket; 0: nothing to do.")
      .def(
          "done",
          [](PyManager& self, std::uint64_t ticket) {
            return self.unlocked([&](Manager& m) { return m.done(Ticket{ticket}); });
          },
          "ticket"_a)
      .def(
          "cancel",
          [](PyManager& self, std::uint64_t ticket) {
            self.checked([&](Manager& m) { return m.cancel(Ticket{ticket}); });
          },
          "ticket"_a)
      .def(
          "pump",
          [](PyManager& self, std::optional<std::size_t> max_jobs) {
            return self.unlocked([&](Manager& m) { return m.pump(max_jobs.value_or(~std::size_t{0})); });
          },
          "max_jobs"_a = nb::none())
      .def(
          "wait",
          [](PyManager& self, std::uint64_t ticket, std::int64_t timeout_ns) {
            self.checked([&](Manager& m) { return m.wait(Ticket{ticket}, timeout_ns); });
          },
          "ticket"_a, "timeout_ns"_a = kDefaultWaitNs)
      .def(
          "wait_idle",
          [](PyManager& self, std::int64_t timeout_ns) {
            self.checked([&](Manager& m) { return m.wait_idle(timeout_ns); });
          },
          "timeout_ns"_a = kDefaultWaitNs)
      .def(
          "wait_room",
          [](PyManager& self, std::uint64_t seq, std::uint32_t new_tokens, std::int64_t timeout_ns) {
            self.checked([&](Manager& m) { return m.wait_room(SeqId{seq}, new_tokens, timeout_ns); });
          },
          "seq"_a, "new_tokens"_a, "timeout_ns"_a = kDefaultWaitNs)
      .def(
          "wait_fence",
          [](PyManager& self, const Fence& fence, std::int64_t timeout_ns) {
            self.checked([&](Manager& m) { return m.wait_fence(fence, timeout_ns); });
          },
          "fence"_a, "timeout_ns"_a = kDefaultWaitNs)
      .def(
          "empty_pool",
          [](PyManager& self, std::uint8_t poison) {
            return self.checked([&](Manager& m) { return m.empty_pool(poison); });
          },
          "poison"_a = 0xA5)
      .def(
          "resize_pool",
          [](PyManager& self, std::uint64_t budget_bytes) {
            return self.checked([&](Manager& m) { return m.resize_pool(budget_bytes); });
          },
          "budget_bytes"_a)
      .def("reset", [](PyManager& self) { self.checked([&](Manager& m) { return m.reset(); }); });
}

void bind_keeping(nb::class_<PyManager>& manager) {
  manager
      .def(
          "set_retention",
          [](PyManager& self, std::uint64_t seq, nb::handle ranges) {
            constexpr std::string_view what = "a sequence of (first, end, priority, duration_ns)";
            std::vector<RetentionRange> out;
            for (const nb::handle item : items_of(ranges, "ranges", what)) {
              const nb::tuple fields = fields_of(item, "ranges", what, 4);
              const auto priority = integer<std::uint32_t>(fields[2], "ranges: priority");
              if (priority > kMaxPriority) throw nb::value_error("ranges: priority is 0 to 100");
              out.push_back({integer<std::uint32_t>(fields[0], "ranges: first"),
                             integer<std::uint32_t>(fields[1], "ranges: end"), static_cast<std::uint8_t>(priority),
                             integer<std::int64_t>(fields[3], "ranges: duration_ns")});
            }
            self.checked([&](Manager& m) { return m.set_retention(SeqId{seq}, out); });
          },
          "seq"_a, "ranges"_a, "Of (first, end, priority, duration_ns).")
      .def(
          "pin",
          [](PyManager& self, nb::handle keys, std::int64_t ttl_ns) {
            const std::vector<Key> given = keys_of(keys);
            return self.checked([&](Manager& m) { return m.pin(given, ttl_ns); });
          },
          "keys"_a, "ttl_ns"_a,
          "Unavailable: it would hold what is kept for sequences (reserve). NoSpace: retention.pin_budget.")
      .def(
          "unpin",
          [](PyManager& self, nb::handle keys) {
            const std::vector<Key> given = keys_of(keys);
            return self.unlocked([&](Manager& m) { return m.unpin(given); });
          },
          "keys"_a)
      .def(
          "acquire_lease",
          [](PyManager& self, std::string_view owner, nb::handle keys, std::int64_t ttl_ns) {
            const std::vector<Key> given = keys_of(keys);
            return index(self.checked([&](Manager& m) { return m.acquire_lease(owner, given, ttl_ns); }));
          },
          "owner"_a, "keys"_a, "ttl_ns"_a,
          "All of the keys or none. Unavailable: some are not here, or are kept for sequences (reserve).")
      .def(
          "renew_lease",
          [](PyManager& self, std::uint64_t lease, std::int64_t ttl_ns) {
            self.checked([&](Manager& m) { return m.renew_lease(LeaseId{lease}, ttl_ns); });
          },
          "lease"_a, "ttl_ns"_a)
      .def(
          "release_lease",
          [](PyManager& self, std::uint64_t lease) {
            return self.unlocked([&](Manager& m) { return m.release_lease(LeaseId{lease}); });
          },
          "lease"_a)
      .def("leases", [](PyManager& self) { return self.unlocked([&](Manager& m) { return m.leases(); }); })
      .def(
          "set_family",
          [](PyManager& self, nb::handle keys) {
            const std::vector<Key> given = keys_of(keys);
            self.checked([&](Manager& m) { return m.set_family(given); });
          },
          "keys"_a, "Unavailable: some are not here, or would hold what is kept for sequences (reserve).")
      .def(
          "set_quota",
          [](PyManager& self, nb::handle name_space, std::uint64_t device_floor, std::uint64_t device_ceiling,
             std::uint64_t host_floor, std::uint64_t host_ceiling) {
            const std::string name = bytes_of(name_space, "name_space");
            self.checked([&](Manager& m) {
              return m.set_quota(name, {device_floor, device_ceiling, host_floor, host_ceiling});
            });
          },
          "name_space"_a, nb::kw_only(), "device_floor"_a = 0, "device_ceiling"_a = 0, "host_floor"_a = 0,
          "host_ceiling"_a = 0,
          "Bytes; 0: none. Unavailable: with these bounds what is kept for sequences (reserve) could not be had.")
      .def(
          "usage",
          [](PyManager& self, nb::handle name_space) {
            const std::string name = bytes_of(name_space, "name_space");
            return self.unlocked([&](Manager& m) { return m.usage(name); });
          },
          "name_space"_a = "")
      .def(
          "namespace_tag",
          [](PyManager& self, nb::handle name_space) {
            const std::string name = bytes_of(name_space, "name_space");
            return self.unlocked([&](Manager& m) { return m.namespace_tag(name); });
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
            if (!name_space.is_none()) name = bytes_of(name_space, "name_space");
            const std::optional<std::string_view> scope =
                name_space.is_none() ? std::nullopt : std::optional<std::string_view>(name);
            return self.checked([&](Manager& m) { return m.take_events(since, max.value_or(~std::size_t{0}), scope); });
          },
          "since"_a = 0, "max"_a = nb::none(), "name_space"_a = nb::none())
      .def(
          "event_snapshot",
          [](PyManager& self, nb::handle name_space) {
            std::string name;
            if (!name_space.is_none()) name = bytes_of(name_space, "name_space");
            const std::optional<std::string_view> scope =
                name_space.is_none() ? std::nullopt : std::optional<std::string_view>(name);
            return self.checked([&](Manager& m) { return m.event_snapshot(scope); });
          },
          "name_space"_a = nb::none())
      .def(
          "stats",
          [](PyManager& self) {
            nb::dict out;
            for (const StatFigure& figure : self.unlocked([&](Manager& m) { return figures(m.stats()); }))
              if (figure.name.ends_with("_perc")) {
                out[nb::str(figure.name.c_str())] = figure.value;
              } else {
                out[nb::str(figure.name.c_str())] = static_cast<std::uint64_t>(figure.value);
              }
            return out;
          },
          nb::sig("def stats(self) -> dict[str, float]"))
      .def("ledger",
           [](PyManager& self) {
             const std::shared_ptr<Manager> manager = self.use();
             return ledger_dict(manager->ledger());
           })
      .def(
          "dump", [](PyManager& self) { return self.unlocked([&](Manager& m) { return m.dump(); }); },
          "JSON: who holds what.")
      .def("config",
           [](PyManager& self) {
             nb::dict out;
             const std::shared_ptr<Manager> manager = self.use();
             for (const ConfigSetting& setting : settings_of(manager->config()))
               out[nb::str(setting.key.c_str())] = setting.value;
             return out;
           })
      .def(
          "page_sets",
          [](PyManager& self) {
            nb::list sets;
            const std::shared_ptr<Manager> manager = self.use();
            for (const PageSet& set : manager->layout().sets)
              sets.append(nb::make_tuple(index(set.group), set.first_layer, set.layer_count));
            return sets;
          },
          "Of each page set: group, first layer, layer count.")
      .def(
          "hash_slot",
          [](PyManager& self, std::uint32_t slot) {
            return self.checked([&](Manager& m) { return m.hash_slot(SlotId{slot}); });
          },
          "slot"_a)
      .def(
          "slot_view",
          [](PyManager& self, std::uint32_t slot, std::uint32_t layer) {
            return self.checked([&](Manager& m) { return m.slot_view(SlotId{slot}, layer); });
          },
          "slot"_a, "layer"_a,
          "Where one layer of what is in a slot lies on the device (cpu: its pointer), for kernels of your own; until "
          "the "
          "pool is resized.")
      .def(
          "slot_info",
          [](PyManager& self, std::uint32_t slot) {
            return self.checked([&](Manager& m) { return m.slot_info(SlotId{slot}); });
          },
          "slot"_a)
      .def(
          "reuse_order",
          [](PyManager& self) { return array_of(self.unlocked([&](Manager& m) { return m.reuse_order(); })); },
          nb::sig("def reuse_order(self) -> numpy.ndarray"))
      .def(
          "verify", [](PyManager& self) { return self.unlocked([&](Manager& m) { return m.verify(); }); },
          "What is broken; an empty list: nothing.");
}

void bind_exceptions(nb::module_& m) {
  const auto make = [&](const char* name, nb::handle bases) {
    const std::string full = std::string("firn_kv.") + name;
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
  m.attr("__version__") = FIRN_VERSION_TEXT;
  m.attr("config_schema") = nb::cpp_function(&firn::config_schema_json);
  nb::set_leak_warnings(false);  // what threads still hold when the interpreter goes away is no leak
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
      [](std::uint64_t first_token, nb::handle adapter, nb::handle media) {
        const std::vector<std::byte> extra = block_extra(extras_of(adapter, media), first_token);
        return nb::bytes(reinterpret_cast<const char*>(extra.data()), extra.size());
      },
      "first_token"_a, nb::kw_only(), "adapter"_a = "", "media"_a = nb::make_tuple(),
      "What goes into the key of the block with this first token. media: (first_token, token_count, digest).");
  static const PyType_Slot slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(&PyManager::traverse)},
                                      {Py_tp_clear, reinterpret_cast<void*>(&PyManager::clear)},
                                      {0, nullptr}};
  nb::class_<PyManager> manager(m, "Manager", nb::type_slots(slots), nb::is_weak_referenceable());
  manager.def("close", &PyManager::close,
              "Gives everything back; calls under way end first. Every later call raises. Idempotent.");
  manager.def_prop_ro("closed", &PyManager::closed);
  manager.def(nb::init<const firn::ModelSpec&, const std::optional<std::string>&,
                       const std::vector<std::pair<std::string, std::string>>&, nb::object>(),
              "model"_a, "config"_a.none(), "settings"_a, "clock"_a.none());
  bind_sequences(manager);
  bind_keeping(manager);
  bind_knowing(manager);
  bind_cold(m);
}
