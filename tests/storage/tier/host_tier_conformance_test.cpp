// The host tier through the suite of every tier: plain, spread over nodes, and behind a tier that delays, fails and
// loses.
#include "storage/tier/faulty_tier.h"
#include "storage/tier/host_tier.h"
#include "tests/storage/tier/conformance.h"
#include "tests/storage/tier/fake_topology.h"

namespace firn::conformance {
namespace {

TierSubject make_host(Topology& topology, const std::string& placement) {
  TierSubject subject;
  subject.ledger = std::make_unique<Ledger>(0, 8 << 20);
  Result<std::unique_ptr<HostTier>> tier =
      make_host_tier({.budget_bytes = 4 << 20, .placement = placement}, *subject.ledger, topology);
  EXPECT_TRUE(tier.ok()) << tier.status().message();
  if (tier.ok()) subject.tier = std::move(tier).value();
  return subject;
}

TierSubject plain() { return make_host(system_topology(), "local"); }
TierSubject spread() {
  static FakeTopology topology({0, 1, 4});
  return make_host(topology, "spread:1,0,3");
}
TierSubject behind(const FaultyTier::Rates& rates) {
  TierSubject subject = plain();
  subject.inner = std::move(subject.tier);
  if (subject.inner != nullptr)
    subject.tier = std::make_unique<FaultyTier>(*subject.inner, FaultyTier::Options::all(11, rates));
  return subject;
}

const TierCase kPlain{"plain", plain}, kSpread{"spread", spread};
const TierCase kDelayed{"delayed", [] { return behind({.delay = .5}); }};
const TierCase kFaulty{"faulty", [] { return behind({.fail = .1, .delay = .2, .lose = .1}); }, true};

INSTANTIATE_TEST_SUITE_P(Host, TierConformance, testing::Values(kPlain, kSpread, kDelayed, kFaulty), case_name);
INSTANTIATE_TEST_SUITE_P(Host, MemoryTierConformance, testing::Values(kPlain, kSpread), case_name);

}  // namespace
}  // namespace firn::conformance
