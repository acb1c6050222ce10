// cold.cpp: ColdCache for Python. As in module.cpp arguments are translated and statuses become exceptions.
//
// What a ticket reads or writes is kept here until the ticket has been collected: names, views, and a hold on every
// array that a view points into, so that nothing goes away under a job that runs. Only the caller's threads ever ask
// for the interpreter's lock; the cache's own never do.
#include "python/src/cold.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/process.h"
#include "firn/cold_cache.h"
#include "firn/thread_pool.h"
#include "python/src/convert.h"

namespace firn::python {
namespace {

using namespace nb::literals;

// --- arrays of a caller's ---

// A buffer of bytes, where it lies, held as long as this lives. With the interpreter's lock, from the first to the
// last.
class Bytes {
 public:
  Bytes(nb::handle given, const std::string& name, bool written) {
    nb::object object = nb::borrow(given);
    // NumPy exports nothing of a type that is not its own, but its bytes are as good.
    if (!PyObject_CheckBuffer(object.ptr()) && nb::hasattr(object, "__array_interface__"))
      object = nb::module_::import_("numpy").attr("asarray")(object);
    const int flags = PyBUF_ANY_CONTIGUOUS | (written ? PyBUF_WRITABLE : 0);
    held_ = PyObject_GetBuffer(object.ptr(), &buffer_, flags) == 0;
    if (!held_) {
      PyErr_Clear();
      if (nb::hasattr(object, "dtype") && nb::hasattr(object, "view")) {
        const nb::object plain = nb::steal(PyObject_CallMethod(object.ptr(), "view", "s", "uint8"));
        held_ = plain.is_valid() && PyObject_GetBuffer(plain.ptr(), &buffer_, flags) == 0;
        if (!held_) PyErr_Clear();
      }
    }
    if (held_) {
      if (PyBuffer_IsContiguous(&buffer_, 'C')) return;
      release();
      refuse(PyExc_TypeError, fmt::format("{}: is not in C order without gaps (contiguous)", name));
    }
    nb::ndarray<> writable;
    if (nb::try_cast(object, writable, /*convert=*/false)) {
      array_ = nb::ndarray<nb::ro>(writable);
    } else if (written || !nb::try_cast(object, array_, /*convert=*/false)) {
      refuse(PyExc_TypeError, fmt::format("{}: {}bytes in C order (bytearray, memoryview, an array), not {}{}", name,
                                          written ? "writable " : "", type_of(given),
                                          PyBytes_Check(given.ptr()) ? ", which is read-only" : ""));
    }
    std::int64_t stride = 1;
    for (std::size_t i = array_.ndim(); array_.size() != 0 && i-- > 0;) {
      if (array_.shape(i) != 1 && array_.stride(i) != stride)
        refuse(PyExc_TypeError, fmt::format("{}: is not in C order without gaps (contiguous)", name));
      stride *= static_cast<std::int64_t>(array_.shape(i));
    }
    if (array_.device_type() != nb::device::cpu::value)
      refuse(PyExc_TypeError, fmt::format("{}: an array in host memory, not on another device", name));
  }
  Bytes(Bytes&& other) noexcept
      : buffer_(other.buffer_), held_(std::exchange(other.held_, false)), array_(std::move(other.array_)) {}
  Bytes& operator=(Bytes&&) = delete;
  ~Bytes() { release(); }

  std::span<std::byte> bytes() const {
    if (held_) return {static_cast<std::byte*>(buffer_.buf), static_cast<std::size_t>(buffer_.len)};
    return {static_cast<std::byte*>(const_cast<void*>(array_.data())), array_.nbytes()};
  }

 private:
  void release() {
    if (held_) PyBuffer_Release(&buffer_);
    held_ = false;
  }
  Py_buffer buffer_{};
  bool held_ = false;
  nb::ndarray<nb::ro> array_;
};

// An array of K or V of a group's element type, where it lies, with any strides: only the elements of a row lie beside
// each other.
class Tensor {
 public:
  Tensor(nb::handle given, std::string name, bool written, Dtype dtype) : name_(std::move(name)) {
    const unsigned bytes = bytes_of(dtype);
    nb::object object = nb::borrow(given);
    std::string_view bits;  // what a type that is not NumPy's own is looked at as
    if (nb::hasattr(object, "dtype") && nb::hasattr(object, "view")) {
      const nb::object type_text = nb::str(nb::handle(object.attr("dtype")));
      const std::string_view type = nb::cast<std::string_view>(type_text);
      if (type == "bfloat16") bits = "uint16";
      if (type.starts_with("float8_")) bits = "uint8";
      if (!bits.empty()) {
        if ((bits == "uint16") != (dtype == Dtype::kBf16) || (bits == "uint8") != (bytes == 1))
          refuse_type(dtype, fmt::format("{}", type));
        object = object.attr("view")(bits);
      }
    }
    if (!nb::ndarray_check(object) && nb::hasattr(object, "__array_interface__"))
      object = nb::module_::import_("numpy").attr("asarray")(object);
    nb::ndarray<> writable;
    if (nb::try_cast(object, writable, /*convert=*/false)) {
      array_ = nb::ndarray<nb::ro>(writable);
    } else {
      if (!nb::try_cast(object, array_, /*convert=*/false))
        refuse(PyExc_TypeError, fmt::format("{}: an array of {}, not {}", name_, to_string(dtype), type_of(given)));
      if (written) refuse(PyExc_TypeError, fmt::format("{}: is read-only, and is written to", name_));
    }
    if (array_.device_type() != nb::device::cpu::value)
      refuse(PyExc_TypeError, fmt::format("{}: an array in host memory, not on another device", name_));
    const nb::dlpack::dtype type = array_.dtype();
    const auto code = static_cast<nb::dlpack::dtype_code>(type.code);
    const bool is_bits = code == nb::dlpack::dtype_code::UInt || (bytes == 1 && code != nb::dlpack::dtype_code::Bool);
    const bool is_float =
        code == (dtype == Dtype::kBf16 ? nb::dlpack::dtype_code::Bfloat : nb::dlpack::dtype_code::Float);
    if (type.lanes != 1 || type.bits != 8 * bytes || !(is_bits || is_float))
      refuse_type(dtype, fmt::format("{} of {} bits",
                                     code == nb::dlpack::dtype_code::Float    ? "a float"
                                     : code == nb::dlpack::dtype_code::Bfloat ? "a bfloat"
                                     : code == nb::dlpack::dtype_code::Int    ? "an integer"
                                     : code == nb::dlpack::dtype_code::UInt   ? "an unsigned integer"
                                                                              : "something",
                                     type.bits));
    element_bytes_ = bytes;
  }

