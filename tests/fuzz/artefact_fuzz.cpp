// artefact_fuzz.cpp: what reading an artefact does with bytes from anywhere. The first byte chooses whether the
// checksum is made to match.
#include <blake3.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/check.h"
#include "storage/codec/artefact.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace firn;
  if (size == 0) return 0;
  const auto* first = reinterpret_cast<const std::byte*>(data) + 1;
  std::vector<std::byte> file(first, first + size - 1);
  if ((data[0] & 1) != 0 && file.size() >= 32) {
    blake3_hasher state;
    blake3_hasher_init(&state);
    blake3_hasher_update(&state, file.data(), file.size() - 32);
    blake3_hasher_finalize(&state, reinterpret_cast<std::uint8_t*>(file.data() + file.size() - 32), 32);
  }
  const Result<std::shared_ptr<const Artefact>> read = parse_artefact(file);
  if (!read.ok()) {
    FIRN_CHECK(read.status().code() == Code::kCorrupt);
    return 0;
  }
  // Whatever it was, it is an artefact now, and must survive being written.
  Artefact again = **read;
  const std::vector<std::byte> written = write_artefact(again);
  FIRN_CHECK(parse_artefact(written).ok());
  for (const KvtcPlan& plan : again.plans) {
    ModelSpec model;
    model.weights = again.weights;
    model.rotation = again.rotation;
    model.groups = {GroupSpec{.kind = GroupKind::kFull, .layer_count = again.layer_count, .kv = again.kv}};
    const auto codec = make_codec(again.codec, *read, plan.report.rate, model);
    FIRN_CHECK(codec.ok() || codec.status().code() == Code::kInvalidArgument);
  }
  return 0;
}
