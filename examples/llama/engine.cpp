#include "examples/llama/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "examples/llama/activations.h"
#include "examples/llama/check.h"

namespace firn::llama {
namespace {

constexpr std::uint32_t kSmallStepRows = 64;  // below this the products no longer share much per expanded weight

std::span<float> row(std::span<float> values, std::size_t i, std::size_t width) {
  return values.subspan(i * width, width);
}

}  // namespace

Sequence::Sequence(Manager& manager, const Begun& begun, std::span<const TokenId> tokens)
    : manager_(&manager), id_(begun.seq), match_(begun.match), tokens_(tokens.begin(), tokens.end()) {}

Sequence::Sequence(Sequence&& other) noexcept
    : manager_(other.manager_),
      id_(std::exchange(other.id_, SeqId::kNone)),
      match_(other.match_),
      tokens_(std::move(other.tokens_)),
      logits_(std::move(other.logits_)) {}

Sequence& Sequence::operator=(Sequence&& other) noexcept {
  std::swap(manager_, other.manager_);
  std::swap(id_, other.id_);
  std::swap(match_, other.match_);
  std::swap(tokens_, other.tokens_);
  std::swap(logits_, other.logits_);
  return *this;
}

Sequence::~Sequence() {
  if (id_ == SeqId::kNone) return;
  const Status freed = manager_->free(id_, manager_->device().timeline().last());
  LLAMA_CHECK(freed.ok());  // it is ours and alive
}

std::size_t Sequence::committed() const { return manager_->token_count(id_); }

Status Sequence::rewind(std::size_t token_count) {
  if (token_count < 1 || token_count > tokens_.size())
    return Status(Code::kInvalidArgument, fmt::format("rewind to {} tokens of {}", token_count, tokens_.size()));
  // The last kept token runs again, because its logits are wanted.
  const std::size_t keep = std::min(token_count - 1, committed());
  FIRN_TRY(manager_->rewind(id_, static_cast<std::uint32_t>(keep)));
  tokens_.resize(token_count);
  logits_.clear();
  return {};
}

Engine::Engine(const Model& model, Manager& manager, ThreadPool& threads)
    : model_(model), manager_(manager), threads_(threads), max_rows_(manager.config().pool.max_step_tokens) {
  const Geometry& g = model.geometry();
  hidden_.resize(max_rows_ * g.hidden);
  normed_.resize(max_rows_ * g.hidden);
  gate_.resize(max_rows_ * g.feed_forward);
  up_.resize(max_rows_ * g.feed_forward);
  cosines_.resize(max_rows_ * g.rotated_dims / 2);
  sines_.resize(max_rows_ * g.rotated_dims / 2);
}

Engine::~Engine() {
  if (shared_.bytes != 0) manager_.device().memory().free(shared_);  // run() waited for whoever used it
}

// An engine that computes on the GPU passes its own buffers' addresses instead.
Status Engine::take_shared() {
  if (shared_.bytes != 0) return {};
  const Geometry& g = model_.geometry();
  const std::size_t q = max_rows_ * g.query_width(), kv = max_rows_ * g.kv_width();
  FIRN_ASSIGN(shared_, manager_.device().memory().allocate(RegionUse::kStaging, (2 * q + 2 * kv) * sizeof(float)));
  const std::span<float> all(reinterpret_cast<float*>(shared_.host), 2 * q + 2 * kv);
  query_ = all.first(q);
  attended_ = all.subspan(q, q);
  key_ = all.subspan(2 * q, kv);
  value_ = all.subspan(2 * q + kv, kv);
  return {};
}

DeviceAddress Engine::address(std::span<const float> part) const {
  return shared_.address + static_cast<DeviceAddress>(reinterpret_cast<const std::byte*>(part.data()) - shared_.host);
}

Status Engine::check_input(std::span<const TokenId> tokens) const {
  const Geometry& g = model_.geometry();
  if (tokens.empty()) return Status(Code::kInvalidArgument, "a sequence needs at least one token");
  if (tokens.size() > g.context_tokens)
    return Status(Code::kInvalidArgument,
                  fmt::format("{} tokens, but the model's context is {}", tokens.size(), g.context_tokens));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || static_cast<std::uint32_t>(tokens[i]) >= g.vocabulary)
      return Status(Code::kInvalidArgument,
                    fmt::format("token {} is {}, outside the vocabulary of {}", i, tokens[i], g.vocabulary));
  return {};
}

