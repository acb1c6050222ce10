// fuzz_main.cpp: drives a fuzz target where libFuzzer is not to be had: seeded mutations of the files given.
//   NAME SECONDS SEED FILE...          runs; prints the seed and how many inputs there were
//   NAME --only ITERATION SEED FILE... repeats one input
// Each input follows from seed and iteration alone, so what a crash reports can be repeated.
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;

volatile std::uint64_t current_iteration = 0;
std::uint64_t current_seed = 0;

void report() {
  std::fprintf(stderr, "fuzz: seed %llu, iteration %llu\n", static_cast<unsigned long long>(current_seed),
               static_cast<unsigned long long>(current_iteration));
}

void on_abort(int signal) {
  report();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void mutate_once(Input& input, std::mt19937_64& random) {
  const auto at = [&](std::size_t size) { return static_cast<std::size_t>(random() % (size + 1)); };
  const std::size_t where = at(input.size() - 1);
  const std::size_t near =
      random() % 2 == 0 ? where : where % std::min<std::size_t>(input.size(), 512);  // heads decide
  switch (random() % 7) {
    case 0:
      input[near] = static_cast<std::uint8_t>(input[near] ^ (1u << random() % 8));
      break;
    case 1:
      input[near] = static_cast<std::uint8_t>(random());
      break;
    case 2:
      input[near] = static_cast<std::uint8_t>(input[near] + random() % 9 - 4);
      break;
    case 3: {  // a number of 1 to 8 bytes, likely an edge
      const std::uint64_t edges[] = {0, 1, 0xff, 0xffff, 0xffffffff, ~std::uint64_t{0}, input.size(), random()};
      const std::uint64_t value = edges[random() % 8];
      std::memcpy(&input[near], &value, std::min<std::size_t>(input.size() - near, 1u << random() % 4));
      break;
    }
    case 4: {  // a piece of itself elsewhere
      const std::size_t from = at(input.size() - 1);
      std::memmove(&input[where], &input[from], std::min(at(64), input.size() - std::max(where, from)));
      break;
    }
    case 5:
      input.resize(std::max<std::size_t>(1, where));
      break;
    default:
      input.insert(input.end(), at(64), static_cast<std::uint8_t>(random()));
  }
}

void run(const std::vector<Input>& corpus, std::uint64_t seed, std::uint64_t iteration) {
  current_iteration = iteration;
  std::mt19937_64 random(seed * 0x9e3779b97f4a7c15u + iteration);
  Input input = corpus[random() % corpus.size()];
  for (std::uint64_t n = random() % 6; n > 0; --n) mutate_once(input, random);
  const auto choice = static_cast<std::uint8_t>(random());
  const std::size_t size = input.size() + 1;
  auto* exact = static_cast<std::uint8_t*>(std::malloc(size));  // exact size: a sanitizer sees one byte too many
  exact[0] = choice;
  std::memcpy(exact + 1, input.data(), input.size());
  LLVMFuzzerTestOneInput(exact, size);
  std::free(exact);
}

}  // namespace

extern "C" void __asan_on_error() { report(); }  // NOLINT: the sanitizer's name

int main(int argc, char** argv) {
  const bool only = argc > 1 && std::string(argv[1]) == "--only";
  const int first = only ? 2 : 1;
  if (argc < first + 3) {
    std::fprintf(stderr, "usage: %s SECONDS SEED FILE... | --only ITERATION SEED FILE...\n", argv[0]);
    return 2;
  }
  std::vector<Input> corpus;
  for (int i = first + 2; i < argc; ++i) {
    std::ifstream in(argv[i], std::ios::binary);
    corpus.emplace_back((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    if (corpus.back().empty()) {
      std::fprintf(stderr, "fuzz: %s cannot be read\n", argv[i]);
      return 2;
    }
  }
  std::signal(SIGABRT, on_abort);
  current_seed = std::strtoull(argv[first + 1], nullptr, 10);
  const std::uint64_t number = std::strtoull(argv[first], nullptr, 10);
  if (only) {
    run(corpus, current_seed, number);
    return 0;
  }
  std::uint64_t iterations = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(number);
  while (std::chrono::steady_clock::now() < end) run(corpus, current_seed, iterations++);
  std::printf("fuzz: seed %llu, %llu inputs\n", static_cast<unsigned long long>(current_seed),
              static_cast<unsigned long long>(iterations));
  return 0;
}
