// Every byte passes the ledger. This program puts itself between the library and the allocator: malloc and its kin, and
// mmap. While a manager's call runs, each allocation is counted, on whatever thread; large ones are listed.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "tests/core/manager/toy_engine.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// The sanitizers have the allocator for themselves.
TEST(Allocations, AreCountedInBuildsWithoutSanitizers) { GTEST_SKIP() << "the sanitizer owns malloc"; }
#else

namespace {

constexpr std::size_t kLarge = 1u << 20;
constexpr std::size_t kListed = 256;

std::atomic<bool> counting{false};
std::atomic<std::int64_t> live_bytes{0};  // of malloc, by usable size, and of mmap
std::atomic<std::int64_t> large_live_bytes{0};
std::atomic<std::uint64_t> large_count{0};
std::atomic<std::size_t> large_sizes[kListed];

void taken(std::size_t bytes) {
  if (!counting.load(std::memory_order_relaxed)) return;
  live_bytes += static_cast<std::int64_t>(bytes);
  if (bytes < kLarge) return;
  large_live_bytes += static_cast<std::int64_t>(bytes);
  large_sizes[large_count++ % kListed] = bytes;
}
void given_back(std::size_t bytes) {
  if (!counting.load(std::memory_order_relaxed)) return;
  live_bytes -= static_cast<std::int64_t>(bytes);
  if (bytes >= kLarge) large_live_bytes -= static_cast<std::int64_t>(bytes);
}

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

void* counted(void* block) {
  if (block != nullptr) taken(malloc_usable_size(block));
  return block;
}

}  // namespace

#define FIRN_INTERPOSE extern "C" __attribute__((visibility("default")))

// glibc's own names: dlsym may allocate, so malloc cannot be found through it.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void __libc_free(void*);
}

FIRN_INTERPOSE void* malloc(std::size_t bytes) { return counted(__libc_malloc(bytes)); }
FIRN_INTERPOSE void* calloc(std::size_t count, std::size_t bytes) { return counted(__libc_calloc(count, bytes)); }
FIRN_INTERPOSE void* realloc(void* block, std::size_t bytes) {
  if (block != nullptr) given_back(malloc_usable_size(block));
  return counted(__libc_realloc(block, bytes));
}
FIRN_INTERPOSE void* memalign(std::size_t alignment, std::size_t bytes) {
  return counted(__libc_memalign(alignment, bytes));
}
FIRN_INTERPOSE void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  return counted(__libc_memalign(alignment, bytes));
}
FIRN_INTERPOSE int posix_memalign(void** out, std::size_t alignment, std::size_t bytes) {
  *out = counted(__libc_memalign(alignment, bytes));
  return *out == nullptr ? ENOMEM : 0;
}
FIRN_INTERPOSE void free(void* block) {
  if (block != nullptr) given_back(malloc_usable_size(block));
  __libc_free(block);
}
FIRN_INTERPOSE void* mmap(void* at, std::size_t bytes, int protection, int flags, int file, off_t offset) {
  static auto* const next = real<void*(void*, std::size_t, int, int, int, off_t)>("mmap");
  void* const mapped = next(at, bytes, protection, flags, file, offset);
  if (mapped != MAP_FAILED && (flags & MAP_FIXED) == 0) taken(bytes);
  return mapped;
}
FIRN_INTERPOSE int munmap(void* at, std::size_t bytes) {
  static auto* const next = real<int(void*, std::size_t)>("munmap");
  const int result = next(at, bytes);
  if (result == 0) given_back(bytes);
  return result;
}

