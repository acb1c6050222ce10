// firn_coder_fuzz.cpp: what the range decoder of firn does with bytes from anywhere. The first byte says how many
// numbers are asked for, the second which class comes first; whatever decodes is coded again and must be the same.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/check.h"
#include "storage/codec/artefact.h"
#include "storage/codec/firn_coder.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace firn;
  static const FirnModels models =
      FirnModels::make(load_artefact(FIRN_TEST_GOLDEN "/firn_v1.artefact").value()->firn.frequencies).value();
  if (size < 2) return 0;
  const std::size_t count = std::size_t{data[0]} * 4;
  const auto klass_of = [&](std::size_t i) { return static_cast<std::uint32_t>((data[1] + i / 64) % kFirnClasses); };
  const auto* first = reinterpret_cast<const std::byte*>(data) + 2;
  Result<FirnDecoder> decoder = FirnDecoder::open({first, size - 2});
  if (!decoder.ok()) {
    FIRN_CHECK(decoder.status().code() == Code::kCorrupt);
    return 0;
  }
  std::vector<std::int32_t> numbers(count);
  for (std::size_t i = 0; i < count; i += kFirnStreams)
    decoder->get_four(models.of(klass_of(i)), firn_low_bits(klass_of(i)), &numbers[i]);
  FirnEncoder encoder;
  for (std::size_t i = 0; i < count; ++i)
    FIRN_CHECK(encoder.put(i % kFirnStreams, models.of(klass_of(i)), firn_low_bits(klass_of(i)), numbers[i]));
  const std::vector<std::byte> again = encoder.finish();
  if (decoder->finish().ok()) FIRN_CHECK(again.size() <= size);  // what ends where it should is no longer than need be
  FirnDecoder second = FirnDecoder::open(again).value();
  for (std::size_t i = 0; i < count; ++i)
    FIRN_CHECK(second.get(i % kFirnStreams, models.of(klass_of(i)), firn_low_bits(klass_of(i))) == numbers[i]);
  FIRN_CHECK(second.finish().ok());
  return 0;
}