  std::size_t ndim() const { return array_.ndim(); }
  std::size_t shape(std::size_t axis) const { return array_.shape(axis); }
  const nb::ndarray<nb::ro>& array() const { return array_; }
  const std::string& name() const { return name_; }

  // From its axis `first` on it has to be [blocks][16][kv_heads][dim].
  void check(std::size_t first, std::uint32_t heads, std::uint32_t dim) const {
    const std::size_t wanted[] = {kBlockTokens, heads, dim};
    bool right = ndim() == first + 4;
    for (std::size_t i = 0; right && i < 3; ++i) right = shape(first + 1 + i) == wanted[i];
    if (!right) {
      std::string shape_text;
      for (std::size_t i = 0; i < ndim(); ++i) shape_text += fmt::format("[{}]", shape(i));
      refuse(PyExc_ValueError,
             fmt::format("{}: its shape is {}, but {}[blocks][{}][{}][{}] is needed: blocks, tokens, kv_heads, {}",
                         name_, shape_text.empty() ? "that of one number" : shape_text, first == 1 ? "[2]" : "",
                         kBlockTokens, heads, dim, first == 1 ? "head_dim of K and of V" : "head_dim or value_dim"));
    }
    for (std::size_t i = 0; i < ndim(); ++i) {
      if (array_.size() == 0 || shape(i) == 1) continue;
      const std::int64_t stride = array_.stride(i);
      if (i + 1 == ndim() && stride != 1)
        refuse(PyExc_TypeError, fmt::format("{}: the elements of its last axis do not lie beside each other", name_));
      if (stride < 0) refuse(PyExc_TypeError, fmt::format("{}: axis {} runs backwards", name_, i));
      const bool row = i >= first + 1;  // within a block: a view has 32 bits
      if (row && static_cast<std::uint64_t>(stride) > std::numeric_limits<std::uint32_t>::max() / element_bytes_)
        refuse(PyExc_ValueError, fmt::format("{}: the stride of axis {} is 4 GiB or more", name_, i));
    }
  }
  DeviceAddress address() const { return reinterpret_cast<DeviceAddress>(array_.data()); }
  std::uint64_t stride_bytes(std::size_t axis) const {
    return shape(axis) == 1 ? 0 : static_cast<std::uint64_t>(array_.stride(axis)) * element_bytes_;
  }

