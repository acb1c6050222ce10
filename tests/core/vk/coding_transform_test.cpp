// kvtc on the vulkan device: beside sums in double precision and beside the host's codec, which decodes its frames and
// whose frames it decodes. Products may or may not be fused, so that a code may differ by one.
#include <algorithm>
#include <map>

#include "storage/codec/kvtc_codec.h"
#include "tests/core/vk/coding_fixture.h"

namespace firn::vk::testing {
namespace {

using Pairing = RotationSpec::Pairing;

ModelSpec model_of(const KvShape& kv, std::uint32_t layers, Pairing pairing, std::uint32_t rotated, float factor = 1) {
  ModelSpec model;
  model.name = "made up";
  GroupSpec group;
  group.layer_count = layers;
  group.kv = kv;
  model.groups = {group};
  model.rotation.pairing = pairing;
  model.rotation.attention_factor = factor;
  model.rotation.dims = pairing == Pairing::kNone ? 0 : rotated;
  for (std::uint32_t i = 0; i < model.rotation.dims / 2; ++i)
    model.rotation.inverse_frequencies.push_back(
        std::pow(1e-4f, static_cast<float>(2 * i) / static_cast<float>(rotated)));
  return model;
}

// Cosines of a transform of this many channels are an orthonormal basis.
double basis_value(std::size_t component, std::size_t channel, std::size_t channels) {
  const double n = static_cast<double>(channels);
  const double angle =
      3.14159265358979323846 * (static_cast<double>(channel) + 0.5) * static_cast<double>(component) / n;
  return std::sqrt((component == 0 ? 1 : 2) / n) * std::cos(angle);
}

// Values of falling energy by component, in the cache's type and rotated: what a calibrated cache looks like.
struct Case {
  ModelSpec model;
  std::uint32_t stack_layers = 0;
  StackPlan keys, values;
};

std::shared_ptr<Artefact> artefact_of(const Case& c) {
  auto artefact = std::make_shared<Artefact>();
  artefact->digest.bytes[0] = 9;
  artefact->model_name = c.model.name;
  artefact->weights = c.model.weights;
  artefact->kv = c.model.groups[0].kv;
  artefact->layer_count = c.model.groups[0].layer_count;
  artefact->rotation = c.model.rotation;
  artefact->stack_layers = c.stack_layers;
  KvtcPlan plan;
  plan.report.rate = 8;
  for (const bool values : {false, true}) {
    const std::size_t width = artefact->kv.kv_heads * std::size_t{coded_dim(artefact->kv, values)};
    const std::uint32_t step = c.stack_layers == 0 ? artefact->layer_count : c.stack_layers;
    for (std::uint32_t first = 0; first < artefact->layer_count; first += step) {
      StackBasis stack;
      stack.first_layer = first;
      stack.layer_count = std::min(step, artefact->layer_count - first);
      stack.channels = static_cast<std::uint32_t>(stack.layer_count * width);
      const StackPlan& groups = values ? c.values : c.keys;
      stack.components = plan_components(groups);
      for (std::size_t i = 0; i < stack.channels; ++i) stack.mean.push_back(0.25f * unit_variance(first + 90, i));
      for (std::size_t k = 0; k < stack.components; ++k)
        for (std::size_t i = 0; i < stack.channels; ++i)
          stack.basis.push_back(cpu::f16_of(static_cast<float>(basis_value(k, i, stack.channels))));
      (values ? artefact->values : artefact->keys).push_back(std::move(stack));
      (values ? plan.values : plan.keys).push_back(groups);
    }
  }
  artefact->plans = {std::move(plan)};
  return artefact;
}

// Written here anew, in double precision. sign 1 rotates, -1 takes off.
void rotate(std::vector<double>& head, const RotationSpec& rotation, std::uint64_t position, double sign) {
  for (std::uint32_t i = 0; i < rotation.dims / 2; ++i) {
    const bool adjacent = rotation.pairing == Pairing::kAdjacent;
    double &a = head[adjacent ? 2 * i : i], &b = head[adjacent ? 2 * i + 1 : i + rotation.dims / 2];
    const double angle = sign * static_cast<double>(position) * static_cast<double>(rotation.inverse_frequencies[i]);
    const double c = std::cos(angle), s = std::sin(angle), x = a, y = b;
    const double factor =
        sign > 0 ? static_cast<double>(rotation.attention_factor) : 1 / static_cast<double>(rotation.attention_factor);
    a = factor * (x * c - y * s);
    b = factor * (x * s + y * c);
  }
}

class Transform : public VulkanTest {
 protected:
  static constexpr std::uint64_t kPosition = 4096;

