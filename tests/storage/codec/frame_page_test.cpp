// docs/frame.md is the specification: its tables are read here and held against frames that the code writes.
#include <gtest/gtest.h>
#include <xxhash.h>

#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "storage/codec/bytes.h"
#include "storage/codec/frame.h"
#include "tests/storage/codec/extents.h"

namespace firn {
namespace {

using namespace test;

struct Field {
  std::string name;
  std::size_t offset = 0, bytes = 0;
};

std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream in(line);
  std::string cell;
  std::getline(in, cell, '|');
  while (std::getline(in, cell, '|')) {
    const std::size_t first = cell.find_first_not_of(' '), last = cell.find_last_not_of(' ');
    cells.push_back(first == std::string::npos ? "" : cell.substr(first, last - first + 1));
  }
  return cells;
}

// The page's tables with the columns offset, bytes, field, in their order.
std::vector<std::vector<Field>> byte_tables() {
  std::ifstream page(FIRN_SOURCE_DIR "/docs/frame.md");
  std::vector<std::vector<Field>> tables;
  bool inside = false;
  for (std::string line; std::getline(page, line);) {
    if (line.rfind("| offset | bytes | field |", 0) == 0) {
      tables.emplace_back();
      inside = true;
    } else if (line.empty() || line[0] != '|') {
      inside = false;
    } else if (inside && line.rfind("|---", 0) != 0) {
      const std::vector<std::string> cells = cells_of(line);
      tables.back().push_back({cells.at(2), std::stoul(cells.at(0)), std::stoul(cells.at(1))});
    }
  }
  return tables;
}

void expect_gapless(const std::vector<Field>& table, std::size_t bytes) {
  std::size_t at = 0;
  for (const Field& field : table) {
    EXPECT_EQ(field.offset, at) << field.name;
    at += field.bytes;
  }
  EXPECT_EQ(at, bytes);
}

std::uint64_t number_at(std::span<const std::byte> bytes, std::size_t offset, std::size_t count) {
  std::uint64_t value = 0;
  for (std::size_t i = count; i-- > 0;) value = value << 8 | std::to_integer<std::uint64_t>(bytes[offset + i]);
  return value;
}

TEST(FramePage, TablesHaveNoGapsAndTheRightSizes) {
  const auto tables = byte_tables();
  ASSERT_EQ(tables.size(), 4u) << "header, section table, plane directory, head of a state";
  expect_gapless(tables[0], kFrameHeaderBytes);
  expect_gapless(tables[1], kSectionEntryBytes);
  expect_gapless(tables[2], 8);
  expect_gapless(tables[3], 128);
}

// A frame with a different number in every field, so that no two can be swapped unseen.
FrameHeader distinctive_header() {
  FrameHeader header;
  header.keys_unrotated = true;
  header.label = some_label();
  header.label.fidelity = Fidelity::kLossy;
  header.label.first_position = 0x1122334455667788;
  header.artefact.bytes.fill(0xab);
  header.codec = CodecId::kFirn;
  header.codec_version = 258;
  header.shape = shape_of(Dtype::kBf16, 300, 5, 7, 96, 112);
  header.position_kind = 1;
  header.stack_count = 10;
  header.rate = 0x01020304;
  header.key_error = 0.25f;
  header.value_error = 0.5f;
  return header;
}

std::vector<SectionEntry> place(FrameHeader& header, std::vector<SectionEntry> entries) {
  std::uint64_t at = frame_head_bytes(static_cast<std::uint32_t>(entries.size()));
  header.raw_bytes = 0;
  for (SectionEntry& entry : entries) {
    entry.offset = at;
    at = align_frame(at + entry.encoded_bytes);
    header.raw_bytes += entry.raw_bytes;
  }
  header.total_bytes = at;
  header.section_count = static_cast<std::uint32_t>(entries.size());
  return entries;
}

TEST(FramePage, EveryFieldOfHeaderAndTableIsWhereThePageSays) {
  FrameHeader header = distinctive_header();
  const std::vector<SectionEntry> entries = place(header, {{.index = 3,
                                                            .kind = SectionKind::kStackKeys,
                                                            .coding = 9,
                                                            .parameter = 77,
                                                            .encoded_bytes = 100,
                                                            .raw_bytes = 5000,
                                                            .checksum = 0x0102030405060708},
                                                           {.index = 4,
                                                            .kind = SectionKind::kPositions,
                                                            .coding = 1,
                                                            .parameter = 78,
                                                            .encoded_bytes = 64,
                                                            .raw_bytes = 640,
                                                            .checksum = 0x1112131415161718}});
  Bytes frame(header.total_bytes);
  write_frame_head(header, entries, frame);

  const std::map<std::string, std::uint64_t> expected = {{"magic", 0x1a0a0d4e52494689},
                                                         {"format_version", 1},
                                                         {"header_bytes", 192},
                                                         {"section_count", 2},
                                                         {"head_bytes", 320},
                                                         {"flags", 1},
                                                         {"total_bytes", 320 + 128 + 64},
                                                         {"raw_bytes", 5640},
                                                         {"codec", 6},
                                                         {"codec_version", 258},
                                                         {"fidelity", 2},
                                                         {"dtype", 2},
                                                         {"group", 2},
                                                         {"block_tokens", 16},
                                                         {"block_count", 5},
                                                         {"layer_count", 300},
                                                         {"kv_heads", 7},
                                                         {"head_dim", 96},
                                                         {"value_dim", 112},
                                                         {"token_count", 80},
                                                         {"first_position", 0x1122334455667788},
                                                         {"position_kind", 1},
                                                         {"stack_count", 10},
                                                         {"rate", 0x01020304},
                                                         {"key_error", 0x3e800000},
                                                         {"value_error", 0x3f000000}};
  const auto tables = byte_tables();
  std::size_t seen = 0;
  for (const Field& field : tables[0]) {
    const auto bytes = std::span(frame).subspan(field.offset, field.bytes);
    if (field.name == "last_key") {
      EXPECT_EQ(0, std::memcmp(bytes.data(), header.label.last_key.bytes.data(), 32));
    } else if (field.name == "artefact") {
      EXPECT_EQ(0, std::memcmp(bytes.data(), header.artefact.bytes.data(), 32));
    } else if (field.name == "reserved") {
      for (const std::byte b : bytes) EXPECT_EQ(b, std::byte{0});
    } else {
      ASSERT_EQ(expected.count(field.name), 1u) << field.name;
      EXPECT_EQ(number_at(frame, field.offset, field.bytes), expected.at(field.name)) << field.name;
      ++seen;
    }
  }
  EXPECT_EQ(seen, expected.size());

  for (std::size_t i = 0; i < entries.size(); ++i) {
    const SectionEntry& e = entries[i];
    const std::map<std::string, std::uint64_t> entry = {
        {"index", e.index},         {"kind", i == 0 ? 3 : 5},       {"coding", e.coding},
        {"parameter", e.parameter}, {"offset", i == 0 ? 320 : 448}, {"encoded_bytes", e.encoded_bytes},
        {"raw_bytes", e.raw_bytes}, {"checksum", e.checksum}};
    ASSERT_EQ(tables[1].size(), entry.size());
    for (const Field& field : tables[1])
      EXPECT_EQ(number_at(frame, kFrameHeaderBytes + i * kSectionEntryBytes + field.offset, field.bytes),
                entry.at(field.name))
          << field.name;
  }
  EXPECT_EQ(number_at(frame, 320 - 8, 8), XXH3_64bits(frame.data(), 320 - 8)) << "checksum of the head";

  const Result<FrameView> view = FrameView::open(frame);
  ASSERT_TRUE(view.ok()) << view.status().message();
  const FrameHeader& read = view->header();
  EXPECT_EQ(read.label, header.label);
  EXPECT_EQ(read.shape, header.shape);
  EXPECT_EQ(read.artefact, header.artefact);
  EXPECT_TRUE(read.keys_unrotated);
  EXPECT_EQ(read.codec, header.codec);
  EXPECT_EQ(read.codec_version, header.codec_version);
  EXPECT_EQ(read.position_kind, 1);
  EXPECT_EQ(read.stack_count, 10);
  EXPECT_EQ(read.rate, header.rate);
  EXPECT_EQ(read.key_error, 0.25f);
  EXPECT_EQ(read.value_error, 0.5f);
  EXPECT_EQ(read.raw_bytes, 5640u);
}

TEST(FramePage, ACodecsFrameHasThePagesSections) {
  const ExtentShape shape = shape_of(Dtype::kF16, 3, 2, 2, 64, 80);
  Extent extent(shape, Layout::kPacked);
  extent.set_bytes(cache_like_bytes(shape, 1));
  const Bytes frame = encode(*codec_of(CodecId::kRaw), extent, some_label());
  const auto tables = byte_tables();
  const auto field = [&](std::size_t table, const std::string& name) {
    for (const Field& f : tables[table])
      if (f.name == name) return f;
    ADD_FAILURE() << name;
    return Field{};
  };
  const auto entry_of = [&](std::size_t i, const std::string& name) {
    const Field f = field(1, name);
    return number_at(frame, 192 + 40 * i + f.offset, f.bytes);
  };
  EXPECT_EQ(number_at(frame, field(0, "section_count").offset, 4), 6u);
  const Bytes raw = extent.bytes();
  std::size_t offset = number_at(frame, field(0, "head_bytes").offset, 4), at = 0;
  for (std::size_t i = 0; i < 6; ++i) {
    const std::size_t bytes = 2 * 16 * 2 * (i % 2 == 0 ? 64 : 80) * 2;
    EXPECT_EQ(entry_of(i, "index"), i / 2);
    EXPECT_EQ(entry_of(i, "kind"), i % 2 + 1);
    EXPECT_EQ(entry_of(i, "offset"), offset);
    EXPECT_EQ(entry_of(i, "encoded_bytes"), bytes);
    EXPECT_EQ(entry_of(i, "raw_bytes"), bytes);
    EXPECT_EQ(0, std::memcmp(frame.data() + offset, raw.data() + at, bytes));
    // The page's seed, spelled out.
    const FrameKey name = frame_key(some_label(), 2, CodecId::kRaw, 1);
    std::byte place[20];
    store_le(place, name.lo);
    store_le(place + 8, name.hi);
    store_le(place + 16, static_cast<std::uint32_t>(i));
    EXPECT_EQ(entry_of(i, "checksum"),
              XXH3_64bits_withSeed(frame.data() + offset, (bytes + 63) / 64 * 64, XXH3_64bits(place, 20)));
    offset += (bytes + 63) / 64 * 64;
    at += bytes;
  }
  EXPECT_EQ(offset, frame.size());
}

TEST(FramePage, NameVectorsAreThoseOfThePage) {
  FrameLabel a, b;
  Digest artefact;
  for (std::size_t i = 0; i < 32; ++i) {
    a.last_key.bytes[i] = static_cast<std::uint8_t>(i);
    b.last_key.bytes[i] = static_cast<std::uint8_t>(255 - i);
    artefact.bytes[i] = static_cast<std::uint8_t>(i);
  }
  b.group = static_cast<GroupId>(3);
  b.fidelity = Fidelity::kLossy;
  const auto hex = [](const FrameKey& key) {
    std::byte bytes[16];
    store_le(bytes, key.lo);
    store_le(bytes + 8, key.hi);
    Digest digest;
    std::memcpy(digest.bytes.data(), bytes, 16);
    return to_hex(digest).substr(0, 32);
  };
  std::vector<std::string> vectors;
  std::ifstream page(FIRN_SOURCE_DIR "/docs/frame.md");
  for (std::string line; std::getline(page, line);)
    if (line.rfind("| last_key 00", 0) == 0 || line.rfind("| last_key ff", 0) == 0)
      vectors.push_back(cells_of(line).at(1));
  EXPECT_EQ(vectors, (std::vector<std::string>{hex(frame_key(a, 8, CodecId::kLossless, 1)),
                                               hex(frame_key(b, 1, CodecId::kFirn, 258, artefact, 77))}));
}

TEST(FrameName, ChangesWithEverythingThatTellsFramesApart) {
  const FrameLabel label = some_label();
  std::vector<FrameKey> names = {frame_key(label, 8, CodecId::kLossless, 1), frame_key(label, 7, CodecId::kLossless, 1),
                                 frame_key(label, 8, CodecId::kRaw, 1), frame_key(label, 8, CodecId::kLossless, 2)};
  FrameLabel other = label;
  other.last_key.bytes[31] ^= 1;
  names.push_back(frame_key(other, 8, CodecId::kLossless, 1));
  other = label;
  other.group = static_cast<GroupId>(3);
  names.push_back(frame_key(other, 8, CodecId::kLossless, 1));
  other = label;
  other.fidelity = Fidelity::kDerived;
  names.push_back(frame_key(other, 8, CodecId::kLossless, 1));
  Digest artefact;
  artefact.bytes[0] = 1;
  names.push_back(frame_key(label, 8, CodecId::kLossless, 1, artefact));
  names.push_back(frame_key(label, 8, CodecId::kLossless, 1, {}, 1));
  for (std::size_t i = 0; i < names.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(names[i], names[j]) << i << " and " << j;
}

}  // namespace
}  // namespace firn
