#include "storage/codec/codec_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "storage/codec/frame.h"

namespace firn {
namespace {

Result<std::uint32_t> bits_of(std::string_view name, std::string_view codec) {
  if (name == "q8") return 8u;
  if (name == "q4") return 4u;
  return Status(Code::kInvalidArgument,
                fmt::format("codec '{}': '{}' is not q8 or q4; raw, lossless, q8, q4, q8/q4 (keys/values) and "
                            "kvtc@RATE can be named",
                            codec, name));
}

Result<std::unique_ptr<Codec>> make_transform(const CodecTable::Options& options, std::string_view rate_text,
                                              const ModelSpec& model) {
  std::uint32_t rate = 0;
  const auto [end, error] = std::from_chars(rate_text.data(), rate_text.data() + rate_text.size(), rate);
  if (error != std::errc() || end != rate_text.data() + rate_text.size())
    return Status(Code::kInvalidArgument,
                  fmt::format("codec '{}': '{}' is no rate; write kvtc@16", options.codec, rate_text));
  if (options.artefact.empty())
    return Status(Code::kInvalidArgument, fmt::format("codec '{}' needs an artefact", options.codec));
  FIRN_ASSIGN(const std::shared_ptr<const Artefact> artefact, load_artefact(options.artefact));
  FIRN_ASSIGN(std::unique_ptr<Codec> codec, make_codec(CodecId::kKvtc, artefact, rate, model));
  for (const ArtefactRate& one : describe(*artefact).rates)
    if (one.rate == rate && !one.measured && !options.allow_unmeasured)
      return Status(Code::kInvalidArgument,
                    fmt::format("the artefact {} has no measured report of ratio {}; set allow_unmeasured to use it "
                                "all the same",
                                options.artefact, rate));
  return codec;
}

}  // namespace

Result<CodecTable> CodecTable::create(const Options& options, const ModelSpec& model) {
  CodecTable table;
  for (const CodecId id : {CodecId::kRaw, CodecId::kLossless}) {
    FIRN_ASSIGN(std::unique_ptr<Codec> codec, make_codec(id));
    table.codecs_.push_back(std::move(codec));
  }
  const Codec *raw = table.codecs_[0].get(), *lossless = table.codecs_[1].get();
  table.exact_ = options.codec == "raw" ? raw : lossless;
  table.usual_ = table.exact_;
  if (options.codec == "raw" || options.codec == "lossless") return table;
  for (const GroupSpec& group : model.groups)
    if (group.kv.dtype == Dtype::kBits8)
      return Status(Code::kInvalidArgument,
                    fmt::format("codec '{}' knows no values in elements of 8 bits (bits8); use raw or lossless, which "
                                "keep them as they are",
                                options.codec));
  const std::string_view name = options.codec;
  if (const std::size_t at = name.find('@'); at != std::string_view::npos && name.substr(0, at) == "kvtc") {
    FIRN_ASSIGN(std::unique_ptr<Codec> codec, make_transform(options, name.substr(at + 1), model));
    table.codecs_.push_back(std::move(codec));
  } else {
    const std::size_t slash = name.find('/');
    FIRN_ASSIGN(const std::uint32_t keys, bits_of(name.substr(0, slash), name));
    FIRN_ASSIGN(const std::uint32_t values,
                bits_of(slash == std::string_view::npos ? name : name.substr(slash + 1), name));
    FIRN_ASSIGN(std::unique_ptr<Codec> codec, make_integer_codec({.key_bits = keys, .value_bits = values}));
    table.codecs_.push_back(std::move(codec));
  }
  table.usual_ = table.codecs_.back().get();
  return table;
}

Result<const Codec*> CodecTable::of_frame(std::span<const std::byte> frame) const {
  FIRN_ASSIGN(const FrameView view, FrameView::open(frame));
  const FrameHeader& header = view.header();
  for (const auto& codec : codecs_)
    if (codec->id() == header.codec && codec->version() == header.codec_version && codec->rate() == header.rate &&
        codec->artefact() == header.artefact)
      return codec.get();
  return Status(Code::kCorrupt, fmt::format("frame: codec {} version {} rate {} is none of those here",
                                            to_string(header.codec), header.codec_version, header.rate));
}

std::size_t CodecTable::bound(const ExtentShape& shape) const {
  return std::max(exact_->bound(shape), usual_->bound(shape));
}

std::size_t CodecTable::scratch_bytes(const ExtentShape& shape) const {
  std::size_t bytes = 0;
  for (const auto& codec : codecs_) bytes = std::max(bytes, codec->scratch_bytes(shape));
  return bytes;
}

std::size_t CodecTable::resident_bytes() const {
  std::size_t bytes = 0;
  for (const auto& codec : codecs_) bytes += codec->resident_bytes();
  return bytes;
}

}  // namespace firn