  void use(const Case& c) {
    case_ = c;
    artefact_ = artefact_of(c);
    auto made = make_codec(CodecId::kKvtc, artefact_, 8, c.model);
    ASSERT_TRUE(made.ok()) << made.status().message();
    codec_ = std::move(made).value();
  }
  ExtentShape shape(std::uint32_t blocks) const {
    return extent_shape(case_.model.groups[0].kv, case_.model.groups[0].layer_count, blocks);
  }
  // Mean, and directions of the basis with falling amounts.
  void fill(Slots& slots, std::uint64_t seed) const {
    for (const bool values : {false, true}) {
      std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<double>> rows;  // (stack, token): its channels
      const std::uint32_t dim = coded_dim(slots.shape.kv, values), width = dim * slots.shape.kv.kv_heads;
      const auto channel = [&](std::uint32_t layer, std::uint32_t t, std::uint32_t c) {
        const std::uint32_t s = stack_of(layer);
        const StackBasis& stack = artefact_->of(values)[s];
        std::vector<double>& row = rows[{s, t}];
        if (row.empty()) {
          for (std::size_t i = 0; i < stack.channels; ++i)
            row.push_back(static_cast<double>(stack.mean[i]) + 0.003 * static_cast<double>(unit_variance(seed + t, i)));
          for (std::size_t k = 0; k < std::min<std::size_t>(24, stack.channels); ++k) {
            const double amount =
                12.0 * static_cast<double>(unit_variance(seed + 1000 + t, k)) / static_cast<double>(k + 1);
            for (std::size_t i = 0; i < stack.channels; ++i) row[i] += amount * basis_value(k, i, stack.channels);
          }
        }
        return row[(layer - stack.first_layer) * width + c];
      };
      slots.set(values, [&](std::uint32_t l, std::uint32_t t, std::uint32_t h, std::uint32_t d) {
        std::vector<double> head(dim);
        for (std::uint32_t i = 0; i < dim; ++i) head[i] = channel(l, t, h * dim + i);
        if (!values) rotate(head, case_.model.rotation, kPosition + t, 1);
        return static_cast<float>(head[d]);
      });
    }
  }
  std::uint32_t stack_of(std::uint32_t layer) const { return case_.stack_layers == 0 ? 0 : layer / case_.stack_layers; }
  std::uint32_t sections() const { return static_cast<std::uint32_t>(2 * artefact_->keys.size()); }

  struct Coded {
    std::vector<std::byte> payload;
    std::vector<float> sums;
  };
  // One section of some extents in one call. device null: the host's kernels.
  std::vector<Coded> encode(Device* device, const std::vector<const Slots*>& extents, std::uint32_t section) {
    On on(*this, device, section, extents[0]->shape.kv);
    std::vector<Coded> coded;
    for (const Slots* slots : extents) {
      const std::uint32_t first = first_layer(section);
      on.add(*slots, device != nullptr ? slots->views : slots->host_views, first, on.tables.transform.layer_count, {});
    }
    on.run(true);
    for (const TransformItem& item : on.items)
      coded.push_back(
          {on.arena.get<std::byte>(item.payload, CodingKernels::payload_bytes(on.tables.transform, item.block_count)),
           on.arena.get<float>(item.sums, CodingKernels::sums_bytes(on.tables.transform, item.block_count) / 4)});
    return coded;
  }
  // Layers [first, first + count) of the stack.
  void decode(Device* device, const std::vector<std::byte>& payload, const Slots& slots,
              const std::vector<BlockView>& views, std::uint32_t section, std::uint32_t first = 0,
              std::uint32_t count = 0) {
    On on(*this, device, section, slots.shape.kv);
    if (count == 0) count = on.tables.transform.layer_count;
    on.first = first;
    on.count = count;
    on.add(slots, views, first_layer(section) + first, count, payload);
    on.run(false);
  }
  std::uint32_t first_layer(std::uint32_t section) const {
    return artefact_->of(section % 2 == 1)[section / 2].first_layer;
  }