 private:
  [[noreturn]] void refuse_type(Dtype dtype, const std::string& what) const {
    refuse(PyExc_TypeError, fmt::format("{}: {} (or its bits as unsigned integers of {}), as the group has it, not {}",
                                        name_, to_string(dtype), 8 * bytes_of(dtype), what));
  }
  std::string name_;
  nb::ndarray<nb::ro> array_;
  unsigned element_bytes_ = 0;
};

// What a ticket needs until it has ended.
struct Kept {
  std::vector<Key> keys;
  std::vector<BlockView> views;
  std::vector<std::uint8_t> bound;
  std::vector<ColdState> states;
  std::vector<nb::ndarray<nb::ro>> arrays;
  std::vector<Bytes> buffers;
};

// One layer's K and V: where its blocks are.
struct LayerPlaces {
  DeviceAddress k = 0, v = 0;
  std::uint64_t k_block = 0, v_block = 0;  // from block to block
  BlockView strides;
  std::size_t blocks = 0;
};

LayerPlaces places_of(nb::handle given, const std::string& name, bool written, const KvShape& kv, Kept& kept) {
  LayerPlaces places;
  const auto take = [&](const Tensor& tensor, std::size_t first, bool values) {
    const std::uint64_t token = tensor.stride_bytes(first + 1), head = tensor.stride_bytes(first + 2);
    (values ? places.v_block : places.k_block) = tensor.stride_bytes(first);
    (values ? places.strides.v_token_stride : places.strides.token_stride) = static_cast<std::uint32_t>(token);
    (values ? places.strides.v_head_stride : places.strides.head_stride) = static_cast<std::uint32_t>(head);
    kept.arrays.push_back(tensor.array());
  };
  const bool two = PyTuple_Check(given.ptr()) || PyList_Check(given.ptr());
  if (!two) {
    const Tensor both(given, name, written, kv.dtype);
    if (kv.value_dim == 0) {
      both.check(0, kv.kv_heads, kv.head_dim);
      take(both, 0, false);
      places.k = both.address();
      places.blocks = both.shape(0);
      return places;
    }
    if (kv.value_dim != kv.head_dim)
      refuse(PyExc_TypeError, fmt::format("{}: a pair (k, v), since head_dim {} and value_dim {} differ", name,
                                          kv.head_dim, kv.value_dim));
    both.check(1, kv.kv_heads, kv.head_dim);
    if (both.shape(0) != 2)
      refuse(PyExc_ValueError, fmt::format("{}: its first axis is {}, not 2: K, then V", name, both.shape(0)));
    take(both, 1, false);
    take(both, 1, true);
    places.k = both.address();
    places.v = places.k + both.stride_bytes(0);
    places.blocks = both.shape(1);
    return places;
  }
  const std::size_t parts = kv.value_dim == 0 ? 1 : 2;
  const nb::tuple pair = fields_of(given, name, parts == 2 ? "a pair (k, v)" : "(k,), for there are no values", parts);
  const Tensor k(pair[0], name + ", k", written, kv.dtype);
  k.check(0, kv.kv_heads, kv.head_dim);
  take(k, 0, false);
  places.k = k.address();
  places.blocks = k.shape(0);
  if (parts == 1) return places;
  const Tensor v(pair[1], name + ", v", written, kv.dtype);
  v.check(0, kv.kv_heads, kv.value_dim);
  if (v.shape(0) != places.blocks)
    refuse(PyExc_ValueError, fmt::format("{}: k has {} blocks, and v has {}", name, places.blocks, v.shape(0)));
  take(v, 0, true);
  places.v = v.address();
  return places;
}

ColdKind kind_of(std::string_view name) {
  if (name == "block") return ColdKind::kBlock;
  if (name == "state") return ColdKind::kState;
  throw nb::value_error(fmt::format("kind: block or state, not {}", name).c_str());
}

bool flag_of(nb::handle given) {
  const int truth = PyObject_IsTrue(given.ptr());
  if (truth < 0) throw nb::python_error();
  return truth != 0;
}

std::string_view answer_name(ColdAnswer answer) {
  switch (answer) {
    case ColdAnswer::kMiss:
      return "miss";
    case ColdAnswer::kHit:
      return "hit";
    case ColdAnswer::kPending:
      break;
  }
  return "pending";
}

nb::object miss_or_none(ColdMiss miss) { return miss == ColdMiss::kNone ? nb::none() : nb::cast(to_string(miss)); }

// As an exception that nobody has raised yet.
nb::object error_of(const Status& status) {
  if (status.ok()) return nb::none();
  return nb::handle(exceptions[static_cast<std::size_t>(status.code())])(status.message());
}

// --- the cache ---

class PyColdCache {
 public:
  PyColdCache(const ColdCacheOptions& options, unsigned threads, nb::object clock)
      : clock_(std::move(clock)), now_(std::make_shared<std::atomic<std::int64_t>>(0)) {
    if (!clock_.is_none() && !PyCallable_Check(clock_.ptr()))
      refuse(PyExc_TypeError,
             fmt::format("clock: a callable that gives nanoseconds, or None, not {}", type_of(clock_)));
    ColdEnvironment environment;
    if (!clock_.is_none()) {
      read_clock();
      environment.now_ns = [now = now_] { return now->load(std::memory_order_relaxed); };
    }
    groups_ = options.model.groups;
    auto made = std::make_shared<State>();
    unpacked(python::unlocked([&]() -> Status {
      if (threads != 1) made->threads = std::make_unique<ThreadPool>(threads);
      environment.threads = made->threads.get();
      FIRN_ASSIGN(made->cache, ColdCache::create(options, environment));
      return {};
    }));
    state_ = std::move(made);
  }
  ~PyColdCache() { close(); }

  void close() {
    clock_ = nb::none();
    let_go(std::move(state_));
  }
  bool closed() const { return !state_; }

  // --- names ---

  nb::bytes key(nb::handle name, nb::handle name_space) {
    const std::string of = bytes_of(name, "name"), space = bytes_of(name_space, "name_space");
    const Use use(*this);
    return bytes_from(unpacked(use->cache->key(of, space)));
  }
  nb::list keys(nb::handle names, nb::handle name_space) {
    Kept kept;
    const Use use(*this);
    read_keys(kept, names, name_space, *use->cache);
    return keys_from(kept.keys);
  }

  // --- asking and moving ---

  std::pair<nb::list, std::uint64_t> lookup(nb::handle keys, std::string_view kind, std::string_view least,
                                            nb::handle name_space, unsigned group, std::uint64_t first_position,
                                            std::int64_t deadline_ns, bool follow) {
    ColdQuery query;
    query.kind = kind_of(kind);
    query.least = fidelity_of(least, "least");
    query.group = GroupId{static_cast<std::uint16_t>(std::min(group, 0xffffu))};
    query.first_position = first_position;
    query.deadline_ns = deadline_ns;
    query.follow = follow;
    Use use(*this);
    Kept kept;
    read_keys(kept, keys, name_space, *use->cache);
    std::vector<ColdFound> found(kept.keys.size());
    const std::uint64_t ticket = begin(use, std::move(kept), [&](ColdCache& cache, const Kept& held) {
      query.keys = held.keys;
      return cache.lookup(query, found);
    });
    nb::list answers;
    for (const ColdFound& one : found) answers.append(nb::cast(one));
    return {std::move(answers), ticket};
  }

  std::uint64_t move(bool store, nb::handle keys, nb::handle layers, nb::handle blocks, std::uint64_t first_position,
                     unsigned group, nb::handle name_space, nb::handle bound, std::string_view fidelity, bool exact,
                     std::int64_t deadline_ns, unsigned priority) {
    ColdRun run;
    if (group >= groups_.size())
      refuse(PyExc_IndexError, fmt::format("group: {} of a model with {}", group, groups_.size()));
    if (priority > 254) refuse(PyExc_ValueError, fmt::format("priority: 0 to 254, not {}", priority));
    const GroupSpec& spec = groups_[group];
    run.group = GroupId{static_cast<std::uint16_t>(group)};
    run.first_position = first_position;
    (store ? run.fidelity : run.least) = fidelity_of(fidelity, store ? "fidelity" : "least");
    run.exact = exact;
    run.deadline_ns = deadline_ns;
    run.priority = static_cast<std::uint8_t>(priority);
    Use use(*this);
    Kept kept;
    read_keys(kept, keys, name_space, *use->cache);
    read_views(kept, layers, blocks, spec, /*written=*/!store);
    if (!bound.is_none()) {
      for (const nb::handle item : items_of(bound, "bound", "a sequence of bools")) kept.bound.push_back(flag_of(item));
      if (kept.bound.size() != kept.keys.size())
        refuse(PyExc_ValueError, fmt::format("bound: {} entries for {} blocks", kept.bound.size(), kept.keys.size()));
    }
    return begin(use, std::move(kept), [&](ColdCache& cache, const Kept& held) {
      run.keys = held.keys;
      run.views = held.views;
      run.bound = held.bound;
      return store ? cache.store(run) : cache.load(run);
    });
  }

