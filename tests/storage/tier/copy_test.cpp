// The copy routines against plain assignment, at every alignment and around every size where they change loops.
#include "storage/tier/copy.h"

#include <gtest/gtest.h>

#include <vector>

namespace firn {
namespace {

TEST(Copy, CopiesExactlyTheBytesAtAnyAlignment) {
  std::vector<std::byte> from(20'000);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 131 + (i >> 8));
  for (const auto copy : {copy_past_caches, copy_through_caches}) {
    for (const std::size_t bytes : {0, 1, 31, 63, 64, 65, 127, 128, 1000, 4095, 4096, 4097, 4159, 4160, 9999}) {
      for (std::size_t shift = 0; shift<80; shift += bytes> 200 ? 7 : 1) {
        std::vector<std::byte> to(bytes + 200, std::byte{0x5a});
        const std::size_t source = shift * 3 % 70;
        copy(to.data() + shift, from.data() + source, bytes);
        for (std::size_t i = 0; i < to.size(); ++i) {
          const bool inside = i >= shift && i < shift + bytes;
          ASSERT_EQ(to[i], inside ? from[source + i - shift] : std::byte{0x5a})
              << bytes << " bytes at " << shift << ": " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace firn