  // Tables, items and scratch of one batch, in one arena.
  struct On {
    On(Transform& of_test, Device* on_device, std::uint32_t section, const KvShape& kv)
        : test(of_test),
          device(on_device),
          tables(stack_tables(*of_test.codec_, section)),
          arena(on_device != nullptr ? *on_device : *of_test.cpu_, (4u << 20) + tables.basis.size_bytes()) {
      std::memset(arena.region().host, 0xA5, arena.region().bytes);
      batch.shape = kv;
      StackTransform& t = tables.transform;
      t.mean = put(std::vector<float>(tables.mean.begin(), tables.mean.end()));
      t.basis = put(std::vector<std::uint16_t>(tables.basis.begin(), tables.basis.end()));
      t.group_table = put(CodingKernels::group_table(t.groups));
    }
    // The host's kernels take pointers, and so does the cpu device.
    template <class T>
    DeviceAddress put(const std::vector<T>& values) {
      return arena.put(values);
    }
    void add(const Slots& slots, const std::vector<BlockView>& from, std::uint32_t layer, std::uint32_t layers,
             const std::vector<std::byte>& payload) {
      const std::uint32_t blocks = slots.shape.block_count;
      TransformItem item;
      item.view = static_cast<std::uint32_t>(views.size());
      item.block_count = blocks;
      views.insert(views.end(), from.begin() + layer * blocks, from.begin() + (layer + layers) * blocks);
      item.payload =
          payload.empty() ? arena.take(CodingKernels::payload_bytes(tables.transform, blocks)) : put(payload);
      item.sums = arena.take(CodingKernels::sums_bytes(tables.transform, blocks));
      item.turns = put(key_turns(*test.codec_, kPosition, blocks * kBlockTokens));
      items.push_back(item);
    }
    void run(bool encoding) {
      batch.stack = &tables.transform;
      batch.first_layer = first;
      batch.layer_count = count != 0 ? count : tables.transform.layer_count;
      batch.views = views;
      batch.items = items;
      batch.scratch = arena.take(CodingKernels::scratch_bytes(batch));
      HostCoding host;
      CodingKernels& kernels = device != nullptr ? *coding_kernels(device->kernels()) : host;
      const Result<Fence> fence = encoding ? kernels.encode(batch) : kernels.decode(batch);
      ASSERT_TRUE(fence.ok()) << fence.status().message();
      if (device != nullptr) wait(*device, fence);
    }
    Transform& test;
    Device* device;
    StackTables tables;
    Arena arena;
    TransformBatch batch;
    std::vector<BlockView> views;
    std::vector<TransformItem> items;
    std::uint32_t first = 0, count = 0;
  };

