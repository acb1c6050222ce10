// activations.h: everything between the matrix products. Each function sees one token, so a batch cannot change its
// result.
#pragma once

#include <cstddef>
#include <span>

namespace firn::llama {

// out = x / sqrt(mean(x^2) + epsilon) * weight. out may be x.
void rms_norm(std::span<const float> x, std::span<const float> weight, float epsilon, std::span<float> out);

// Turns the pairs (2i, 2i + 1) of a head by the angle position * inverse_frequencies[i]. GGUF files of the llama family
// have their query and key rows permuted so that pairs are adjacent; Hugging Face files pair i with i + dim / 2
// instead. fill_rotation: cosines and sines of one position. rotate: the leading 2 * cosines.size() elements of one
// head.
void fill_rotation(std::span<const float> inverse_frequencies, std::size_t position, std::span<float> cosines,
                   std::span<float> sines);
void rotate(std::span<const float> cosines, std::span<const float> sines, float* head);

// gate = silu(gate) * up. The length is a multiple of 32.
void swiglu(std::span<float> gate, std::span<const float> up);

void add(std::span<float> x, std::span<const float> more);  // x += more

}  // namespace firn::llama