namespace firn::test {
namespace {

// Counts while it lives.
class Counting {
 public:
  Counting() { counting = true; }
  ~Counting() { counting = false; }
};

std::string large_list(std::uint64_t from) {
  std::string text;
  for (std::uint64_t i = from; i < large_count; ++i)
    text.append(1, ' ').append(std::to_string(large_sizes[i % kListed]));
  return text;
}

TEST(Allocations, AreSeenByThisProgram) {
  const std::uint64_t before = large_count;
  const std::int64_t live = live_bytes;
  {
    Counting scope;
    void* volatile a = std::malloc(2 * kLarge);
    char* volatile b = new char[2 * kLarge];
    void* volatile c = mmap(nullptr, 2 * kLarge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void* volatile d = std::aligned_alloc(64, 2 * kLarge);
    std::vector<char> e(2 * kLarge);
    EXPECT_GE(live_bytes - live, static_cast<std::int64_t>(10 * kLarge));
    std::free(a);
    delete[] b;
    munmap(c, 2 * kLarge);
    std::free(d);
  }
  EXPECT_EQ(large_count - before, 5u);
  EXPECT_EQ(large_live_bytes, 0);
  EXPECT_LT(std::abs(live_bytes - live), 4096);
}

// SmolLM2-135M's cache: 30 layers, 3 heads of 64 in f16, 360 KiB a block.
ModelSpec smollm2() {
  ModelSpec model = small_model(30, 3, 64);
  model.groups[0].query_heads = 9;
  return model;
}

class Budgets : public testing::TestWithParam<const char*> {};

TEST_P(Budgets, ASequenceOf4096TokensIn16MiBAllocatesNothingOutsideTheLedger) {
  constexpr std::uint32_t kTokens = 4096, kChunk = 128;
  const ModelSpec model = smollm2();
  Config config;
  config.device = "cpu";
  config.threads = 2;
  config.pool.budget_bytes = 16u << 20;
  config.pool.max_step_tokens = kChunk;
  config.host.budget_bytes = 128u << 20;
  config.host.codec = GetParam();
  config.mover.worker = false;
  const std::uint64_t large_before = large_count;
  live_bytes = 0;

  std::unique_ptr<Manager> manager;
  {
    Counting scope;
    manager = make_manager(config, model);
  }
  ASSERT_TRUE(manager);
  const auto spent = [&] {
    return static_cast<std::int64_t>(manager->ledger().spent(Budget::kDevice) + manager->ledger().spent(Budget::kHost) +
                                     manager->ledger().spent(Budget::kMetadata));
  };
  // Stronger than "no single one": all that is not charged stays below one large allocation together. What mappings
  // take for the sake of alignment and give back at once is not counted.
  const auto within = [&](const char* when) {
    ASSERT_LE(live_bytes, spent() + static_cast<std::int64_t>(kLarge)) << when << ":" << large_list(large_before);
    ASSERT_LE(manager->ledger().spent(Budget::kDevice), config.pool.budget_bytes);
    ASSERT_LE(manager->ledger().spent(Budget::kHost), config.host.budget_bytes);
  };
  within("create");
  EXPECT_GE(live_bytes, static_cast<std::int64_t>(manager->ledger().spent(Budget::kDevice)))
      << "the pool is real, and counted";
  const std::uint64_t large_after_create = large_count;

  const Tokens tokens = distinct(kTokens, 0);
  const KvShape& kv = model.groups[0].kv;
  const std::size_t row = std::size_t{kv.kv_heads} * kv.head_dim;
  std::vector<float> k(kChunk * row), v(kChunk * row), q(kChunk * 9 * 64), out(kChunk * 9 * 64);
  fill(k, 1, 0, Part::kKey);
  fill(v, 1, 0, Part::kValue);
  fill(q, 1, 0, Part::kQuery);
  const auto at = [](const std::vector<float>& values) { return reinterpret_cast<DeviceAddress>(values.data()); };
  SeqId seq = SeqId::kNone;
  {
    Counting scope;
    const auto begun = manager->begin(tokens);
    ASSERT_TRUE(begun.ok());
    seq = begun->seq;
  }
  for (std::uint32_t from = 0; from < kTokens; from += kChunk) {
    k[from % k.size()] += 1;  // no two chunks are the same bytes
    Counting scope;
    const StepRequest request{seq, kChunk};
    ASSERT_TRUE(manager->plan_step(std::span(&request, 1)).ok());
    ASSERT_OK(manager->wait_room(seq, kChunk));
    ASSERT_TRUE(manager->allocate(seq, kChunk).ok());
    const StepRows rows{seq, 0, kChunk, from};
    for (std::uint32_t layer = 0; layer < 30; ++layer) {
      ASSERT_TRUE(manager->append(layer, std::span(&rows, 1), at(k), at(v)).ok());
      if (from % 1024 == 0 || from + kChunk == kTokens) {
        const auto attended = manager->attend(layer, std::span(&rows, 1),
                                              {.query_heads = 9, .scale = 0.125f, .soft_cap = 0}, at(q), at(out));
        ASSERT_TRUE(attended.ok()) << attended.status().message();
      }
    }
    ASSERT_OK(manager->commit(seq, std::span(tokens).subspan(from, kChunk)));
    within("a step");
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(manager->stats().blocks_staged, 0u) << "the sequence is longer than the pool";
  EXPECT_GT(manager->stats().frames_stored, 0u);
  {
    Counting scope;
    ASSERT_OK(manager->free(seq));
    ASSERT_OK(manager->wait_idle());
    ASSERT_TRUE(manager->empty_pool(1).ok());
    const auto again = manager->begin(tokens);
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(again->match.tokens, kTokens - kBlockTokens);
    const auto ticket = manager->prefetch(again->seq);
    ASSERT_TRUE(ticket.ok());
    ASSERT_OK(manager->wait(*ticket));
    ASSERT_OK(manager->free(again->seq));
    within("restoring");
  }
  EXPECT_EQ(large_count, large_after_create)
      << "after create() nothing large is allocated:" << large_list(large_after_create);
  EXPECT_EQ(broken(*manager), "");
  {
    Counting scope;
    manager.reset();
  }
  EXPECT_LT(live_bytes, static_cast<std::int64_t>(kLarge / 2)) << "a thread keeps its codec scratch, and nothing else";
}
INSTANTIATE_TEST_SUITE_P(Codecs, Budgets, testing::Values("lossless", "raw"),
                         [](const auto& codec) { return std::string(codec.param); });

}  // namespace
}  // namespace firn::test

#endif