  // Shifts, scales and codes of a payload, by docs/frame.md: [group][token] and [group][token][component].
  struct Parsed {
    std::vector<double> shifts, scales;
    std::vector<std::vector<int>> codes;
  };
  Parsed parse(const std::vector<std::byte>& payload, std::uint32_t section, std::uint32_t blocks) const {
    Parsed out;
    const std::size_t n = blocks * kBlockTokens;
    const std::byte* at = payload.data();
    const auto byte = [&](std::size_t i) { return std::to_integer<unsigned>(at[i]); };
    for (const Group& group : section % 2 == 1 ? case_.values : case_.keys) {
      if (group.bits == 0) continue;
      for (std::size_t t = 0; t < n; ++t) {
        out.shifts.push_back(half_value(static_cast<std::uint16_t>(byte(t) | byte(n + t) << 8)));
        out.scales.push_back(half_value(static_cast<std::uint16_t>(byte(2 * n + t) | byte(3 * n + t) << 8)));
        std::vector<int> codes;
        for (std::size_t c = 0; c < group.size; ++c) {
          const std::size_t bit = (t * group.size + c) * group.bits;
          codes.push_back(static_cast<int>(byte(4 * n + bit / 8) >> bit % 8 & ((1u << group.bits) - 1)));
        }
        out.codes.push_back(std::move(codes));
      }
      at += 4 * n + n * group.size * group.bits / 8;
    }
    EXPECT_EQ(at, payload.data() + payload.size());
    return out;
  }
  // Coefficients of one section in double precision, [token][component].
  std::vector<std::vector<double>> naive_coefficients(const Slots& slots, std::uint32_t section) const {
    const bool values = section % 2 == 1;
    const StackBasis& stack = artefact_->of(values)[section / 2];
    const std::uint32_t dim = coded_dim(slots.shape.kv, values);
    std::vector<std::vector<double>> x(slots.shape.block_count * kBlockTokens);
    std::vector<double> head;
    slots.for_each(values, [&](std::uint32_t l, std::uint32_t t, auto, auto, const std::byte* at) {
      if (l < stack.first_layer || l >= stack.first_layer + stack.layer_count) return;
      head.push_back(get_value(slots.shape.kv.dtype, at));
      if (head.size() != dim) return;
      if (!values) rotate(head, case_.model.rotation, kPosition + t, -1);
      x[t].insert(x[t].end(), head.begin(), head.end());
      head.clear();
    });
    std::vector<double> basis;
    for (const std::uint16_t half : stack.basis) basis.push_back(half_value(half));
    for (std::vector<double>& row : x) {
      std::vector<double> out(stack.components);
      for (std::size_t i = 0; i < stack.channels; ++i) row[i] -= static_cast<double>(stack.mean[i]);
      for (std::size_t k = 0; k < stack.components; ++k)
        for (std::size_t i = 0; i < stack.channels; ++i) out[k] += row[i] * basis[k * stack.channels + i];
      row = std::move(out);
    }
    return x;
  }
  // Every coefficient that a payload stands for is within half a step (and rounding) of the true one.
  void expect_near_naive(const std::vector<std::byte>& payload, const Slots& slots, std::uint32_t section) const {
    const Parsed parsed = parse(payload, section, slots.shape.block_count);
    const std::vector<std::vector<double>> truth = naive_coefficients(slots, section);
    std::size_t row = 0, component = 0;
    for (const Group& group : section % 2 == 1 ? case_.values : case_.keys) {
      for (std::size_t t = 0; group.bits != 0 && t < truth.size(); ++t, ++row) {
        double largest = 0;
        for (const double c : truth[t]) largest = std::max(largest, std::fabs(c));
        for (std::size_t c = 0; c < group.size; ++c) {
          const double told = parsed.shifts[row] + parsed.scales[row] * parsed.codes[row][c];
          // A scale rounded to 11 bits falls short of the range by a part in 2048 for each step.
          const double slack =
              1e-3 * largest + parsed.scales[row] * 0.51 + parsed.scales[row] * ((1 << group.bits) - 1) / 2048.0;
          ASSERT_NEAR(told, truth[t][component + c], slack) << "component " << component + c << ", token " << t;
        }
      }
      component += group.size;
    }
  }
  // What both stand for is within a step of the other; where a group has a range, so are scales and codes. (A group of
  // one component has a scale of what rounding its shift left over, which is another if the shift rounds the other
  // way.)
  void expect_near(const std::vector<std::byte>& ours, const std::vector<std::byte>& theirs, std::uint32_t section,
                   std::uint32_t blocks) const {
    const Parsed a = parse(ours, section, blocks), b = parse(theirs, section, blocks);
    std::size_t differ = 0, all = 0;
    for (std::size_t row = 0; row < a.shifts.size(); ++row) {
      const double slack = 1e-3 * std::fabs(b.shifts[row]) + 5e-5;
      ASSERT_NEAR(a.shifts[row], b.shifts[row], slack);
      const bool one = a.codes[row].size() == 1;
      if (!one) {
        ASSERT_NEAR(a.scales[row], b.scales[row], 1e-3 * b.scales[row] + 1e-5);
      }
      for (std::size_t c = 0; c < a.codes[row].size(); ++c) {
        const double x = a.shifts[row] + a.scales[row] * a.codes[row][c],
                     y = b.shifts[row] + b.scales[row] * b.codes[row][c];
        ASSERT_NEAR(x, y, 1.01 * std::max(a.scales[row], b.scales[row]) + slack);
        if (one) continue;
        ASSERT_LE(std::abs(a.codes[row][c] - b.codes[row][c]), 1);
        differ += a.codes[row][c] != b.codes[row][c] ? 1 : 0;
        ++all;
      }
    }
    EXPECT_LE(static_cast<double>(differ), 0.02 * static_cast<double>(all)) << "ties, not a shift of everything";
  }
  void run_case(const Case& c, Layout layout, const std::vector<std::uint32_t>& block_counts);

