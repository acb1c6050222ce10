// host_coding.h: coding kernels in host memory, made of the codecs' own code: for the cpu device, whose addresses are
// pointers, and what other devices' kernels are compared with. Codec::encode and decode are the fast way there; this is
// their arithmetic behind the interface that devices have.
// Threads: any. Calls have finished when they return; their fence has always passed.
#pragma once

#include "firn/coding.h"

namespace firn {

class HostCoding final : public CodingKernels {
 public:
  Result<Fence> encode(const IntegerBatch& batch) override;
  Result<Fence> decode(const IntegerBatch& batch) override;
  Result<Fence> encode(const TransformBatch& batch) override;
  Result<Fence> decode(const TransformBatch& batch) override;
};

}  // namespace firn
