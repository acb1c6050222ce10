// The disk tier through the suite of every tier: past the page cache and through it, and behind a tier that delays,
// fails and loses.
#include "storage/tier/faulty_tier.h"
#include "tests/storage/tier/conformance.h"
#include "tests/storage/tier/disk_fixture.h"

namespace firn::conformance {
namespace {

// A directory goes with its tier.
class OwnDirectory final : public Tier {
 public:
  OwnDirectory(std::unique_ptr<disk::TemporaryDirectory> directory, std::unique_ptr<DiskTier> tier)
      : directory_(std::move(directory)), tier_(std::move(tier)) {}
  std::string_view name() const override { return tier_->name(); }
  Capabilities capabilities() const override { return tier_->capabilities(); }

 private:
  Result<Ticket> do_submit(std::span<const Op> batch) override { return tier_->submit(batch); }
  std::size_t do_poll(std::span<Done> out) override { return tier_->poll(out); }
  Stats do_stats() const override {  // the gauges; this one counts for itself
    const Stats all = tier_->stats();
    Stats stats;
    stats.capacity_bytes = all.capacity_bytes, stats.resident_bytes = all.resident_bytes;
    stats.metadata_bytes = all.metadata_bytes, stats.frames = all.frames;
    stats.largest_free_bytes = all.largest_free_bytes;
    return stats;
  }
  Status do_verify() const override { return tier_->verify(); }

  std::unique_ptr<disk::TemporaryDirectory> directory_;
  std::unique_ptr<DiskTier> tier_;
};

TierSubject make_disk(bool direct) {
  TierSubject subject;
  subject.ledger = std::make_unique<Ledger>(0, 64 << 20);
  auto directory = std::make_unique<disk::TemporaryDirectory>();
  DiskTierOptions options = disk::test_options(directory->path());
  options.direct = direct;
  Result<std::unique_ptr<DiskTier>> tier = DiskTier::create(options, *subject.ledger);
  EXPECT_TRUE(tier.ok()) << tier.status().message();
  if (tier.ok()) subject.tier = std::make_unique<OwnDirectory>(std::move(directory), std::move(*tier));
  return subject;
}
TierSubject behind(const FaultyTier::Rates& rates) {
  TierSubject subject = make_disk(true);
  subject.inner = std::move(subject.tier);
  if (subject.inner != nullptr)
    subject.tier = std::make_unique<FaultyTier>(*subject.inner, FaultyTier::Options::all(11, rates));
  return subject;
}

const TierCase kDirect{"direct", [] { return make_disk(true); }};
const TierCase kBuffered{"buffered", [] { return make_disk(false); }};
const TierCase kDelayed{"delayed", [] { return behind({.delay = .5}); }};
const TierCase kFaulty{"faulty", [] { return behind({.fail = .1, .delay = .2, .lose = .1}); }, true};

INSTANTIATE_TEST_SUITE_P(Disk, TierConformance, testing::Values(kDirect, kBuffered, kDelayed, kFaulty), case_name);

}  // namespace
}  // namespace firn::conformance