  ThreadPool threads_{1};
  std::unique_ptr<Device> cpu_ = make_cpu_device(threads_);
  HostCoding host_;
  Case case_;
  std::shared_ptr<Artefact> artefact_;
  std::unique_ptr<Codec> codec_;
};

double error_between(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

void Transform::run_case(const Case& c, Layout layout, const std::vector<std::uint32_t>& block_counts) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  use(c);
  if (HasFatalFailure()) return;
  std::vector<std::unique_ptr<Slots>> extents;
  std::vector<const Slots*> pointers;
  for (const std::uint32_t blocks : block_counts) {
    extents.push_back(std::make_unique<Slots>(*device, shape(blocks), layout));
    fill(*extents.back(), 10 + blocks);
    pointers.push_back(extents.back().get());
  }
  std::vector<std::vector<Coded>> ours;
  for (std::uint32_t section = 0; section < sections(); ++section) {
    ours.push_back(encode(device.get(), pointers, section));
    const std::vector<Coded> theirs = encode(nullptr, pointers, section);
    const StackTransform stack = stack_tables(*codec_, section).transform;
    for (std::size_t i = 0; i < extents.size(); ++i) {
      SCOPED_TRACE("section " + std::to_string(section) + ", extent " + std::to_string(i));
      const std::uint32_t blocks = block_counts[i];
      expect_near(ours[section][i].payload, theirs[i].payload, section, blocks);
      expect_near_naive(ours[section][i].payload, *extents[i], section);
      if (HasFatalFailure()) return;
      const CodingSums a = CodingKernels::fold(stack, blocks, ours[section][i].sums),
                       b = CodingKernels::fold(stack, blocks, theirs[i].sums);
      EXPECT_TRUE(a.coded && b.coded);
      EXPECT_NEAR(a.energy, b.energy, 1e-4 * b.energy);
      EXPECT_NEAR(a.error_energy, b.error_energy, 0.01 * b.error_energy + 1e-5 * b.energy);
    }
  }
  // Frames: of the device's payloads by the codec, of the codec by the device.
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const Slots& source = *extents[i];
    std::vector<CodedSection> coded;
    for (std::uint32_t section = 0; section < sections(); ++section) {
      const CodingSums sums =
          CodingKernels::fold(stack_tables(*codec_, section).transform, block_counts[i], ours[section][i].sums);
      coded.push_back({!sums.coded, ours[section][i].payload, sums.error_energy, sums.energy});
    }
    EncodeJob told, by_codec;
    const std::vector<std::byte> sealed = seal_frame(*codec_, source, kPosition, coded, &told),
                                 frame = encode_frame(*codec_, source, kPosition, &by_codec);
    EXPECT_NEAR(told.key_error, by_codec.key_error, 0.01 * static_cast<double>(by_codec.key_error));
    EXPECT_NEAR(told.value_error, by_codec.value_error, 0.01 * static_cast<double>(by_codec.value_error));
    Slots of_sealed(*device, source.shape, layout), of_frame(*device, source.shape, layout),
        by_device(*device, source.shape, layout);
    decode_frame(*codec_, sealed, of_sealed, kPosition);
    decode_frame(*codec_, frame, of_frame, kPosition);
    for (const OpenedSection& section : open_frame(*codec_, frame, source, kPosition)) {
      ASSERT_FALSE(section.stored);
      const std::uint32_t layers = stack_tables(*codec_, section.section).transform.layer_count;
      decode(device.get(), section.payload, by_device, by_device.views, section.section);
      // The same again a layer at a time: no bit differs, and a block that takes no part is left alone.
      Slots parts(*device, source.shape, layout);
      const std::vector<std::byte> before = parts.bytes();
      for (std::uint32_t layer = 0; layer < layers; ++layer) {
        std::vector<BlockView> views = parts.views;
        views[(first_layer(section.section) + layer) * block_counts[i]].k = 0;
        decode(device.get(), section.payload, parts, views, section.section, layer, 1);
      }
      EXPECT_FALSE(block_counts[i] > 1 && parts.bytes() == before);
      const bool values = section.section % 2 == 1;
      const std::vector<double> x = by_device.get(values), y = parts.get(values);
      const std::size_t of_layer = x.size() / source.shape.layer_count;
      for (std::size_t at = 0; at < x.size(); ++at) {
        const auto layer = static_cast<std::uint32_t>(at / of_layer);
        if (layer < first_layer(section.section) || layer >= first_layer(section.section) + layers) continue;
        const bool skipped = at % of_layer < of_layer / block_counts[i];
        if (skipped) {
          ASSERT_TRUE(std::isnan(y[at]));
        } else {
          ASSERT_EQ(x[at], y[at]);
        }
      }
    }
    for (const bool values : {false, true}) {
      const std::vector<double> truth = source.get(values), x = of_sealed.get(values), y = of_frame.get(values),
                                z = by_device.get(values);
      const double theirs = error_between(truth, y);
      EXPECT_GT(theirs, 0);
      EXPECT_LE(error_between(truth, x), 1.01 * theirs);  // the device encodes as well as the host...
      EXPECT_LE(error_between(truth, z), 1.01 * theirs);  // ...and decodes the host's frame as well
      double largest = 0, apart = 0;
      for (std::size_t at = 0; at < y.size(); ++at) {
        largest = std::max(largest, std::fabs(y[at]));
        apart = std::max(apart, std::fabs(y[at] - z[at]));
      }
      EXPECT_LE(apart, 2e-3 * largest);  // one payload: two roundings to f16 at most
    }
  }
}

TEST_F(Transform, EveryGroupAndType) {
  // 1,536 channels: groups of every size, types of every kind; values keep what keys leave out.
  const KvShape kv{Dtype::kF16, 4, 96, 96};
  run_case({model_of(kv, 4, Pairing::kHalves, 96),
            0,
            {{1, 8}, {1, 4}, {1, 2}, {16, 8}, {16, 4}, {64, 4}, {1, 0}, {64, 2}, {256, 2}, {1024, 2}},
            {{1, 2}, {16, 2}, {64, 8}, {256, 8}, {1, 0}, {16, 0}, {1024, 4}}},
           Layout::kTokenMajor, {1});
}

TEST_F(Transform, WholeAndRaggedExtentsOfSeveralStacksInEveryLayout) {
  const KvShape kv{Dtype::kF16, 2, 32, 24};
  for (const auto& [pairing, layout] : {std::pair{Pairing::kAdjacent, Layout::kScattered},
                                        {Pairing::kHalves, Layout::kHeadMajor},
                                        {Pairing::kNone, Layout::kTokenMajor}})
    run_case({model_of(kv, 5, pairing, 16, 1.25f), 2, {{1, 8}, {16, 4}, {16, 2}}, {{16, 8}, {1, 0}, {16, 2}}}, layout,
             {8, 3, 1});
}

TEST_F(Transform, OddHeadsOtherTypesManyGroupsAndNothingKept) {
  // 40 groups are two slices.
  StackPlan many(40, {1, 4});
  many[7].bits = 0;
  run_case({model_of({Dtype::kF16, 3, 9, 7}, 2, Pairing::kAdjacent, 6), 1, {{1, 8}, {16, 8}}, {{1, 2}}},
           Layout::kScattered, {2});
  run_case({model_of({Dtype::kBf16, 2, 32, 32}, 2, Pairing::kHalves, 32), 0, many, {{64, 4}}}, Layout::kTokenMajor,
           {1});
  run_case({model_of({Dtype::kF32, 1, 33, 64}, 3, Pairing::kHalves, 32), 0, {{16, 4}}, {}}, Layout::kScattered, {1});
}

TEST_F(Transform, ConstantTokensHaveScalesOfZero) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  use({model_of({Dtype::kF16, 1, 16, 16}, 2, Pairing::kNone, 0), 0, {{1, 8}, {16, 4}}, {{16, 2}}});
  for (auto* stacks : {&artefact_->keys, &artefact_->values})
    for (float& mean : (*stacks)[0].mean) mean = 0.5f;
  Slots slots(*device, shape(1), Layout::kTokenMajor);
  for (const bool values : {false, true})
    slots.set(values, [](auto, std::uint32_t t, auto, auto) { return t == 5 ? 0.75f : 0.5f; });
  for (std::uint32_t section = 0; section < 2; ++section) {
    const Coded ours = encode(device.get(), {&slots}, section)[0], theirs = encode(nullptr, {&slots}, section)[0];
    const Parsed parsed = parse(ours.payload, section, 1);
    for (std::size_t row = 0; row < parsed.scales.size(); ++row) {
      if (row % 16 != 5) {
        EXPECT_EQ(parsed.scales[row], 0);
        EXPECT_EQ(parsed.shifts[row], 0);
      }
    }
    expect_near(ours.payload, theirs.payload, section, 1);
    Slots a(*device, slots.shape, Layout::kTokenMajor), b(*device, slots.shape, Layout::kTokenMajor);
    decode(device.get(), ours.payload, a, a.views, section);
    decode(nullptr, ours.payload, b, b.host_views, section);
    EXPECT_LE(error_between(section == 1 ? a.get(true) : a.get(false), section == 1 ? b.get(true) : b.get(false)),
              1e-3);
  }
}