  std::uint64_t move_states(bool store, nb::handle keys, nb::handle buffers, nb::handle name_space, nb::handle bound,
                            std::int64_t deadline_ns) {
    const char* const name = store ? "blobs" : "rooms";
    Use use(*this);
    Kept kept;
    read_keys(kept, keys, name_space, *use->cache);
    const nb::tuple items = items_of(buffers, name, "a sequence of buffers");
    if (items.size() != kept.keys.size())
      refuse(PyExc_ValueError, fmt::format("{}: {} for {} keys", name, items.size(), kept.keys.size()));
    std::vector<bool> tied(kept.keys.size(), false);
    if (PyBool_Check(bound.ptr())) {
      tied.assign(tied.size(), flag_of(bound));
    } else {
      const nb::tuple flags = items_of(bound, "bound", "a bool, or a sequence of bools");
      if (flags.size() != tied.size())
        refuse(PyExc_ValueError, fmt::format("bound: {} entries for {} keys", flags.size(), tied.size()));
      for (std::size_t i = 0; i < tied.size(); ++i) tied[i] = flag_of(flags[i]);
    }
    kept.buffers.reserve(items.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      kept.buffers.emplace_back(items[i], fmt::format("{}, {}", name, i), /*written=*/!store);
      ColdState state;
      state.key = kept.keys[i];
      if (store)
        state.bytes = kept.buffers.back().bytes();
      else
        state.room = kept.buffers.back().bytes();
      state.bound = tied[i];
      kept.states.push_back(state);
    }
    return begin(use, std::move(kept), [&](ColdCache& cache, const Kept& held) {
      return store ? cache.store_state(held.states, deadline_ns) : cache.load_state(held.states, deadline_ns);
    });
  }

  std::uint64_t prefetch(nb::handle keys, std::string_view kind, nb::handle name_space, std::int64_t deadline_ns) {
    const ColdKind what = kind_of(kind);
    Use use(*this);
    Kept kept;
    read_keys(kept, keys, name_space, *use->cache);
    return begin(use, std::move(kept),
                 [&](ColdCache& cache, const Kept& held) { return cache.prefetch(held.keys, what, deadline_ns); });
  }

  using Each = std::uint32_t (ColdCache::*)(std::span<const Key>, ColdKind);
  std::uint32_t each(Each call, nb::handle keys, std::string_view kind, nb::handle name_space) {
    const ColdKind what = kind_of(kind);
    Use use(*this);
    Kept kept;
    read_keys(kept, keys, name_space, *use->cache);
    return python::unlocked([&] { return (use->cache.get()->*call)(kept.keys, what); });
  }

  // --- waiting ---

  std::vector<ColdDone> poll(std::size_t max) {
    Use use(*this);
    std::vector<ColdDone> ended = python::unlocked([&] { return use->cache->poll(max); });
    std::vector<ColdDone> out;
    for (ColdDone& done : ended) {
      const std::uint64_t id = index(done.ticket);
      collected(use, id);
      if (use->awaited.count(id) != 0)
        use->handed.emplace(id, std::move(done));  // for the thread that waits for it, between two looks
      else
        out.push_back(std::move(done));
    }
    return out;
  }

  ColdDone wait(std::uint64_t ticket, std::optional<std::int64_t> timeout_ns) {
    Use use(*this);
    if (!use->awaited.insert(ticket).second)
      raise(Status(Code::kInvalidArgument, fmt::format("another thread waits for ticket {}", ticket)));
    struct Awaited {
      State& state;
      std::uint64_t ticket;
      ~Awaited() { state.awaited.erase(ticket); }
    } const awaited{*use, ticket};
    ColdDone out;
    in_slices(timeout_ns, [&](std::int64_t slice_ns, bool last) {
      Result<ColdDone> done = python::unlocked([&] { return use->cache->wait(Ticket{ticket}, slice_ns); });
      if (const auto handed = use->handed.find(ticket); handed != use->handed.end()) {
        out = std::move(handed->second);
        use->handed.erase(handed);
        return true;
      }
      if (!done.ok()) {
        if (done.status().code() != Code::kUnavailable) raise(done.status());
        if (last)
          raise(Status(Code::kUnavailable, fmt::format("ticket {} has not ended after {} ns", ticket, *timeout_ns)));
        return false;
      }
      collected(use, ticket);
      out = std::move(*done);
      return true;
    });
    return out;
  }

  void wait_idle(std::int64_t timeout_ns) {
    Use use(*this);
    in_slices(timeout_ns, [&](std::int64_t slice_ns, bool last) {
      const Status status = python::unlocked([&] { return use->cache->wait_idle(slice_ns); });
      if (!status.ok() && (last || status.code() != Code::kUnavailable)) raise(status);
      return status.ok();
    });
  }
  bool cancel(std::uint64_t ticket) {
    Use use(*this);
    return python::unlocked([&] { return use->cache->cancel(Ticket{ticket}); });
  }
  bool pump() {
    Use use(*this);
    return python::unlocked([&] { return use->cache->pump(); });
  }
  int fileno() {
    const Use use(*this);
    return use->cache->event_fd();
  }
  std::uint64_t max_state_bytes() {
    const Use use(*this);
    return use->cache->max_state_bytes();
  }
  nb::dict stats() {
    Use use(*this);
    nb::dict out;
    for (const StatFigure& figure : python::unlocked([&] { return figures(use->cache->stats()); }))
      out[nb::str(figure.name.c_str())] = static_cast<std::uint64_t>(figure.value);
    return out;
  }
  void verify() {
    Use use(*this);
    unpacked(python::unlocked([&] { return use->cache->verify(); }));
  }