Result<Sequence> Engine::begin(std::span<const TokenId> tokens, const BeginOptions& options) {
  FIRN_TRY(check_input(tokens));
  FIRN_ASSIGN(const Begun begun, manager_.begin(tokens, options));
  return Sequence(manager_, begun, tokens);
}

Result<Sequence> Engine::fork(const Sequence& sequence) {
  FIRN_ASSIGN(const SeqId id, manager_.fork(sequence.id()));
  Sequence twin(manager_, {id, sequence.match()}, sequence.tokens());
  twin.logits_ = sequence.logits_;
  return twin;
}

Status Engine::run(std::span<Sequence* const> sequences, const std::function<void(std::size_t)>& on_step) {
  FIRN_TRY(take_shared());
  for (const Sequence* sequence : sequences) FIRN_TRY(check_input(sequence->tokens()));
  for (;;) {
    if (stop_ && stop_()) return Status(Code::kUnavailable, "stopped between two steps, as was asked");
    FIRN_ASSIGN(const std::vector<Part> parts, plan(sequences));
    if (parts.empty()) return {};
    const Status status = step(parts);
    if (status.code() == Code::kCorrupt && recover(parts))
      continue;  // at most once a lost block: each is dropped for good
    FIRN_TRY(status);
    const std::size_t rows = parts.back().first_row + parts.back().row_count;
    counters_.tokens += rows;
    ++counters_.steps;
    if (on_step) on_step(rows);
  }
}

// Shares the rows of the next step out, first come first served, and takes room in firn for each share.
Result<std::vector<Engine::Part>> Engine::plan(std::span<Sequence* const> sequences) {
  std::vector<Sequence*> waiting;
  std::vector<StepRequest> requests;
  for (Sequence* sequence : sequences) {
    const std::size_t pending = std::min(sequence->pending(), max_rows_);
    if (pending == 0) continue;
    waiting.push_back(sequence);
    requests.push_back({sequence->id(), static_cast<std::uint32_t>(pending)});
  }
  std::vector<Part> parts;
  if (requests.empty()) return parts;
  FIRN_ASSIGN(std::size_t left, rows_of_next_step(requests));
  std::size_t used = 0;
  for (std::size_t i = 0; i < waiting.size() && left > 0; ++i) {
    Part part{waiting[i], used, std::min<std::size_t>(requests[i].new_tokens, left), waiting[i]->committed(), false};
    part.ends_sequence = part.row_count == waiting[i]->pending();
    FIRN_ASSIGN([[maybe_unused]] const auto copies,  // done already: firn owns these bytes
                manager_.allocate(waiting[i]->id(), static_cast<std::uint32_t>(part.row_count)));
    parts.push_back(part);
    used += part.row_count;
    left -= part.row_count;
  }
  return parts;
}

// As many rows as there is room for. A step of a few rows costs as much as one of many, so where cold blocks are on
// their way out of the pool it is better to wait for them than to go on in small steps.
Result<std::size_t> Engine::rows_of_next_step(std::span<const StepRequest> requests) {
  FIRN_ASSIGN(StepPlan step, manager_.plan_step(requests));
  const auto enough = std::min({requests[0].new_tokens, kSmallStepRows, step.chunk_limit_moved});
  if (step.chunk_limit < enough) {
    const Status waited = manager_.wait_room(requests[0].seq, enough);
    if (!waited.ok() && step.chunk_limit == 0) return waited;
    FIRN_ASSIGN(step, manager_.plan_step(requests));
  }
  if (step.chunk_limit == 0) return step.blocked;
  return std::min<std::size_t>(step.chunk_limit, max_rows_);
}