TEST_F(Transform, WhatHasNoScaleIsToldAndStored) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  const float big = 60000.0f;  // a sum of these is beyond a half
  for (const float value : {std::nanf(""), INFINITY, -INFINITY, big}) {
    use({model_of({Dtype::kF16, 2, 32, 32}, 2, value == big ? Pairing::kNone : Pairing::kHalves, 32),
         1,
         {{16, 2}},
         {{16, 4}}});
    Slots slots(*device, shape(2), Layout::kTokenMajor);
    fill(slots, 3);
    slots.for_each(false, [&](std::uint32_t l, std::uint32_t t, std::uint32_t, std::uint32_t d, std::byte* at) {
      if (l == 1 && t == 20 && (value == big || d == 5)) put_value(Dtype::kF16, value, at);
    });
    std::vector<CodedSection> coded;
    std::vector<Coded> kept;
    for (std::uint32_t section = 0; section < 4; ++section) {
      kept.push_back(encode(device.get(), {&slots}, section)[0]);
      const CodingSums host = CodingKernels::fold(stack_tables(*codec_, section).transform, 2,
                                                  encode(nullptr, {&slots}, section)[0].sums),
                       ours = CodingKernels::fold(stack_tables(*codec_, section).transform, 2, kept.back().sums);
      EXPECT_EQ(ours.coded, host.coded);
      EXPECT_EQ(ours.coded, section != 2) << value;
      EXPECT_NEAR(ours.energy, host.energy, 1e-4 * host.energy);
      coded.push_back({!ours.coded, {}, ours.error_energy, ours.energy});
    }
    for (std::size_t i = 0; i < 4; ++i) coded[i].payload = kept[i].payload;
    const std::vector<std::byte> sealed = seal_frame(*codec_, slots, kPosition, coded),
                                 frame = encode_frame(*codec_, slots, kPosition);
    const std::vector<OpenedSection> a = open_frame(*codec_, sealed, slots, kPosition),
                                     b = open_frame(*codec_, frame, slots, kPosition);
    ASSERT_EQ(a.size(), 4u);
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(a[i].stored, b[i].stored);
    EXPECT_TRUE(a[2].stored && a[2].payload == b[2].payload);
  }
}

