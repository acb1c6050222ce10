// bytes.h: little-endian numbers in byte strings, whatever the machine's own order and alignment rules are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace firn {

template <class T>
T load_le(const std::byte* at) {
  static_assert(std::is_unsigned_v<T>);
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value = static_cast<T>(value | static_cast<T>(static_cast<T>(at[i]) << (8 * i)));
  return value;
}

template <class T>
void store_le(std::byte* at, T value) {
  static_assert(std::is_unsigned_v<T>);
  for (std::size_t i = 0; i < sizeof(T); ++i) at[i] = static_cast<std::byte>(value >> (8 * i));
}

}  // namespace firn