Status Engine::step(std::span<const Part> parts) {
  std::vector<StepRows> rows;
  for (const Part& part : parts)
    rows.push_back({part.sequence->id(), static_cast<std::uint32_t>(part.first_row),
                    static_cast<std::uint32_t>(part.row_count), static_cast<std::uint32_t>(part.position)});
  const std::size_t row_count = parts.back().first_row + parts.back().row_count;
  load_rows(parts);
  for (std::uint32_t layer = 0; layer < model_.geometry().layers; ++layer)
    FIRN_TRY(forward_layer(layer, rows, row_count));
  FIRN_TRY(compute_logits(parts));
  for (const Part& part : parts)
    FIRN_TRY(manager_.commit(part.sequence->id(),
                             std::span(part.sequence->tokens()).subspan(part.position, part.row_count)));
  return {};
}

// Embeddings and rotation angles of every row.
void Engine::load_rows(std::span<const Part> parts) {
  const Geometry& g = model_.geometry();
  const std::size_t pairs = g.rotated_dims / 2;
  for (const Part& part : parts)
    for (std::size_t i = 0; i < part.row_count; ++i) {
      const std::size_t r = part.first_row + i;
      model_.embed(part.sequence->tokens()[part.position + i], row(hidden_, r, g.hidden));
      fill_rotation(model_.inverse_frequencies(), part.position + i, row(cosines_, r, pairs), row(sines_, r, pairs));
    }
}

Status Engine::forward_layer(std::uint32_t index, std::span<const StepRows> rows, std::size_t row_count) {
  const Geometry& g = model_.geometry();
  const Layer& layer = model_.layers()[index];

  normalise(layer.attention_norm, row_count);
  const Product projections[] = {{&layer.query, normed_.data(), query_.data()},
                                 {&layer.key, normed_.data(), key_.data()},
                                 {&layer.value, normed_.data(), value_.data()}};
  multiply(threads_, row_count, projections);
  rotate_rows(row_count);

  const AttendParams params{g.heads, 1.0f / std::sqrt(static_cast<float>(g.head_dim)), 0};
  FIRN_TRY(wait(manager_.append(index, rows, address(key_), address(value_))));
  FIRN_TRY(wait(manager_.attend(index, rows, params, address(query_), address(attended_))));

  const Product attention_out[] = {{&layer.attention_out, attended_.data(), normed_.data()}};
  multiply(threads_, row_count, attention_out);
  add(row(hidden_, 0, row_count * g.hidden), row(normed_, 0, row_count * g.hidden));

  normalise(layer.feed_forward_norm, row_count);
  const Product widen[] = {{&layer.gate, normed_.data(), gate_.data()}, {&layer.up, normed_.data(), up_.data()}};
  multiply(threads_, row_count, widen);
  threads_.parallel_for(row_count,
                        [&](std::size_t r) { swiglu(row(gate_, r, g.feed_forward), row(up_, r, g.feed_forward)); });
  const Product narrow[] = {{&layer.down, gate_.data(), normed_.data()}};
  multiply(threads_, row_count, narrow);
  add(row(hidden_, 0, row_count * g.hidden), row(normed_, 0, row_count * g.hidden));
  return {};
}

void Engine::normalise(std::span<const float> weight, std::size_t row_count) {
  const Geometry& g = model_.geometry();
  threads_.parallel_for(row_count, [&](std::size_t r) {
    rms_norm(row(hidden_, r, g.hidden), weight, g.norm_epsilon, row(normed_, r, g.hidden));
  });
}