TEST_F(Transform, NoBarrierAndNoRangeIsMissing) {
  std::vector<std::byte> expected;
  for (const Ordering ordering : {Ordering::kPlain, Ordering::kEverything, Ordering::kShuffle}) {
    Hooks hooks = strict_hooks();
    hooks.ordering = ordering;
    hooks.submission_bytes = ordering == Ordering::kShuffle ? 0 : 1 << 14;  // in pieces
    const auto device = make(hooks);
    ASSERT_TRUE(device);
    use({model_of({Dtype::kF16, 2, 32, 32}, 2, Pairing::kAdjacent, 32), 0, {{16, 4}, {64, 2}}, {{16, 4}}});
    Slots source(*device, shape(3), Layout::kTokenMajor), target(*device, source.shape, Layout::kTokenMajor);
    fill(source, 4);
    On on(*this, device.get(), 0, source.shape.kv);
    on.add(source, source.views, 0, 2, {});
    on.batch.stack = &on.tables.transform;
    on.batch.layer_count = 2;
    on.batch.items = on.items;
    on.batch.scratch = on.arena.take(1 << 20);
    Result<Fence> last = Fence{};
    for (int round = 0; round < 2; ++round) {  // each call waits for the one before: scratch and payload are shared
      on.batch.views = round == 0 ? source.views : target.views;
      ASSERT_TRUE(device->kernels().encode(on.batch).ok());
      on.batch.views = target.views;
      last = device->kernels().decode(on.batch);
    }
    wait(*device, last);
    if (expected.empty()) expected = target.bytes();
    EXPECT_TRUE(target.bytes() == expected) << static_cast<int>(ordering);
  }
}

