// attend.comp: attention of some (row, query head) pairs of one key-value head over one split of 256 tokens.
//
// Two uses of one arithmetic. kFold false (decode): a workgroup attends one split and leaves a partial result, fold.comp
// follows. kFold true (prefill): a workgroup takes the splits of its rows one after the other and folds each into the
// rows' accumulators at once, because partial results of many rows would be larger than the keys and values.
//
// Order of arithmetic, which depends on a pair and the split's tokens alone: a logit is kLanes chains over the units of
// a row (lane j: units j, j + kLanes, ...), added in order. Sums of weights: 16 chains of 16 tokens, added in order.
// A value: kGroups chains over the tokens (group g: tokens g, g + kGroups, ...), added in order. Tokens that a pair does
// not see never enter its chains, not even with weight zero: zero times infinity would. No subgroup operations, so any
// subgroup size gives the same bits; no atomics; nothing behind token_count is read.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "addresses.glsl"
#include "kernel_params.h"
#include "fold.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint kThreads = 128;
layout(constant_id = 1) const uint kDtype = kF16;
layout(constant_id = 2) const uint kUnit = 16;  // bytes of a load: 16, 4, or 2 where halves may begin between words
layout(constant_id = 3) const uint kHeadDim = 64;
layout(constant_id = 4) const uint kValueDim = 64;
layout(constant_id = 5) const uint kPairs = 4;  // of a workgroup: query heads of the group, and rows
layout(constant_id = 6) const uint kLanes = 8;  // that share a key row; a power of two
layout(constant_id = 7) const uint kFold = 0;
layout(constant_id = 8) const uint kMass = 0;
layout(push_constant) uniform Push { AttendPush p; };

const uint kElementBytes = kDtype == kF32 ? 4u : 2u;
const uint kPerUnit = kUnit / kElementBytes;  // elements, at most 8
const uint kKeyUnits = kHeadDim / kPerUnit;
const uint kValueUnits = kValueDim / kPerUnit;
const uint kTokensAtOnce = kThreads / kLanes;
const uint kValueLanes = kValueUnits < kThreads ? kValueUnits : kThreads;
const uint kGroups = kThreads / kValueLanes;
const uint kScratch = kThreads * (kPerUnit > kPairs ? kPerUnit : kPairs);
const uint kSegments = kTokensOfSplit / 16u;
const float kUnseen = -3.4e38;   // what is not there has this logit...
const float kLeast = -3.39e38;   // ...and what is there counts as at least this, minus infinity too
const float kLargest = 3.4e38;

struct Item {
  uint row, row_count, position, split, token_count, view;
};
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer ItemAt { Item value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) readonly buffer RangeAt { RowRange value; };
const uint kItemBytes = 24, kRangeBytes = 20;

shared float queries[kPairs * kHeadDim];  // [pair][element of a unit][unit]: neighbours read neighbours
shared float weights[kPairs * kTokensOfSplit];
shared float scratch[kScratch];
shared float segments[kPairs * kSegments];
shared uint seen_begin[kPairs], seen_end[kPairs];  // tokens of the split
shared float maxima[kPairs], sums[kPairs];
shared float state_maxima[kPairs], state_sums[kPairs];
shared uvec2 bases[kTokensOfBlock * 2];    // of the split's blocks: keys, values
shared uvec4 strides[kTokensOfBlock];

const uint kStateBytes = (kValueDim + 2u) * 4u;

void load_unit(uvec2 address, out float x[8]) {
  if (kUnit == 16u) {
    const uvec4 words = QuadAt(address).value;
    if (kDtype == kF32) {
      for (uint i = 0; i < 4u; ++i) x[i] = uintBitsToFloat(words[i]);
    } else if (kDtype == kF16) {
      for (uint i = 0; i < 4u; ++i) {
        const vec2 pair = unpackHalf2x16(words[i]);
        x[2u * i] = pair.x;
        x[2u * i + 1u] = pair.y;
      }
    } else {
      for (uint i = 0; i < 4u; ++i) {
        x[2u * i] = uintBitsToFloat(words[i] << 16);
        x[2u * i + 1u] = uintBitsToFloat(words[i] & 0xFFFF0000u);
      }
    }
    return;
  }
  const uint word = kUnit == 4u ? WordAt(address).value : load_half_word(address);
  if (kDtype == kF32) {
    x[0] = uintBitsToFloat(word);
  } else if (kDtype == kF16) {
    const vec2 pair = unpackHalf2x16(word);
    x[0] = pair.x;
    x[1] = pair.y;
  } else {
    x[0] = uintBitsToFloat(word << 16);
    x[1] = uintBitsToFloat(word & 0xFFFF0000u);
  }
}

