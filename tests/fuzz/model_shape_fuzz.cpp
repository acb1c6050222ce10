// model_shape_fuzz.cpp: what counting a model does with bytes from anywhere: a config.json, a GGUF directory, a table
// of codecs. Whatever is accepted has sizes that are finite, and none of them is 0.
#include <cmath>
#include <cstdint>
#include <span>
#include <string>

#include "cli/model_shape.h"
#include "core/base/check.h"
#include "sim/codec_figures.h"
#include "sim/engine.h"

namespace {

void check(const firn::Result<firn::sim::ModelShape>& model) {
  using namespace firn;
  if (!model.ok()) {
    FIRN_CHECK(!model.status().message().empty());
    return;
  }
  FIRN_CHECK(std::isfinite(model->parameters) && std::isfinite(model->weight_bytes) && model->weight_bytes >= 0);
  FIRN_CHECK(std::isfinite(model->bytes_read(3)) && std::isfinite(model->pair_flops()));
  FIRN_CHECK(model->token_bytes() > 0 && model->sequence_bytes(1000) > 0);
  FIRN_CHECK(validate(model->spec()).ok());
  for (const std::uint32_t count : {2u, 8u})
    if (const auto several = sim::spread(*model, count); several.ok())
      FIRN_CHECK(several->token_bytes() >= model->token_bytes());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace firn;
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (text.rfind("GGUF", 0) == 0 || data[0] % 8 == 0)
    check(cli::shape_of_gguf(std::as_bytes(std::span(text)), "fuzz.gguf"));
  check(sim::parse_model_config(text, "config.json"));
  if (const auto table = sim::parse_codec_table(text, "codecs.yaml"); table.ok())
    for (const sim::CodecFigures& codec : table->codecs) FIRN_CHECK(codec.ratio > 0 && codec.bytes_per_s > 0);
  return 0;
}
