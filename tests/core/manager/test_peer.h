// test_peer.h: the one way into a manager's inside, for tests that break it or its host tier.
#pragma once

#include "core/guarded_manager.h"
#include "core/manager_impl.h"

namespace firn {

struct ManagerTestPeer {
  static ManagerImpl& of(Manager& manager) { return static_cast<GuardedManager&>(manager).inside(); }
  static BlockPool& pool(Manager& manager) { return *of(manager).pool_; }
  static PrefixIndex& index(Manager& manager) { return *of(manager).index_; }
  static FrameTable& frames(Manager& manager) { return *of(manager).frames_; }
  static Ledger& ledger(Manager& manager) { return *of(manager).ledger_; }
  static EvictionPolicy& slot_policy(Manager& manager) { return *of(manager).slot_policy_; }
  static EvictionPolicy& frame_policy(Manager& manager) { return *of(manager).frame_policy_; }
  static MemoryTier& host(Manager& manager) { return *of(manager).host_; }
  static Sequence& sequence(Manager& manager, SeqId id) { return *of(manager).sequences_.at(firn::index(id)); }
  static std::vector<BlockId>& deferred_blocks(Manager& manager) {
    return of(manager).deferred_.front().tables[0].blocks;
  }
  static std::uint32_t& loading_slots(Manager& manager) { return of(manager).loading_slots_; }
  static std::uint64_t& host_raw_bytes(Manager& manager) { return of(manager).host_raw_bytes_; }
  static std::mutex& mutex(Manager& manager) { return of(manager).mutex_; }
  static const Codec* lossy(Manager& manager) { return of(manager).lossy_.get(); }
  static const std::byte* slot_bytes(Manager& manager, SlotId slot) { return of(manager).memory_->host(slot); }
  // What a frame decodes to, block after block; empty: it does not.
  static std::vector<std::byte> decoded(Manager& manager, FrameId id) {
    ManagerImpl& impl = of(manager);
    const Frame& frame = impl.frames_->frame(id);
    const PageSet& set = impl.set_of(frame);
    std::vector<std::byte> bytes(frame.block_count * impl.layout_.page_bytes);
    std::vector<BlockView> views;
    for (std::uint32_t layer = 0; layer < set.layer_count; ++layer)
      for (std::uint8_t i = 0; i < frame.block_count; ++i)
        views.push_back(
            block_view(set, reinterpret_cast<DeviceAddress>(bytes.data()) + i * impl.layout_.page_bytes, layer));
    const MemoryTier::Pin pin = impl.host_->find(frame.key);
    if (!pin) return {};
    DecodeJob job{.frame = pin.bytes(),
                  .shape = extent_shape(set, frame.block_count),
                  .label = impl.label_of(frame),
                  .layer = 0,
                  .layer_count = set.layer_count,
                  .views = views,
                  .status = {}};
    impl.codec_for(frame).decode({&job, 1}, nullptr);
    return job.status.ok() ? bytes : std::vector<std::byte>();
  }
  static std::uint32_t& kept_by_readers(Manager& manager) { return of(manager).all_kept_back_.reader; }
  // Slots that are free or could be had.
  static std::uint64_t reachable(Manager& manager) {
    const Lock lock(of(manager).mutex_);
    return of(manager).reach(ManagerImpl::kAnyNamespace).slots;
  }
  static std::uint32_t& chunk_slots(Manager& manager, std::uint32_t slot) {
    return of(manager).memory_->chunks_[of(manager).memory_->chunk_of(SlotId{slot})].slots;
  }
  static std::uint32_t& reserved_in(Manager& manager, std::string_view name) {
    return of(manager).namespaces_[*of(manager).namespaces_.find(name)].reserved;
  }
  static std::deque<Job>& stores(Manager& manager) { return of(manager).stores_; }

  using Slot = BlockPool::Slot;
  using Entry = PrefixIndex::Entry;
  static Slot& slot(Manager& manager, std::uint32_t at) { return pool(manager).slots_[at]; }
  static std::uint32_t& free_slots(Manager& manager) { return pool(manager).free_slots_; }
  static std::uint32_t& block_count(Manager& manager) { return pool(manager).block_count_; }
  static std::vector<Entry>& entries(Manager& manager) { return index(manager).table_; }
  static std::uint32_t& key_count(Manager& manager) { return index(manager).key_count_; }
  static std::uint32_t& duplicate_count(Manager& manager) { return index(manager).duplicate_count_; }
  static std::uint32_t& frame_count(Manager& manager) { return frames(manager).count_; }

  // create(), with its n-th charge failing.
  static Result<std::unique_ptr<Manager>> create_failing(const Config& config, const ModelSpec& model,
                                                         const Manager::Environment& environment, std::uint64_t nth) {
    std::unique_ptr<ManagerImpl> manager(new ManagerImpl(config, model, environment));
    manager->fail_charge_ = nth;
    FIRN_TRY(manager->set_up());
    return std::unique_ptr<Manager>(std::make_unique<GuardedManager>(std::move(manager)));
  }

  // Turns one bit of every frame the manager has in its host tier.
  static std::uint32_t damage_frames(Manager& manager, std::size_t byte_from_end) {
    std::uint32_t damaged = 0;
    FrameTable& table = frames(manager);
    for (std::uint32_t i = 0; i < table.capacity(); ++i) {
      const Frame& frame = table.frame(FrameId{i});
      if (!frame.in_use) continue;
      const MemoryTier::Pin pin = host(manager).find(frame.key);
      if (!pin) continue;
      const_cast<std::byte*>(pin.bytes().data())[pin.bytes().size() - byte_from_end] ^= std::byte{4};
      ++damaged;
    }
    return damaged;
  }
};

}  // namespace firn