  // The collector's: a clock that is a method of the object that has this cache makes a circle.
  static int traverse(PyObject* self, visitproc visit, void* arg) {
#if PY_VERSION_HEX >= 0x03090000
    Py_VISIT(Py_TYPE(self));
#endif
    if (!nb::inst_ready(self)) return 0;
    const nb::handle clock = nb::inst_ptr<PyColdCache>(self)->clock_;
    Py_VISIT(clock.ptr());
    return 0;
  }
  static int clear(PyObject* self) {
    if (nb::inst_ready(self)) nb::inst_ptr<PyColdCache>(self)->clock_ = nb::none();
    return 0;
  }

 private:
  // Everything in the order in which it is made. Tables: with the interpreter's lock.
  struct State {
    std::unique_ptr<ThreadPool> threads;
    std::map<std::uint64_t, Kept> kept;  // by ticket; outlives the cache, whose jobs look at it
    std::unique_ptr<ColdCache> cache;    // uses threads
    std::set<std::uint64_t> early;       // collected by another thread before the call that began it had returned
    std::set<std::uint64_t> awaited;
    std::map<std::uint64_t, ColdDone> handed;
  };

  // For one call: the clock is read here, by the caller's thread, and the state stays until the last call has ended.
  class Use {
   public:
    explicit Use(PyColdCache& cache) {
      cache.need_open();
      if (!cache.clock_.is_none()) {
        cache.read_clock();
        cache.need_open();
      }
      state_ = cache.state_;
    }
    Use(const Use&) = delete;
    ~Use() { let_go(std::move(state_)); }
    State* operator->() const { return state_.get(); }
    State& operator*() const { return *state_; }

   private:
    std::shared_ptr<State> state_;
  };

  // The last one gives everything back: what runs ends first, then arrays are let go.
  static void let_go(std::shared_ptr<State> state) {
    if (!state || state.use_count() != 1) return;
    {
      Released released;
      state->cache.reset();
    }
    state.reset();
  }

  void need_open() const {
    if (!state_) raise(Status(Code::kInvalidArgument, "this cache is closed"));
    if (!birthplace_.is_here())
      raise(Status(Code::kUnavailable, "this cache was made before fork(); make another one in this process"));
  }
  void read_clock() {
    const nb::object clock = clock_;  // it may close the cache
    const nb::object given = called(clock);
    now_->store(integer<std::int64_t>(given, "clock: nanoseconds"), std::memory_order_relaxed);
  }

  // Waits until `look` says yes, which is given so many nanoseconds each time, and whether it is the last time: short
  // ones, so that a signal is heard and a close() is seen.
  template <class Look>
  void in_slices(std::optional<std::int64_t> timeout_ns, Look look) {
    constexpr std::int64_t kSliceNs = 50'000'000;
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    for (;;) {
      const std::int64_t gone = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
      const std::int64_t left = timeout_ns ? std::max<std::int64_t>(*timeout_ns - gone, 0) : kSliceNs + 1;
      if (look(std::min(left, kSliceNs), left <= kSliceNs)) return;
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      if (closed()) raise(Status(Code::kInvalidArgument, "this cache was closed meanwhile"));
    }
  }

  static void read_keys(Kept& kept, nb::handle given, nb::handle name_space, const ColdCache& cache) {
    if (name_space.is_none()) {
      kept.keys = keys_of(given);
      return;
    }
    const std::string space = bytes_of(name_space, "name_space");
    for (const nb::handle name : items_of(given, "keys", "a sequence of names, str or bytes each"))
      kept.keys.push_back(unpacked(cache.key(bytes_of(name, "keys"), space)));
  }

  static void read_views(Kept& kept, nb::handle layers, nb::handle blocks, const GroupSpec& group, bool written) {
    const nb::tuple items =
        items_of(layers, "layers", "a sequence: for each layer an array [2][blocks][16][kv_heads][head_dim] or (k, v)");
    if (items.size() != group.layer_count)
      refuse(PyExc_ValueError, fmt::format("layers: {} for a group of {}", items.size(), group.layer_count));
    std::vector<std::uint64_t> chosen;
    const bool all = blocks.is_none();
    if (!all)
      for (const nb::handle item : items_of(blocks, "blocks", "a sequence of integers"))
        chosen.push_back(integer<std::uint64_t>(item, "blocks"));
    const std::size_t count = kept.keys.size();
    if (!all && chosen.size() != count)
      refuse(PyExc_ValueError, fmt::format("blocks: {} for {} keys", chosen.size(), count));
    if (count > ColdCache::kMaxRunBlocks)
      refuse(PyExc_ValueError, fmt::format("keys: {}; at most {} in one call", count, ColdCache::kMaxRunBlocks));
    kept.views.reserve(count * items.size());
    for (std::size_t layer = 0; layer < items.size(); ++layer) {
      const std::string name = fmt::format("layers, {}", layer);
      const LayerPlaces places = places_of(items[layer], name, written, group.kv, kept);
      if (all && places.blocks != count)
        refuse(PyExc_ValueError,
               fmt::format("{}: {} blocks for {} keys; `blocks` says which ones they are", name, places.blocks, count));
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint64_t block = all ? i : chosen[i];
        if (block >= places.blocks)
          refuse(PyExc_IndexError, fmt::format("blocks: {} of {} that {} has", block, places.blocks, name));
        BlockView view = places.strides;
        view.k = places.k + block * places.k_block;
        view.v = places.v == 0 ? 0 : places.v + block * places.v_block;
        kept.views.push_back(view);
      }
    }
  }

