// The host tier on a machine with several memory nodes: runs as the only program of a small guest (see run). Fills a
// tier of each placement and lets the guest's kernel say where the pages are. Prints one line per claim, and the end
// marker.
#include <cstdio>
#include <string>

#include "storage/tier/host_tier.h"

namespace {

using namespace firn;

int failures = 0;
void expect(bool holds, const std::string& claim) {
  std::printf("%s %s\n", holds ? "ok  " : "FAIL", claim.c_str());
  failures += !holds;
}

void fill(const std::string& placement, std::size_t arenas) {
  constexpr std::uint64_t kBudget = 96 << 20;
  Ledger ledger(0, kBudget);
  Result<std::unique_ptr<HostTier>> made = HostTier::create({.budget_bytes = kBudget, .placement = placement}, ledger);
  expect(made.ok(), placement + " is created " + made.status().message());
  if (!made.ok()) return;
  for (std::uint64_t key = 0;; ++key) {
    Result<MemoryTier::Reservation> room = (*made)->reserve(1 << 20);
    if (!room.ok()) break;
    for (std::byte& byte : room->bytes()) byte = std::byte{1};
    expect((*made)->publish(std::move(room).value(), {key, key}, 1 << 20).ok() || key > 0, "published");
  }
  const std::vector<NodePlacement> parts = (*made)->placement();
  expect(parts.size() == arenas, placement + " has " + std::to_string(parts.size()) + " arenas");
  for (const NodePlacement& part : parts) {
    const std::string where = placement + " node " + std::to_string(part.node) + ": " +
                              std::to_string(part.bytes >> 20) + " MiB, " + std::to_string(part.verified_pages) +
                              " pages seen, " + std::to_string(part.misplaced_pages) + " elsewhere " + part.note;
    expect(part.misplaced_pages == 0 && part.verified_pages > part.bytes / 4096 / 2, where);
  }
}

}  // namespace

int main() {
  const std::vector<int> nodes = system_topology().nodes();
  expect(nodes.size() >= 2, std::to_string(nodes.size()) + " nodes with memory");
  fill("local", 1);
  for (const int node : nodes) fill("node:" + std::to_string(node), 1);
  fill("interleave", nodes.size());
  fill("spread:1,3", 2);
  Ledger ledger(0, 1 << 20);
  const Status absent = HostTier::create({.budget_bytes = 1 << 20, .placement = "node:9"}, ledger).status();
  expect(absent.code() == Code::kInvalidArgument, "node:9 is refused: " + absent.message());
  std::printf("firn guest: %d failures\n", failures);
  return failures != 0;
}
