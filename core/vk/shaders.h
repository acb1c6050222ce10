// shaders.h: the SPIR-V of shaders/*.comp, which CMake compiles, validates and embeds.
#pragma once

#include <cstddef>
#include <cstdint>

namespace firn::vk {

struct Shader {
  const std::uint32_t* words;
  std::size_t bytes;
};
extern const Shader k_append_shader, k_attend_shader, k_copy_shader, k_fill_shader, k_fold_shader, k_mass_shader;
extern const Shader k_coding_centre_shader, k_coding_dequantise_shader, k_coding_pack_shader, k_coding_product_shader,
    k_coding_quantise_shader, k_coding_restore_shader, k_coding_unpack_shader;

}  // namespace firn::vk