  // Begins what makes a ticket. What it needs is kept in a node of the table, which is moved there without a copy.
  template <class Start>
  static std::uint64_t begin(Use& use, Kept kept, Start start) {
    std::map<std::uint64_t, Kept> made;
    made.emplace(0, std::move(kept));
    const Result<Ticket> ticket = python::unlocked([&] { return start(*use->cache, made.begin()->second); });
    const std::uint64_t id = index(unpacked(ticket));
    if (id == 0 || use->early.erase(id) != 0) return id;  // nothing is pending, or it has ended and was collected
    auto node = made.extract(made.begin());
    node.key() = id;
    use->kept.insert(std::move(node));
    return id;
  }
  static void collected(Use& use, std::uint64_t ticket) {
    auto node = use->kept.extract(ticket);  // goes when nothing of ours is half done: it may run the caller's code
    if (node.empty()) use->early.insert(ticket);
  }

  nb::object clock_;
  std::shared_ptr<std::atomic<std::int64_t>> now_;
  std::vector<GroupSpec> groups_;
  std::shared_ptr<State> state_;  // shared with every call under way; null: closed
  const Birthplace birthplace_;
};

constexpr std::int64_t kDefaultWaitNs = 30'000'000'000;

void bind_answers(nb::module_& m) {
  nb::class_<ColdFound>(m, "ColdFound", "What a look-up says of one name.")
      .def_prop_ro(
          "answer", [](const ColdFound& found) { return answer_name(found.answer); }, "'hit', 'miss' or 'pending'.")
      .def_prop_ro("hit", [](const ColdFound& found) { return found.answer == ColdAnswer::kHit; })
      .def_prop_ro(
          "miss", [](const ColdFound& found) { return miss_or_none(found.miss); },
          nb::sig("def miss(self) -> str | None"),
          "Of a miss: 'never_stored', 'evicted:host', 'erased', 'filtered', 'load_failed', 'fidelity', "
          "'unbound', 'unavailable', ...; else None.")
      .def_prop_ro(
          "tier", [](const ColdFound& found) { return to_string(found.tier); },
          "Of a hit: the nearest tier that has it.")
      .def_prop_ro(
          "fidelity", [](const ColdFound& found) { return to_string(found.fidelity); },
          "Of a hit: 'exact', 'lossy' or 'derived'.")
      .def_ro("bytes", &ColdFound::bytes, "Of a hit that is a state: how many bytes load_state() writes.")
      .def("__repr__", [](const ColdFound& found) {
        if (found.answer == ColdAnswer::kHit)
          return fmt::format("ColdFound(answer='hit', tier='{}', fidelity='{}')", to_string(found.tier),
                             to_string(found.fidelity));
        return fmt::format("ColdFound(answer='{}', miss='{}')", answer_name(found.answer), to_string(found.miss));
      });
  nb::class_<ColdResult>(m, "ColdResult", "How one name of a ticket ended.")
      .def_ro("found", &ColdResult::found,
              "store: it can be found now; load: its bytes are in your memory; prefetch: it is in the host tier; "
              "look-up: a hit.")
      .def_ro("already", &ColdResult::already, "store: it was there before.")
      .def_prop_ro(
          "miss", [](const ColdResult& result) { return miss_or_none(result.miss); },
          nb::sig("def miss(self) -> str | None"), "Why it was not found, where that is nobody's failure; else None.")
      .def_prop_ro("tier", [](const ColdResult& result) { return to_string(result.tier); })
      .def_prop_ro("fidelity", [](const ColdResult& result) { return to_string(result.fidelity); })
      .def_ro("bytes", &ColdResult::bytes, "load_state: bytes written.")
      .def_prop_ro(
          "error", [](const ColdResult& result) { return error_of(result.status); },
          nb::sig("def error(self) -> Error | None"),
          "What went wrong, as an exception that was not raised (NoSpace: no room could be made; Unavailable: "
          "cancelled or too late; Corrupt: the frame was damaged); None: nothing.")
      .def("__repr__", [](const ColdResult& result) {
        if (result.found) return fmt::format("ColdResult(found=True, tier='{}')", to_string(result.tier));
        return fmt::format("ColdResult(found=False, miss='{}', error='{}')", to_string(result.miss),
                           result.status.message());
      });
  nb::class_<ColdDone>(m, "ColdDone", "A ticket that has ended.")
      .def_prop_ro("ticket", [](const ColdDone& done) { return index(done.ticket); })
      .def_ro("found", &ColdDone::found, "How many of its names were found.")
      .def_ro("results", &ColdDone::results, "One a name, in their order.")
      .def_prop_ro(
          "error", [](const ColdDone& done) { return error_of(done.status); },
          nb::sig("def error(self) -> Error | None"),
          "The first error of its results, not raised; None: none of them has one.")
      .def("__repr__", [](const ColdDone& done) {
        return fmt::format("ColdDone(ticket={}, found={} of {}, error='{}')", index(done.ticket), done.found,
                           done.results.size(), done.status.message());
      });
}

#define FIRN_KEYS "keys: collections.abc.Iterable[bytes | str]"
#define FIRN_EACH_KEY(name) \
  "def " name "(self, " FIRN_KEYS ", kind: str = 'block', *, name_space: str | bytes | None = None) -> int"

}  // namespace

