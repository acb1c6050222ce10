// fake_topology.h: a machine with the nodes a test wants. Records what is asked of it.
#pragma once

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "storage/tier/topology.h"

namespace firn {

class FakeTopology final : public Topology {
 public:
  struct Request {
    int node = 0;
    std::size_t bytes = 0;
    bool touch = false;  // touch_from, else prefer
  };
  explicit FakeTopology(std::vector<int> nodes, int local = -1) : nodes_(std::move(nodes)), local_(local) {}

  std::vector<int> nodes() const override { return nodes_; }
  int local_node() const override { return local_ < 0 ? nodes_.front() : local_; }
  Status prefer(std::span<std::byte> range, int node) override {
    requests.push_back({node, range.size(), false});
    if (prefer_fails.ok()) placed_[range.data()] = {range.size(), node};
    return prefer_fails;
  }
  Status touch_from(std::span<std::byte> range, int node) override {
    requests.push_back({node, range.size(), true});
    return touch_fails;
  }
  Status locate(std::span<void* const> pages, std::span<int> nodes) const override {
    std::fill(nodes.begin(), nodes.end(), -1);
    if (!locate_fails.ok()) return locate_fails;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      auto at = placed_.upper_bound(static_cast<std::byte*>(pages[i]));
      if (at == placed_.begin()) continue;
      --at;
      if (static_cast<std::byte*>(pages[i]) >= at->first + at->second.first) continue;
      nodes[i] = spilled_to >= 0 && i % 2 == 1 ? spilled_to : at->second.second;
    }
    return {};
  }

  std::vector<Request> requests;
  Status prefer_fails, touch_fails, locate_fails;
  int spilled_to = -1;  // every second page of a query is found here

 private:
  std::vector<int> nodes_;
  int local_;
  std::map<std::byte*, std::pair<std::size_t, int>> placed_;
};

}  // namespace firn