void Engine::rotate_rows(std::size_t row_count) {
  const Geometry& g = model_.geometry();
  threads_.parallel_for(row_count, [&](std::size_t r) {
    const auto cosines = row(cosines_, r, g.rotated_dims / 2), sines = row(sines_, r, g.rotated_dims / 2);
    for (std::size_t h = 0; h < g.heads; ++h) rotate(cosines, sines, &query_[(r * g.heads + h) * g.head_dim]);
    for (std::size_t h = 0; h < g.kv_heads; ++h) rotate(cosines, sines, &key_[(r * g.kv_heads + h) * g.head_dim]);
  });
}

// Every row's, for whoever listens, a few at a time: logits of a whole step would be tens of megabytes.
void Engine::tell_logits(std::span<const Part> parts) {
  constexpr std::size_t kRowsAtATime = 32;
  const Geometry& g = model_.geometry();
  for (const Part& part : parts)
    for (std::size_t i = part.position < listened_from_ ? std::min(part.row_count, listened_from_ - part.position) : 0;
         i < part.row_count; i += kRowsAtATime) {
      const std::size_t count = std::min(kRowsAtATime, part.row_count - i);
      const auto rows = row(hidden_, part.first_row + i, g.hidden).data();
      wanted_.assign(rows, rows + count * g.hidden);
      for (std::size_t r = 0; r < count; ++r)
        rms_norm(row(wanted_, r, g.hidden), model_.output_norm(), g.norm_epsilon, row(wanted_, r, g.hidden));
      logits_.resize(count * g.vocabulary);
      const Product output[] = {{&model_.output(), wanted_.data(), logits_.data()}};
      multiply(threads_, count, output);
      for (std::size_t r = 0; r < count; ++r)
        on_logits_(*part.sequence, part.position + i + r, row(logits_, r, g.vocabulary).first(g.tokens));
    }
}

// Only the rows whose logits somebody reads: the output matrix is a fifth of the model.
Status Engine::compute_logits(std::span<const Part> parts) {
  const Geometry& g = model_.geometry();
  if (on_logits_) tell_logits(parts);
  std::vector<Sequence*> finished;
  wanted_.clear();
  for (const Part& part : parts) {
    if (!part.ends_sequence) continue;
    finished.push_back(part.sequence);
    const auto last = row(hidden_, part.first_row + part.row_count - 1, g.hidden);
    wanted_.insert(wanted_.end(), last.begin(), last.end());
    const auto normed = std::span(wanted_).last(g.hidden);
    rms_norm(normed, model_.output_norm(), g.norm_epsilon, normed);
  }
  logits_.resize(finished.size() * g.vocabulary);
  const Product output[] = {{&model_.output(), wanted_.data(), logits_.data()}};
  multiply(threads_, finished.size(), output);
  for (std::size_t i = 0; i < finished.size(); ++i) {
    const auto logits = row(logits_, i, g.vocabulary).first(g.tokens);  // no padded row is ever chosen
    if (!std::all_of(logits.begin(), logits.end(), [](float v) { return std::isfinite(v); }))
      return Status(Code::kInvalidArgument, model_.file().name() + ": the weights give logits that are not finite");
    finished[i]->logits_.assign(logits.begin(), logits.end());
  }
  return {};
}

// After kCorrupt: back to what is still good in each sequence; the rest is pending again. False: nothing was lost.
bool Engine::recover(std::span<const Part> parts) {
  bool lost = false;
  for (const Part& part : parts) {
    const SeqId id = part.sequence->id();
    const std::uint32_t usable = manager_.usable_tokens(id), committed = manager_.token_count(id);
    if (usable >= committed) continue;
    if (!manager_.rewind(id, usable).ok()) return false;
    counters_.recomputed_tokens += committed - usable;
    lost = true;
  }
  return lost;
}

Status Engine::wait(const Result<Fence>& work) {
  return work.ok() ? manager_.device().timeline().wait(*work) : work.status();
}

}  // namespace firn::llama
