// embed.cpp: the least an engine does with firn: a prompt goes in, is attended, and is found again by the next one.
#include <firn/manager.h>

#include <cstdio>
#include <vector>

int main() {
  firn::Config config;
  config.pool.budget_bytes = 16 << 20, config.host.budget_bytes = 64 << 20;
  firn::ModelSpec model;  // two layers of four KV heads of 64; eight query heads share them
  model.groups = {{.layer_count = 2, .kv = {.kv_heads = 4, .head_dim = 64, .value_dim = 64}, .query_heads = 8}};
  const auto created = firn::Manager::create(config, model);
  if (!created.ok()) return std::puts(created.status().message().c_str()), 1;
  firn::Manager& manager = **created;

  const std::vector<firn::TokenId> prompt(100, 7);
  const firn::SeqId seq = manager.begin(prompt)->seq;
  if (!manager.allocate(seq, 100).ok()) return 1;
  const firn::StepRows rows[] = {{.seq = seq, .row_count = 100}};
  std::vector<float> k(100 * 4 * 64, 0.5f), v(k), q(100 * 8 * 64, 0.5f), out(q.size());  // from your projections
  const auto at = [](std::vector<float>& values) { return reinterpret_cast<firn::DeviceAddress>(values.data()); };
  for (std::uint32_t layer = 0; layer < 2; ++layer)
    if (!manager.append(layer, rows, at(k), at(v)).ok() ||
        !manager.attend(layer, rows, {.query_heads = 8, .scale = 0.125f}, at(q), at(out)).ok())
      return 1;
  if (!manager.commit(seq, prompt).ok() || !manager.free(seq).ok()) return 1;
  std::printf("%u of 100 tokens are there for the next prompt\n", manager.match_prefix(prompt).tokens);
}
