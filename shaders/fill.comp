// fill.comp: the bytes of a fill that share a word with bytes that stay. The words between are the driver's own fill.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "addresses.glsl"
#include "kernel_params.h"

layout(local_size_x_id = 0) in;
layout(push_constant) uniform Push { FillPush p; };

void main() {
  if (gl_LocalInvocationIndex >= 2u) return;
  const bool head = gl_LocalInvocationIndex == 0u;
  const uint mask = head ? p.head_mask : p.tail_mask;
  if (mask == 0u) return;
  WordAt word = WordAt(head ? p.head : p.tail);
  word.value = (word.value & ~mask) | (p.value & mask);
}
