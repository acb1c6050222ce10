// Readers: every format, every packing, and what they do with lines that are wrong.
#include "sim/trace.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "sim/bookkeeping.h"
#include "sim/byte_source.h"
#include "sim/json_scan.h"
#include "sim/trace_info.h"
#include "tests/sim/traces.h"

namespace firn::sim {
namespace {

class TraceTest : public testing::Test {
 protected:
  TraceTest() { std::filesystem::create_directories(folder_); }
  ~TraceTest() override {
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }
  std::string write(const std::string& name, const std::string& bytes) {
    const std::string path = (folder_ / name).string();
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  std::vector<TraceRequest> read(const std::string& path, const TraceOptions& options = {}) {
    const auto made = TraceReader::open(path, options);
    EXPECT_TRUE(made.ok()) << made.status().message();
    std::vector<TraceRequest> requests;
    if (!made.ok()) return requests;
    reader_ = std::move(const_cast<std::unique_ptr<TraceReader>&>(*made));
    TraceRequest request;
    while (true) {
      const Result<bool> more = reader_->next(request);
      EXPECT_TRUE(more.ok()) << more.status().message();
      if (!more.ok() || !*more) return requests;
      requests.push_back(request);
    }
  }
  std::filesystem::path folder_ = std::filesystem::temp_directory_path() / ("firn_trace_" + std::to_string(getpid()));
  std::unique_ptr<TraceReader> reader_;
};

std::string gzip(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string packed(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

std::string zstd(const std::string& text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3));
  return packed;
}

const char* const kMooncake =
    "{\"timestamp\": 0, \"input_length\": 1100, \"output_length\": 5, \"hash_ids\": [0, 1, 2]}\n"
    "{\"timestamp\": 27.5, \"hash_ids\": [0, 1], \"extra\": {\"a\": [1, {\"b\": null}]}, \"input_length\": 600, "
    "\"output_length\": 7}\r\n";

void expect_mooncake(const std::vector<TraceRequest>& requests) {
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[0].blocks, (std::vector<std::uint64_t>{0, 1, 2}));
  EXPECT_EQ(requests[1].time_ns, 27'500'000);
  EXPECT_EQ(requests[1].input_tokens, 600u);
  EXPECT_EQ(requests[1].output_tokens, 7u);
  EXPECT_EQ(requests[1].blocks, (std::vector<std::uint64_t>{0, 1}));
}

TEST_F(TraceTest, ReadsOneTraceInEveryPacking) {
  const std::string text = kMooncake;
  expect_mooncake(read(write("plain", text)));
  EXPECT_EQ(reader_->block_tokens(), 512u);
  EXPECT_EQ(reader_->format(), TraceFormat::kMooncake);
  expect_mooncake(read(write("gzip", gzip(text))));
  expect_mooncake(read(write("zstd", zstd(text))));
  // Several members and frames one behind the other are one stream, as cat makes them.
  expect_mooncake(read(write("gzips", gzip(text.substr(0, 50)) + gzip(text.substr(50)))));
  expect_mooncake(read(write("zstds", zstd(text.substr(0, 50)) + zstd(text.substr(50)))));
  expect_mooncake(read(write("no newline at the end", text.substr(0, text.size() - 2))));
}

TEST_F(TraceTest, TellsAPackedFileThatEndsTooEarlyFromOneThatEnds) {
  for (const std::string& packed : {gzip(kMooncake), zstd(kMooncake)}) {
    for (std::size_t length = 5; length < packed.size(); length += 7) {
      const auto made = TraceReader::open(write("cut", packed.substr(0, length)), {.format = TraceFormat::kMooncake});
      if (!made.ok()) {
        EXPECT_EQ(made.status().code(), Code::kCorrupt);
        continue;
      }
      TraceRequest request;
      Result<bool> more = true;
      while (more.ok() && *more) more = (*made)->next(request);
      EXPECT_EQ(more.status().code(), Code::kCorrupt) << "prefix of " << length << " bytes";
    }
  }
}

TEST_F(TraceTest, CountsBadLinesAndSaysWhereTheyAre) {
  const std::string text = std::string(kMooncake) +
                           "not json\n\n"
                           "{\"timestamp\": 1, \"output_length\": 1}\n"
                           "{\"timestamp\": -1, \"input_length\": 5, \"output_length\": 1}\n"
                           "{\"timestamp\": 1, \"input_length\": 1e12, \"output_length\": 1}\n"
                           "{\"timestamp\": 1, \"input_length\": 5000, \"output_length\": 1, \"hash_ids\": [1]}\n"
                           "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1, \"hash_ids\": [1,]}\n"
                           "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1, \"hash_ids\": [1.5]}\n"
                           "{\"timestamp\": 1, \"input_length\": 5, \"output_length\": 1} trailing\n"
                           "{\"timestamp\": 40, \"input_length\": 5, \"output_length\": 1}\n";
  const std::string path = write("bad", text);
  EXPECT_EQ(read(path).size(), 3u);
  EXPECT_EQ(reader_->bad_line_count(), 8u);
  ASSERT_EQ(reader_->bad_lines().size(), 8u);
  const std::uint64_t expected[] = {3, 5, 6, 7, 8, 9, 10, 11};
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(reader_->bad_lines()[i].line, expected[i]);
  EXPECT_NE(reader_->bad_lines()[1].why.find("input_length"), std::string::npos);
  EXPECT_NE(reader_->bad_lines()[4].why.find("512"), std::string::npos) << "the block size that does not fit";

  const auto strict = TraceReader::open(path, {.strict = true});
  ASSERT_TRUE(strict.ok());
  TraceRequest request;
  ASSERT_TRUE((*strict)->next(request).ok());
  ASSERT_TRUE((*strict)->next(request).ok());
  const Result<bool> third = (*strict)->next(request);
  ASSERT_FALSE(third.ok());
  EXPECT_NE(third.status().message().find(":3: "), std::string::npos) << third.status().message();
}

TEST_F(TraceTest, ReadsQwenLinesInSecondsAndFollowsTheirSessions) {
  const auto requests =
      read(write("qwen",
                 "{\"chat_id\": 10, \"parent_chat_id\": -1, \"timestamp\": 1.5, \"input_length\": 40, "
                 "\"output_length\": 3, \"type\": \"text\", \"turn\": 1, \"hash_ids\": [7, 8, 9]}\n"
                 "{\"chat_id\": 11, \"parent_chat_id\": 10, \"timestamp\": 9, \"input_length\": 50, "
                 "\"output_length\": 3, \"type\": \"text\", \"turn\": 2, \"hash_ids\": [7, 8, 10, 12]}\n"
                 "{\"chat_id\": 12, \"parent_chat_id\": 11, \"timestamp\": 10, \"input_length\": 1, "
                 "\"output_length\": 3, \"type\": \"text\", \"turn\": 3, \"hash_ids\": [7]}\n"));
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_EQ(reader_->format(), TraceFormat::kQwen);
  EXPECT_EQ(reader_->block_tokens(), 16u);
  EXPECT_EQ(requests[0].time_ns, 0) << "all formats count from the first request";
  EXPECT_EQ(requests[1].time_ns, 7'500'000'000);
  EXPECT_EQ(requests[0].session, requests[1].session);
  EXPECT_EQ(requests[0].session, requests[2].session);
  EXPECT_EQ(requests[1].turn, 2u);
}

TEST_F(TraceTest, ReadsAzuresWallClock) {
  const auto requests = read(slice("azure_conv_500.csv.gz"));
  ASSERT_EQ(requests.size(), 500u);
  EXPECT_EQ(reader_->format(), TraceFormat::kAzure);
  EXPECT_EQ(requests[0].time_ns, 0);
  EXPECT_EQ(requests[1].time_ns, 4'314'579'000) << "18:15:50.9951690 - 18:15:46.6805900";
  EXPECT_EQ(requests[0].input_tokens, 374u);
  EXPECT_EQ(requests[0].output_tokens, 44u);
  const auto midnight = read(write("azure",
                                   "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                                   "2024-02-28 23:59:59.5000000,1,1\n2024-02-29 00:00:00.5000000,1,1\n"
                                   "2024-03-01 00:00:00,1,1\n2024-13-01 00:00:00,1,1\n"));
  ASSERT_EQ(midnight.size(), 3u);
  EXPECT_EQ(midnight[1].time_ns, 1'000'000'000);
  EXPECT_EQ(midnight[2].time_ns, 86'400'500'000'000);
  EXPECT_EQ(reader_->bad_line_count(), 1u);
}

TEST_F(TraceTest, ReadsBurstGptAndPlainCsv) {
  const auto burst = read(write("burst",
                                "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
                                "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,\"1087\",230,1317,API log\n"));
  ASSERT_EQ(burst.size(), 2u);
  EXPECT_EQ(reader_->format(), TraceFormat::kBurstGpt);
  EXPECT_EQ(burst[1].input_tokens, 1087u);
  EXPECT_EQ(burst[1].time_ns, 40'000'000'000) << "from the first request";
  const auto csv = read(write("csv",
                              "timestamp,input_length,output_length,session_id,hash_ids\n"
                              "0.25,40,2,a,1 2 3\n0.5,30,2,a,1 2\n0.1,30,2,b,9 x\n0.1,16,2,b,4\n"),
                        {.block_tokens = 16});
  ASSERT_EQ(csv.size(), 3u);
  EXPECT_EQ(csv[0].blocks, (std::vector<std::uint64_t>{1, 2, 3}));
  EXPECT_EQ(csv[0].session, csv[1].session);
  EXPECT_NE(csv[0].session, csv[2].session);
  EXPECT_EQ(csv[2].time_ns, 250'000'000) << "never backwards, and from the first request";
  EXPECT_EQ(reader_->out_of_order(), 1u);
  EXPECT_EQ(reader_->bad_line_count(), 1u);
}

TEST_F(TraceTest, ReadsSessionsWithSubagentsAndCapsTheirPauses) {
  const auto requests = read(write("weka.json",
                                   "{\"id\":\"x\",\"block_size\":64,\"hash_id_scope\":\"local\",\"requests\":["
                                   "{\"t\":0.0,\"type\":\"s\",\"in\":130,\"out\":5,\"hash_ids\":[1,2]},"
                                   "{\"t\":10.0,\"type\":\"subagent\",\"requests\":[{\"t\":1.0,\"type\":\"n\",\"in\":"
                                   "64,\"out\":1,\"hash_ids\":[9]}]},"
                                   "{\"t\":5000.0,\"type\":\"n\",\"in\":200,\"out\":5,\"hash_ids\":[1,2,3]}]}"));
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_EQ(reader_->format(), TraceFormat::kWeka);
  EXPECT_EQ(requests[1].time_ns, 11'000'000'000);
  EXPECT_EQ(requests[2].time_ns, 1'810'000'000'000) << "10 s, then a pause cut to 1,800 s";
  EXPECT_EQ(requests[2].turn, 3u);
  EXPECT_EQ(read(slice("weka_4.tar.zst")).size(), 22u);
}

// A trace of which nothing can be used is an error that says what was wrong first, not a page of zeros.
TEST_F(TraceTest, WithoutOneGoodLineIsAnErrorInEveryFormat) {
  const auto failure = [](const std::string& path, const TraceOptions& options = {}) {
    const auto made = TraceReader::open(path, options);
    EXPECT_TRUE(made.ok()) << path;
    TraceRequest request;
    const Result<bool> more = (*made)->next(request);
    EXPECT_FALSE((*made)->next(request).ok()) << "it stays one";
    return more.ok() ? std::string() : more.status().message();
  };
  EXPECT_NE(failure(write("broken.json", "{\"block_size\":64,\"requests\":[{\"in\":5}]}")).find("not a session"),
            std::string::npos);
  EXPECT_NE(failure(write("bad.jsonl", "{\"input_length\": \"many\"}\n{\"input_length\": 5}\n")).find("bad.jsonl:1: "),
            std::string::npos);
  EXPECT_NE(failure(write("bad.csv", "timestamp,input_length,output_length\nnever,1,1\n")).find("bad.csv:2: "),
            std::string::npos);
  EXPECT_NE(failure(write("header.csv", "timestamp,input_length,output_length\n")).find("no request"),
            std::string::npos);
  EXPECT_NE(failure(write("empty", ""), {.format = TraceFormat::kMooncake}).find("no request"), std::string::npos);
  EXPECT_NE(failure(write("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n")).find("no request"), std::string::npos);
  EXPECT_NE(failure("workload:chat:sessions=0").find("no request"), std::string::npos);
  EXPECT_FALSE(inspect_trace(write("bad.jsonl", "{\"input_length\": 1}\n"), {}).ok());
}

TEST_F(TraceTest, CountsFromTheFirstRequestInEveryFormat) {
  const std::string epoch_ms =
      "{\"timestamp\": 1700000000000, \"input_length\": 5, \"output_length\": 1}\n"
      "{\"timestamp\": 1700000001500, \"input_length\": 5, \"output_length\": 1}\n";
  const auto mooncake = read(write("epoch", epoch_ms));
  ASSERT_EQ(mooncake.size(), 2u);
  EXPECT_EQ(mooncake[0].time_ns, 0);
  EXPECT_EQ(mooncake[1].time_ns, 1'500'000'000);
  const auto qwen = read(write("qwen",
                               "{\"chat_id\": 1, \"timestamp\": 1700000000, \"input_length\": 5}\n"
                               "{\"chat_id\": 2, \"timestamp\": 1700000002, \"input_length\": 5}\n"));
  ASSERT_EQ(qwen.size(), 2u);
  EXPECT_EQ(qwen[1].time_ns, 2'000'000'000);
  const auto csv = read(write("csv", "timestamp,input_length,output_length\n1700000000,5,1\n1700000003.5,5,1\n"));
  ASSERT_EQ(csv.size(), 2u);
  EXPECT_EQ(csv[1].time_ns, 3'500'000'000);
  const auto weka =
      read(write("late.json",
                 "{\"block_size\":64,\"hash_id_scope\":\"local\",\"requests\":[{\"t\":500,\"in\":64,\"out\":1,"
                 "\"hash_ids\":[1]},{\"t\":503,\"in\":64,\"out\":1,\"hash_ids\":[1]}]}"));
  ASSERT_EQ(weka.size(), 2u);
  EXPECT_EQ(weka[0].time_ns, 0);
  EXPECT_EQ(weka[1].time_ns, 3'000'000'000);
  const auto earlier = read(write("earlier",
                                  "{\"timestamp\": 50, \"input_length\": 5}\n"
                                  "{\"timestamp\": 40, \"input_length\": 5}\n"
                                  "{\"timestamp\": 51, \"input_length\": 5}\n"));
  ASSERT_EQ(earlier.size(), 3u);
  EXPECT_EQ(earlier[1].time_ns, 0) << "earlier than the first: simultaneous with it";
  EXPECT_EQ(earlier[2].time_ns, 1'000'000);
  EXPECT_EQ(reader_->out_of_order(), 1u);
}

// Names are patterns of 64 bits, not counts: signed, unsigned and written as hex strings.
TEST_F(TraceTest, NamesAreAnyPatternOf64Bits) {
  const auto json =
      read(write("names.jsonl",
                 "{\"timestamp\": 0, \"input_length\": 80, \"output_length\": 1, \"block_size\": 16, "
                 "\"hash_ids\": [-1, 18446744073709551615, -9223372036854775808, 9223372036854775808, "
                 "\"0xFFFFFFFFFFFFFFFF\"]}\n"
                 "{\"timestamp\": 0, \"input_length\": 64, \"output_length\": 1, \"block_size\": 16, "
                 "\"hash_ids\": [0, \"00ab\", \"Ab\", 171]}\n"
                 "{\"timestamp\": 0, \"input_length\": 32, \"output_length\": 1, \"hash_ids\": "
                 "[\"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\", "
                 "\"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a09\"]}\n"
                 "{\"timestamp\": 0, \"input_length\": 16, \"output_length\": 1, \"hash_ids\": "
                 "[18446744073709551616]}\n"
                 "{\"timestamp\": 0, \"input_length\": 16, \"output_length\": 1, \"hash_ids\": [\"block\"]}\n"
                 "{\"timestamp\": 0, \"input_length\": 16, \"output_length\": 1, \"hash_ids\": [\"\"]}\n"
                 "{\"timestamp\": 0, \"input_length\": 16, \"output_length\": 1, \"hash_ids\": [1.5]}\n"
                 "{\"timestamp\": 0, \"input_length\": 16, \"output_length\": 1, \"hash_ids\": "
                 "[-9223372036854775809]}\n"));
  ASSERT_EQ(json.size(), 3u);
  const std::uint64_t ones = ~std::uint64_t{0}, top = std::uint64_t{1} << 63;
  EXPECT_EQ(json[0].blocks, (std::vector<std::uint64_t>{ones, ones, top, top, ones}));
  EXPECT_EQ(json[1].blocks, (std::vector<std::uint64_t>{0, 0xab, 0xab, 171}));
  EXPECT_NE(json[2].blocks[0], json[2].blocks[1]) << "longer than 64 bits: told apart all the same";
  EXPECT_EQ(reader_->bad_line_count(), 5u);
  const auto csv = read(write("names.csv",
                              "timestamp,input_length,output_length,hash_ids\n"
                              "0,64,1,-1 18446744073709551615 0xff 255\n"),
                        {.block_tokens = 16});
  ASSERT_EQ(csv.size(), 1u);
  EXPECT_EQ(csv[0].blocks, (std::vector<std::uint64_t>{ones, ones, 255, 255}));
  const auto weka =
      read(write("names.json",
                 "{\"block_size\":64,\"hash_id_scope\":\"local\",\"requests\":[{\"t\":0,\"in\":192,\"out\":1,"
                 "\"hash_ids\":[-1,18446744073709551615,\"0xffffffffffffffff\"]}]}"));
  ASSERT_EQ(weka.size(), 1u);
  EXPECT_EQ(weka[0].blocks[0], weka[0].blocks[1]);
  EXPECT_EQ(weka[0].blocks[0], weka[0].blocks[2]);
  const auto chats =
      read(write("chats",
                 "{\"chat_id\": 18446744073709551615, \"parent_chat_id\": -1, \"timestamp\": 0, "
                 "\"input_length\": 5}\n"
                 "{\"chat_id\": \"c2\", \"parent_chat_id\": 18446744073709551615, \"timestamp\": 0, "
                 "\"input_length\": 5}\n"
                 "{\"chat_id\": \"c3\", \"parent_chat_id\": \"c2\", \"timestamp\": 0, "
                 "\"input_length\": 5}\n"
                 "{\"chat_id\": \"c4\", \"parent_chat_id\": null, \"timestamp\": 0, \"input_length\": 5}\n"));
  ASSERT_EQ(chats.size(), 4u);
  EXPECT_EQ(chats[2].session, chats[0].session);
  EXPECT_NE(chats[3].session, chats[0].session);
  const auto numbered = read(write("numbered",
                                   "{\"timestamp\": 0, \"input_length\": 5, \"session_id\": 4, \"turn\": 1e3}\n"
                                   "{\"timestamp\": 0, \"input_length\": 5, \"session_id\": 5, \"turn\": 5000000000}\n"
                                   "{\"timestamp\": 0, \"input_length\": 5, \"session_id\": \"4\"}\n"));
  ASSERT_EQ(numbered.size(), 1u) << "turns are counts: no fraction, no 2^32";
  EXPECT_NE(numbered[0].session, 0u);
}

// What has no name of its own must not meet a name that the trace gives, whatever pattern that is.
TEST_F(TraceTest, NamesOfTheTraceNeverMeetNamesThatWeGive) {
  std::string text = "{\"timestamp\": 0, \"input_length\": 64, \"output_length\": 1, \"block_size\": 16}\n";
  for (const std::uint64_t base : {std::uint64_t{1} << 63, std::uint64_t{1} << 62, ~std::uint64_t{0} - 3}) {
    std::string ids;
    for (std::uint64_t i = 0; i < 4; ++i) ids += (i == 0 ? "" : ", ") + std::to_string(base + i);
    text += "{\"timestamp\": 1, \"input_length\": 64, \"output_length\": 1, \"block_size\": 16, \"hash_ids\": [" + ids +
            "]}\n";
  }
  const std::string path = write("meet", text);
  for (const char* policy : {"lru", "arc", "s3fifo", "sieve", "lfu"}) {
    const Result<BookkeepingResult> result = run_bookkeeping(path, {}, {.policy = policy, .tier_blocks = {100}});
    ASSERT_TRUE(result.ok()) << result.status().message();
    EXPECT_EQ(result->counts.blocks, 16u);
    EXPECT_EQ(result->counts.access_hits, 0u) << policy << ": nothing comes again in this trace";
  }
}

TEST_F(TraceTest, NamesWhatItCannotOpen) {
  const auto message = [](const std::string& path, const TraceOptions& options = {}) {
    const auto made = TraceReader::open(path, options);
    return made.ok() ? std::string() : made.status().message();
  };
  EXPECT_NE(message("/nowhere/x").find("/nowhere/x"), std::string::npos);
  EXPECT_NE(message(folder_.string()).find("folder"), std::string::npos);
  EXPECT_NE(message(write("prose", "It was a dark night.\n")).find("--trace-format"), std::string::npos);
  EXPECT_NE(message(write("columns", "a,b\n1,2\n"), {.format = TraceFormat::kCsv}).find("header"), std::string::npos);
}

TEST_F(TraceTest, InfoSaysWhatTheReferenceSays) {
  FIRN_NEED_TRACE(path, "mooncake-fast25/conversation_trace.jsonl");
  const Result<TraceInfo> info = inspect_trace(path, {});
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->requests, 12031u);
  EXPECT_EQ(info->blocks, 288500u);
  EXPECT_EQ(info->distinct_blocks, 182790u);
  EXPECT_EQ(info->input_tokens.p50, 6909u);
  EXPECT_EQ(info->output_tokens.p99, 1120u);
  EXPECT_EQ(info->prefix_hits, 288500u - 182790u);
}

TEST_F(TraceTest, ConvertedTraceIsTheSameTrace) {
  const std::string out = (folder_ / "out.jsonl").string();
  ASSERT_TRUE(convert_trace(slice("weka_4.tar.zst"), {}, out).ok());
  const auto before = read(slice("weka_4.tar.zst")), after = read(out);
  ASSERT_EQ(before.size(), after.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].time_ns, after[i].time_ns);
    EXPECT_EQ(before[i].input_tokens, after[i].input_tokens);
    EXPECT_EQ(before[i].blocks.size(), after[i].blocks.size());
  }
}

// An input is never an output: not by its name, not by another name of the same file, not through a link.
TEST_F(TraceTest, ConvertingNeverTouchesItsInput) {
  const std::string text = kMooncake, in = write("in.jsonl", text);
  const auto kept = [&in] {
    std::ifstream file(in, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  std::filesystem::create_hard_link(in, folder_ / "hard.jsonl");
  std::filesystem::create_symlink(in, folder_ / "soft.jsonl");
  std::filesystem::create_symlink(folder_ / "soft.jsonl", folder_ / "soft2.jsonl");
  for (const std::string& out : {in, (folder_ / "hard.jsonl").string(), (folder_ / "soft.jsonl").string(),
                                 (folder_ / "soft2.jsonl").string(), (folder_ / "." / "in.jsonl").string()}) {
    const Result<std::uint64_t> count = convert_trace(in, {}, out);
    EXPECT_FALSE(count.ok()) << out;
    EXPECT_EQ(count.status().code(), Code::kInvalidArgument);
    EXPECT_EQ(kept(), text) << out;
  }
  EXPECT_FALSE(convert_trace((folder_ / "soft.jsonl").string(), {}, in).ok());
  EXPECT_EQ(kept(), text);
  // What fails leaves the old output, and nothing beside it.
  const std::string out = write("out.jsonl", "old"), bad = write("bad.jsonl", "{\"input_length\": 1}\n");
  EXPECT_FALSE(convert_trace(bad, {}, out).ok());
  std::ifstream old(out);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(old), {}), "old");
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    EXPECT_EQ(entry.path().filename().string().find("tmp"), std::string::npos) << entry.path();
}

// How far a run is, by what it has used: not by what was read ahead of it.
TEST_F(TraceTest, ProgressIsWhatHasBeenConsumed) {
  std::string text;
  for (int i = 0; i < 4000; ++i)
    text += "{\"timestamp\": " + std::to_string(i) + ", \"input_length\": 5, \"output_length\": 1}\n";
  for (const std::string& bytes : {text, gzip(text), zstd(text)}) {
    const auto reader = TraceReader::open(write("progress", bytes), {});
    ASSERT_TRUE(reader.ok());
    TraceRequest request;
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE((*reader)->next(request).ok());
    const double share = static_cast<double>((*reader)->packed_read()) / static_cast<double>((*reader)->packed_size());
    EXPECT_GT(share, 0.15) << bytes.size();
    EXPECT_LT(share, 0.35) << bytes.size() << " bytes: a quarter of the requests has been taken";
    while (*(*reader)->next(request)) {
    }
    EXPECT_EQ((*reader)->packed_read(), (*reader)->packed_size());
  }
}

TEST(JsonScan, StopsAtEveryCutAndNeverReadsPast) {
  const std::string text = "{\"a\": [1, 2.5, {\"b\": \"x\\\"y\"}], \"c\": true, \"d\": null}";
  for (std::size_t length = 0; length <= text.size(); ++length) {
    const std::vector<char> cut(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(length));
    JsonScanner scan(std::string_view(cut.data(), cut.size()));
    EXPECT_EQ(scan.skip() && scan.at_end(), length == text.size()) << length;
  }
  std::string deep(100000, '[');
  JsonScanner scan(deep);
  EXPECT_FALSE(scan.skip()) << "bounded depth, whatever comes in";
}

}  // namespace
}  // namespace firn::sim
