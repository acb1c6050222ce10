// id_lists.h: doubly linked lists of ids, with all links in one array, so that an id in the middle leaves in O(1) and
// nothing is ever allocated. An id is in at most one list.
#pragma once

#include <cstdint>
#include <vector>

namespace firn {

class IdLists {
 public:
  static constexpr std::uint32_t kNone = ~0u;
  IdLists(std::uint32_t capacity, std::uint32_t lists) : capacity_(capacity), links_(capacity + lists), sizes_(lists) {
    for (std::uint32_t list = 0; list < lists; ++list) links_[capacity + list] = {capacity + list, capacity + list};
  }

  // The oldest, where victims are looked for; kNone: the list is empty.
  std::uint32_t front(std::uint32_t list) const { return checked(links_[capacity_ + list].next); }
  std::uint32_t back(std::uint32_t list) const { return checked(links_[capacity_ + list].previous); }
  std::uint32_t next(std::uint32_t id) const { return checked(links_[id].next); }
  std::uint32_t size(std::uint32_t list) const { return sizes_[list]; }

  void push_back(std::uint32_t list, std::uint32_t id) { link(list, id, capacity_ + list); }
  void insert_before(std::uint32_t list, std::uint32_t id, std::uint32_t other) { link(list, id, other); }
  void unlink(std::uint32_t list, std::uint32_t id) {
    links_[links_[id].previous].next = links_[id].next;
    links_[links_[id].next].previous = links_[id].previous;
    --sizes_[list];
  }

 private:
  struct Link {
    std::uint32_t previous = 0, next = 0;
  };
  std::uint32_t checked(std::uint32_t id) const { return id < capacity_ ? id : kNone; }
  void link(std::uint32_t list, std::uint32_t id, std::uint32_t before) {
    const std::uint32_t previous = links_[before].previous;
    links_[id] = {previous, before};
    links_[previous].next = id;
    links_[before].previous = id;
    ++sizes_[list];
  }

  std::uint32_t capacity_ = 0;
  std::vector<Link> links_;  // ids, then one sentinel a list
  std::vector<std::uint32_t> sizes_;
};

}  // namespace firn
