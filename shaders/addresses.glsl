// addresses.glsl: memory by address. A DeviceAddress is a uvec2 (low half first).
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_scalar_block_layout : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require

layout(buffer_reference, scalar, buffer_reference_align = 4) buffer WordAt { uint value; };
layout(buffer_reference, scalar, buffer_reference_align = 4) buffer FloatAt { float value; };
layout(buffer_reference, scalar, buffer_reference_align = 16) buffer QuadAt { uvec4 value; };

uvec2 offset_by(uvec2 base, uint bytes) {
  uint carry;
  const uint low = uaddCarry(base.x, bytes, carry);
  return uvec2(low, base.y + carry);
}
// base + index * stride, beyond 4 GiB too.
uvec2 element_of(uvec2 base, uint index, uint stride) {
  uint high, low, carry;
  umulExtended(index, stride, high, low);
  low = uaddCarry(base.x, low, carry);
  return uvec2(low, base.y + high + carry);
}
bool is_null(uvec2 address) { return (address.x | address.y) == 0u; }

// One 16-bit half of the word that it lies in. The other half belongs to somebody else, perhaps to a neighbour in this
// very dispatch, hence atomics; the result depends on no order, because every half has one writer.
void store_half_word(uvec2 address, uint bits) {
  const uint shift = (address.x & 2u) * 8u;
  WordAt word = WordAt(uvec2(address.x & ~3u, address.y));
  atomicAnd(word.value, ~(0xFFFFu << shift));
  atomicOr(word.value, (bits & 0xFFFFu) << shift);
}
uint load_half_word(uvec2 address) {
  return (WordAt(uvec2(address.x & ~3u, address.y)).value >> ((address.x & 2u) * 8u)) & 0xFFFFu;
}

// A BlockView as the host lays it out.
layout(buffer_reference, scalar, buffer_reference_align = 8) readonly buffer ViewAt {
  uvec2 k, v;
  uint token_stride, head_stride, v_token_stride, v_head_stride;
};
const uint kViewBytes = 32;