bool present(uint token) {
  const uint block = token / kTokensOfBlock;
  return !is_null(bases[2u * block]) && !is_null(bases[2u * block + 1u]);
}

float capped(float dot_product) {
  const float logit = times(dot_product, p.scale);
  if (p.soft_cap == 0.0) return logit;
  // tanh by exp, whose error Vulkan bounds; infinity is one, as it should be.
  return times(p.soft_cap, plus(1.0, -2.0 / plus(exp(2.0 * logit / p.soft_cap), 1.0)));
}

// Where a pair's accumulators are, in state or partials.
uvec2 accumulators(uvec2 base, uint first_row, uint pair, uint group, uint kv_head) {
  return element_of(base, (first_row + pair / group) * p.query_heads + kv_head * group + pair % group, kStateBytes);
}

void attend_split(uint item_index, uint first_pair, uint kv_head, bool fresh) {
  const uint thread = gl_LocalInvocationIndex;
  const Item item = ItemAt(element_of(p.items, item_index, kItemBytes)).value;
  const uint group = p.query_heads / p.kv_heads;
  const uint pair_count = min(kPairs, item.row_count * group - first_pair);
  const uvec2 results = kFold != 0u ? p.state : p.partials;
  const uint results_row = kFold != 0u ? item.row : WordAt(element_of(p.first_rows, item_index, 4u)).value;

  // What each pair sees, where the blocks are, and the queries.
  if (thread < kPairs) {
    const uint position = item.position + (first_pair + thread) / group;
    const uint oldest = p.window != 0u && position >= p.window ? position + 1u - p.window : 0u;
    const uint begin = max(oldest, item.split) - item.split;
    const uint end = max(min(position + 1u, item.split + item.token_count), item.split) - item.split;
    const bool sees = thread < pair_count && begin < end;
    seen_begin[thread] = sees ? begin : 0u;
    seen_end[thread] = sees ? end : 0u;
    state_maxima[thread] = 0.0;
    state_sums[thread] = 0.0;
    if (kFold != 0u && !fresh && thread < pair_count) {
      const uvec2 state = accumulators(results, results_row, first_pair + thread, group, kv_head);
      state_maxima[thread] = FloatAt(offset_by(state, kValueDim * 4u)).value;
      state_sums[thread] = FloatAt(offset_by(state, kValueDim * 4u + 4u)).value;
    }
  }
  const uint blocks = (item.token_count + kTokensOfBlock - 1u) / kTokensOfBlock;
  for (uint b = thread; b < blocks; b += kThreads) {
    ViewAt view = ViewAt(element_of(p.views, item.view + b, kViewBytes));
    bases[2u * b] = is_null(view.k) ? view.k : element_of(view.k, kv_head, view.head_stride);
    bases[2u * b + 1u] = is_null(view.v) ? view.v : element_of(view.v, kv_head, view.v_head_stride);
    strides[b] = uvec4(view.token_stride, view.v_token_stride, 0u, 0u);
  }
  for (uint i = thread; i < kPairs * kHeadDim; i += kThreads) {
    const uint pair = i / kHeadDim, d = i % kHeadDim;
    float value = 0.0;
    if (pair < pair_count) {
      const uint row = item.row + (first_pair + pair) / group;
      const uint query_head = kv_head * group + (first_pair + pair) % group;
      value = FloatAt(element_of(p.q, (row * p.query_heads + query_head) * kHeadDim + d, 4u)).value;
    }
    queries[(pair * kPerUnit + d % kPerUnit) * kKeyUnits + d / kPerUnit] = value;
  }
  barrier();
  uint begin = kTokensOfSplit, end = 0u;
  for (uint pair = 0; pair < kPairs; ++pair)
    if (seen_begin[pair] < seen_end[pair]) {
      begin = min(begin, seen_begin[pair]);
      end = max(end, seen_end[pair]);
    }

  // Logits.
  const uint lane = thread % kLanes;
  [[dont_unroll]] for (uint first = begin; first < end; first += kTokensAtOnce) {
    const uint token = first + thread / kLanes;
    float chain[kPairs];
    for (uint pair = 0; pair < kPairs; ++pair) chain[pair] = 0.0;
    const bool counts = token < end && present(token);
    if (counts) {
      const uint block = token / kTokensOfBlock;
      const uvec2 row = element_of(bases[2u * block], token % kTokensOfBlock, strides[block].x);
      [[dont_unroll]] for (uint unit = lane; unit < kKeyUnits; unit += kLanes) {
        float x[8];
        load_unit(offset_by(row, unit * kUnit), x);
        for (uint pair = 0; pair < kPairs; ++pair)
          for (uint e = 0; e < kPerUnit; ++e)
            chain[pair] = fma(x[e], queries[(pair * kPerUnit + e) * kKeyUnits + unit], chain[pair]);
      }
    }
    if (kLanes == 1u) {
      if (token < end)
        for (uint pair = 0; pair < kPairs; ++pair)
          weights[pair * kTokensOfSplit + token] = counts ? capped(chain[pair]) : kUnseen;
      continue;
    }
    for (uint pair = 0; pair < kPairs; ++pair)
      scratch[(pair * kTokensAtOnce + thread / kLanes) * kLanes + lane] = chain[pair];
    barrier();
    for (uint i = thread; i < kPairs * kTokensAtOnce; i += kThreads) {
      const uint pair = i / kTokensAtOnce, at = first + i % kTokensAtOnce;
      float sum = 0.0;
      for (uint j = 0; j < kLanes; ++j) sum = plus(sum, scratch[i * kLanes + j]);
      if (at < end) weights[pair * kTokensOfSplit + at] = present(at) ? capped(sum) : kUnseen;
    }
    barrier();
  }
  barrier();

  // Weights: exp(logit - maximum of the split), zero where the pair does not see.
  for (uint i = thread; i < kPairs * kSegments; i += kThreads) {
    const uint pair = i / kSegments, first = i % kSegments * 16u;
    float top = kUnseen;
    bool breaks = false;  // a NaN or plus infinity makes all weights NaN
    for (uint t = max(first, seen_begin[pair]); t < min(first + 16u, seen_end[pair]); ++t) {
      const float logit = weights[pair * kTokensOfSplit + t];
      if (!present(t)) continue;
      if (is_nan(logit) || logit > kLargest)
        breaks = true;
      else
        top = max(top, max(logit, kLeast));
    }
    segments[i] = breaks ? nan() : top;
  }
  barrier();
  if (thread < kPairs) {
    float top = kUnseen;
    bool breaks = false;
    for (uint s = 0; s < kSegments; ++s) {
      const float of_segment = segments[thread * kSegments + s];
      if (is_nan(of_segment))
        breaks = true;
      else
        top = max(top, of_segment);
    }
    maxima[thread] = breaks ? nan() : top;
  }
  barrier();
  for (uint i = thread; i < kPairs * kTokensOfSplit; i += kThreads) {
    const uint pair = i / kTokensOfSplit, t = i % kTokensOfSplit;
    float weight = 0.0;
    if (t >= seen_begin[pair] && t < seen_end[pair] && present(t)) {
      if (is_nan(maxima[pair]))
        weight = nan();
      else if (weights[i] >= kLeast)
        weight = exp(weights[i] - maxima[pair]);
    }
    weights[i] = weight;
  }
  barrier();
  for (uint i = thread; i < kPairs * kSegments; i += kThreads) {
    const uint first = i / kSegments * kTokensOfSplit + i % kSegments * 16u;
    float sum = 0.0;
    for (uint t = 0; t < 16u; ++t) sum = plus(sum, weights[first + t]);
    segments[i] = sum;
  }
  barrier();
  if (thread < kPairs) {
    float sum = 0.0;
    for (uint s = 0; s < kSegments; ++s) sum = plus(sum, segments[thread * kSegments + s]);
    if (is_nan(maxima[thread])) sum = nan();
    if (sum == 0.0 && maxima[thread] != kUnseen) sum = all_zero();
    sums[thread] = sum;
  }
  barrier();
  // A segment is a block. Splits that a pair does not see stay as they were cleared.
  if (kMass != 0u)
    for (uint i = thread; i < pair_count * (kSegments + 1u); i += kThreads) {
      const uint pair = i / (kSegments + 1u), at = i % (kSegments + 1u);
      const uint row = item.row + (first_pair + pair) / group;
      const uint query_head = kv_head * group + (first_pair + pair) % group;
      if (untouched(sums[pair])) continue;
      const uvec2 cell = element_of(
          p.mass_scratch, (row * p.query_heads + query_head) * p.mass_splits + item.split / kTokensOfSplit, kMassBytes);
      FloatAt(offset_by(cell, at * 4u)).value = at < kSegments ? segments[pair * kSegments + at] : maxima[pair];
    }

  // Values.
  const uint value_lane = thread % kValueLanes, value_group = thread / kValueLanes;
  [[dont_unroll]] for (uint chunk = 0; chunk < kValueUnits; chunk += kValueLanes) {
    float chains[kPairs * 8u];
    for (uint i = 0; i < kPairs * 8u; ++i) chains[i] = 0.0;
    const uint unit = chunk + value_lane;
    if (value_group < kGroups && unit < kValueUnits) {
      [[dont_unroll]] for (uint t = begin / kGroups * kGroups + value_group; t < end; t += kGroups) {
        if (t < begin || !present(t)) continue;
        const uint block = t / kTokensOfBlock;
        float x[8];
        load_unit(offset_by(element_of(bases[2u * block + 1u], t % kTokensOfBlock, strides[block].y), unit * kUnit), x);
        for (uint pair = 0; pair < kPairs; ++pair) {
          const float weight = weights[pair * kTokensOfSplit + t];
          if (t < seen_begin[pair] || t >= seen_end[pair]) continue;
          for (uint e = 0; e < kPerUnit; ++e) chains[pair * 8u + e] = fma(x[e], weight, chains[pair * 8u + e]);
        }
      }
    }
    [[unroll]] for (uint pair = 0; pair < kPairs; ++pair) {
      if (value_group < kGroups)
        for (uint e = 0; e < kPerUnit; ++e)
          scratch[(value_group * kPerUnit + e) * kValueLanes + value_lane] = chains[pair * 8u + e];
      barrier();
      if (pair < pair_count && (kFold == 0u || !untouched(sums[pair]))) {
        const uvec2 row = accumulators(results, results_row, first_pair + pair, group, kv_head);
        for (uint i = thread; i < kPerUnit * kValueLanes; i += kThreads) {
          const uint e = i / kValueLanes, of_unit = chunk + i % kValueLanes;
          if (of_unit >= kValueUnits) continue;
          float value = 0.0;
          for (uint g = 0; g < kGroups; ++g) 
            value = plus(value, scratch[(g * kPerUnit + e) * kValueLanes + i % kValueLanes]);
          const uvec2 at = offset_by(row, (of_unit * kPerUnit + e) * 4u);
          if (kFold != 0u) {
            const FoldFactors f = fold_factors(state_maxima[pair], state_sums[pair], maxima[pair], sums[pair]);
            value = fold_value(untouched(state_sums[pair]) ? 0.0 : FloatAt(at).value, value, f);
          }
          FloatAt(at).value = value;
        }
      }
      barrier();
    }
  }

  if (thread < pair_count) {
    const uvec2 row = accumulators(results, results_row, first_pair + thread, group, kv_head);
    float maximum = maxima[thread], sum = sums[thread];
    bool changed = kFold == 0u || !untouched(sum);
    if (kFold != 0u && !untouched(sum)) {
      const FoldFactors f = fold_factors(state_maxima[thread], state_sums[thread], maximum, sum);
      maximum = f.maximum;
      sum = f.sum;
    } else if (kFold != 0u && fresh) {
      changed = true;  // nothing seen so far: sum 0 says so
    }
    if (changed) {
      FloatAt(offset_by(row, kValueDim * 4u)).value = maximum;
      FloatAt(offset_by(row, kValueDim * 4u + 4u)).value = sum;
    }
  }
  barrier();
}

void main() {
  const uint group = p.query_heads / p.kv_heads;
  if (kFold == 0u) {
    const uint item = p.base + gl_WorkGroupID.x;
    const uint first_pair = gl_WorkGroupID.z * kPairs;
    if (first_pair >= ItemAt(element_of(p.items, item, kItemBytes)).value.row_count * group) return;
    attend_split(item, first_pair, gl_WorkGroupID.y, false);
    return;
  }
  const RowRange range = RangeAt(element_of(p.ranges, p.base + gl_WorkGroupID.z, kRangeBytes)).value;
  const uint first_pair = gl_WorkGroupID.x * kPairs;
  if (first_pair >= range.row_count * group) return;
  [[dont_unroll]] for (uint i = 0; i < range.count; ++i)
    attend_split(WordAt(element_of(p.order, range.first + i, 4u)).value, first_pair, gl_WorkGroupID.y,
                 range.fresh != 0u && i == 0u);
}