void bind_cold(nb::module_& m) {
  bind_answers(m);
  static const PyType_Slot slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(&PyColdCache::traverse)},
                                      {Py_tp_clear, reinterpret_cast<void*>(&PyColdCache::clear)},
                                      {0, nullptr}};
  nb::class_<PyColdCache> cold(m, "ColdCache", nb::type_slots(slots), nb::is_weak_referenceable());
  cold.def(
          "__init__",
          [](PyColdCache* self, const ModelSpec& model, std::uint64_t budget_bytes, std::string codec,
             std::optional<std::string> artefact, bool allow_unmeasured, std::string_view names, std::string eviction,
             bool admit_second_use, std::string placement, bool huge_pages, std::uint32_t max_blocks,
             std::uint32_t queue_blocks, std::uint32_t queue_tickets, bool workers, unsigned threads,
             nb::object clock) {
            ColdCacheOptions options;
            options.model = model;
            options.budget_bytes = budget_bytes;
            options.codec = std::move(codec);
            options.artefact = artefact.value_or("");
            options.allow_unmeasured = allow_unmeasured;
            if (names != "independent" && names != "chained")
              throw nb::value_error(fmt::format("names: independent or chained, not {}", names).c_str());
            options.names = names == "chained" ? ColdNames::kChained : ColdNames::kIndependent;
            options.eviction = std::move(eviction);
            options.admit_second_use = admit_second_use;
            options.placement = std::move(placement);
            options.huge_pages = huge_pages;
            options.max_blocks = max_blocks;
            options.queue_blocks = queue_blocks;
            options.queue_tickets = queue_tickets;
            options.workers = workers;
            if (threads > 1024) throw nb::value_error("threads: at most 1024");
            new (self) PyColdCache(options, threads, std::move(clock));
          },
          "model"_a, "budget_bytes"_a, nb::kw_only(), "codec"_a = "lossless", "artefact"_a = nb::none(),
          "allow_unmeasured"_a = false, "names"_a = "independent", "eviction"_a = "lru", "admit_second_use"_a = false,
          "placement"_a = "local", "huge_pages"_a = true, "max_blocks"_a = 0, "queue_blocks"_a = 8192,
          "queue_tickets"_a = 256, "workers"_a = true, "threads"_a = 0, "clock"_a = nb::none())
      .def("close", &PyColdCache::close,
           "Cancels what is queued, waits for what runs, then lets go of everybody's arrays. Every later call raises. "
           "Idempotent.")
      .def_prop_ro("closed", &PyColdCache::closed)
      .def("key", &PyColdCache::key, "name"_a.none(), "name_space"_a = "",
           "Your own name, str or bytes of 1 to 256 bytes, under a namespace and the model's identity, as a key of 32 "
           "bytes.")
      .def("keys", &PyColdCache::keys, "names"_a.none(), "name_space"_a = "",
           nb::sig("def keys(self, names: collections.abc.Iterable[str | bytes], name_space: str | bytes = '') -> "
                   "list[bytes]"),
           "key() of each of them.")
      .def("_lookup", &PyColdCache::lookup, "keys"_a.none(), "kind"_a, "least"_a, "name_space"_a.none(), "group"_a,
           "first_position"_a, "deadline_ns"_a, "follow"_a)
      .def(
          "store",
          [](PyColdCache& self, nb::handle keys, nb::handle layers, nb::handle blocks, std::uint64_t first_position,
             unsigned group, nb::handle name_space, nb::handle bound, std::string_view fidelity, bool exact,
             std::int64_t deadline_ns, unsigned priority) {
            return self.move(true, keys, layers, blocks, first_position, group, name_space, bound, fidelity, exact,
                             deadline_ns, priority);
          },
          "keys"_a.none(), "layers"_a.none(), nb::kw_only(), "blocks"_a = nb::none(), "first_position"_a = 0,
          "group"_a = 0, "name_space"_a = nb::none(), "bound"_a = nb::none(), "fidelity"_a = "exact", "exact"_a = false,
          "deadline_ns"_a = 0, "priority"_a = 0,
          nb::sig("def store(self, " FIRN_KEYS ", layers: collections.abc.Sequence[typing.Any], *, blocks: "
                  "collections.abc.Iterable[int] | None = None, first_position: int = 0, group: int = 0, name_space: "
                  "str | bytes | None = None, bound: collections.abc.Iterable[bool] | None = None, fidelity: str = "
                  "'exact', exact: bool = False, deadline_ns: int = 0, priority: int = 0) -> int"),
          "Begins to store consecutive blocks; the ticket. Its arrays are held until it has been collected.\n\n"
          "keys: one a block, 32 bytes each (KeyChain, key(), keys()); with name_space: your own names.\n"
          "layers: one a layer of the group: an array [2][blocks][16][kv_heads][head_dim] (K, then V), or a pair (k, "
          "v) "
          "of [blocks][16][kv_heads][head_dim] and [blocks][16][kv_heads][value_dim], of the group's dtype (bf16: "
          "ml_dtypes', or its bits as uint16), in host memory, read where they lie: any strides, but the elements of a "
          "row lie beside each other. What has the buffer protocol, __dlpack__ or __array_interface__ is an array.\n"
          "blocks: which of an array's blocks they are; None: all, as many as there are keys.\n"
          "first_position: of the first block, in tokens, a multiple of 16.\n"
          "bound: one a block: true: served only together with the state of its name.\n"
          "fidelity: how the content relates to what the model computed: 'exact', 'lossy', 'derived'.\n"
          "exact: by an exact codec whatever the cache's codec is.\n"
          "deadline_ns: from now; 0: none; what has not begun by then ends with an Unavailable error.\n"
          "Raises Unavailable where the queue is full (poll() first), InvalidArgument, and TypeError, ValueError or "
          "IndexError with the argument's name; nothing was taken then.")
      .def(
          "load",
          [](PyColdCache& self, nb::handle keys, nb::handle layers, nb::handle blocks, std::uint64_t first_position,
             unsigned group, nb::handle name_space, std::string_view least, std::int64_t deadline_ns,
             unsigned priority) {
            return self.move(false, keys, layers, blocks, first_position, group, name_space, nb::none(), least, false,
                             deadline_ns, priority);
          },
          "keys"_a.none(), "layers"_a.none(), nb::kw_only(), "blocks"_a = nb::none(), "first_position"_a = 0,
          "group"_a = 0, "name_space"_a = nb::none(), "least"_a = "derived", "deadline_ns"_a = 0, "priority"_a = 0,
          nb::sig("def load(self, " FIRN_KEYS ", layers: collections.abc.Sequence[typing.Any], *, blocks: "
                  "collections.abc.Iterable[int] | None = None, first_position: int = 0, group: int = 0, name_space: "
                  "str | bytes | None = None, least: str = 'derived', deadline_ns: int = 0, priority: int = 0) -> int"),
          "Begins to load blocks into your arrays, as in store(), but written; the ticket. Blocks that are not here, "
          "or "
          "less exact than `least`, are misses of its results, and their places keep what they had.")
      .def(
          "store_state",
          [](PyColdCache& self, nb::handle keys, nb::handle blobs, nb::handle name_space, nb::handle bound,
             std::int64_t deadline_ns) { return self.move_states(true, keys, blobs, name_space, bound, deadline_ns); },
          "keys"_a.none(), "blobs"_a.none(), nb::kw_only(), "name_space"_a = nb::none(), "bound"_a = false,
          "deadline_ns"_a = 0,
          nb::sig("def store_state(self, " FIRN_KEYS
                  ", blobs: collections.abc.Iterable[typing.Any], *, name_space: str | bytes | None = None, bound: "
                  "bool | collections.abc.Iterable[bool] = "
                  "False, deadline_ns: int = 0) -> int"),
          "Begins to store bytes that only you understand (a recurrent state, a checkpoint), one blob a key, each of 1 "
          "to max_state_bytes bytes in C order; the ticket. A name may have a block and a state; bound: neither is "
          "served without the other. Raises NoSpace where one never fits.")
      .def(
          "load_state",
          [](PyColdCache& self, nb::handle keys, nb::handle rooms, nb::handle name_space, std::int64_t deadline_ns) {
            return self.move_states(false, keys, rooms, name_space, nb::bool_(false), deadline_ns);
          },
          "keys"_a.none(), "rooms"_a.none(), nb::kw_only(), "name_space"_a = nb::none(), "deadline_ns"_a = 0,
          nb::sig("def load_state(self, " FIRN_KEYS ", rooms: collections.abc.Iterable[typing.Any], *, name_space: str "
                  "| bytes | None = None, deadline_ns: int = 0) -> int"),
          "Begins to load states into writable buffers, each at least as large as what was stored (ColdFound.bytes); "
          "the ticket. ColdResult.bytes says how many bytes were written.")
      .def("prefetch", &PyColdCache::prefetch, "keys"_a.none(), "kind"_a = "block", nb::kw_only(),
           "name_space"_a = nb::none(), "deadline_ns"_a = 0,
           nb::sig("def prefetch(self, " FIRN_KEYS
                   ", kind: str = 'block', *, name_space: str | bytes | None = None, deadline_ns: int = 0) -> int"),
           "From the tiers below into the host's; the ticket.")
      .def("poll", &PyColdCache::poll, "max"_a = 64, "Tickets that have ended, oldest first; each is handed out once.")
      .def("wait", &PyColdCache::wait, "ticket"_a, "timeout_ns"_a = nb::none(),
           "Until the ticket has ended, or a signal's handler raises. timeout_ns: None: as long as it takes; else "
           "Unavailable when it has gone by, and nothing is lost. InvalidArgument: no such ticket, or it was "
           "collected.")
      .def("wait_idle", &PyColdCache::wait_idle, "timeout_ns"_a = kDefaultWaitNs,
           "Until no work is under way. Unavailable: it still is.")
      .def("cancel", &PyColdCache::cancel, "ticket"_a,
           "What of it has not begun ends as Unavailable; the ticket still has to be collected. False: it has ended.")
      .def("pump", &PyColdCache::pump, "workers=False: one step of what is queued; False: nothing could be done.")
      .def("fileno", &PyColdCache::fileno,
           "A descriptor that is readable while ended tickets wait to be collected, for select and "
           "asyncio's add_reader. The cache's: do not read or close it.")
      .def_prop_ro("max_state_bytes", &PyColdCache::max_state_bytes)
      .def("stats", &PyColdCache::stats, nb::sig("def stats(self) -> dict[str, int]"),
           "Gauges and counters by the names of firn/cold_cache.h.")
      .def("verify", &PyColdCache::verify, "Raises Corrupt where firn's own tables disagree, which is a bug of firn.");
  const auto each = [&](const char* name, const char* signature, PyColdCache::Each call, const char* text) {
    cold.def(
        name,
        [call](PyColdCache& self, nb::handle keys, std::string_view kind, nb::handle name_space) {
          return self.each(call, keys, kind, name_space);
        },
        "keys"_a.none(), "kind"_a = "block", nb::kw_only(), "name_space"_a = nb::none(), nb::sig(signature), text);
  };
  each("pin", FIRN_EACH_KEY("pin"), &ColdCache::pin,
       "Pinned names are neither evicted nor erased; pins count. How many were here.");
  each("unpin", FIRN_EACH_KEY("unpin"), &ColdCache::unpin, "How many lost a pin.");
  each("touch", FIRN_EACH_KEY("touch"), &ColdCache::touch, "As if they had been used just now. How many were here.");
  each("erase", FIRN_EACH_KEY("erase"), &ColdCache::erase, "From all tiers. How many were here and not pinned.");
}

}  // namespace firn::python
