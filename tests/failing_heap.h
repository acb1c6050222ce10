// failing_heap.h: an operator new that fails the n-th time it is asked, for the whole program: included by one file of
// it. No threads: which allocation is the n-th is then the same every time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"  // ours are a pair; inlining one hides that
#endif

namespace firn::test {

// The n-th allocation from now fails, and none after it; 0: none does.
inline std::uint64_t fail_at = 0;
inline bool failed = false;  // it has

inline bool may_allocate() {
  if (fail_at == 0 || --fail_at != 0) return true;
  failed = true;
  return false;
}

inline void* allocate(std::size_t bytes, std::size_t alignment) {
  if (!may_allocate()) throw std::bad_alloc();
  void* const memory = alignment <= alignof(std::max_align_t)
                           ? std::malloc(bytes == 0 ? 1 : bytes)
                           : std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace firn::test

void* operator new(std::size_t bytes) { return firn::test::allocate(bytes, 0); }
void* operator new[](std::size_t bytes) { return firn::test::allocate(bytes, 0); }
// std::stable_sort asks this one, and does without.
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return firn::test::may_allocate() ? std::malloc(bytes == 0 ? 1 : bytes) : nullptr;
}
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return firn::test::allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return firn::test::allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