TEST_F(Transform, WhatCannotBeIsRefused) {
  const auto device = make(strict_hooks());
  ASSERT_TRUE(device);
  const std::vector<BlockView> views(4, {64, 64, 16, 16, 16, 16});
  const TransformItem item{.payload = 64, .sums = 64, .turns = 64, .view = 0, .block_count = 2};
  StackTransform good;
  good.layer_count = 2;
  good.groups = {{1, 8}};
  good.mean = good.basis = good.group_table = 64;
  const auto refused = [&](const StackTransform& stack, std::uint32_t first, std::uint32_t layers, bool encoding,
                           const char* part) {
    const TransformBatch batch{.shape = {Dtype::kF16, 1, 8, 8},
                               .stack = &stack,
                               .first_layer = first,
                               .layer_count = layers,
                               .views = views,
                               .items = {&item, 1},
                               .scratch = 64};
    for (CodingKernels* kernels :
         {static_cast<CodingKernels*>(&device->kernels()), static_cast<CodingKernels*>(&host_)}) {
      const Status status = encoding ? kernels->encode(batch).status() : kernels->decode(batch).status();
      EXPECT_EQ(status.code(), Code::kInvalidArgument);
      EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
    }
  };
  refused(good, 0, 1, true, "all layers");
  refused(good, 1, 2, false, "layers 1 to 3");
  StackTransform bad = good;
  bad.groups = {{1, 3}};
  refused(bad, 0, 2, true, "3 bits");
  bad.groups = {{17, 2}};
  refused(bad, 0, 2, true, "17 components");
  bad = good;
  bad.basis = 0;
  refused(bad, 0, 2, true, "must be set");
  bad = good;
  bad.pairing = Pairing::kHalves;
  bad.rotated_dims = 10;
  refused(bad, 0, 2, true, "rotation");
}

}  // namespace
}  // namespace firn::vk::testing
