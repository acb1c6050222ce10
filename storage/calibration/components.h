// components.h: principal components of many channels. Up to kMaxGram channels by the Gram matrix in f64 and LAPACK;
// above, by randomised subspace iteration over the rows themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "firn/status.h"

namespace firn {

inline constexpr std::size_t kMaxGram = 8192;

// Streams rows in, in f32 blocks around a first guess of the mean, summed in f64.
class Covariance {
 public:
  explicit Covariance(std::size_t channels) : channels_(channels) {}
  // rows: [count][stride], of which the first `channels` columns.
  void add(const float* rows, std::size_t stride, std::size_t count);
  std::size_t count() const { return count_; }
  std::vector<float> mean() const;
  double energy() const;  // total variance
  // Full symmetric matrix, [channels][channels].
  std::vector<double> matrix() const;

 private:
  void flush();
  std::size_t channels_, count_ = 0, pending_ = 0;
  std::vector<float> guess_, block_, product_;
  std::vector<double> sums_, gram_;  // of values less the guess; gram: upper triangle in column-major order
};

struct Components {
  std::vector<double> variances;  // falling
  std::vector<float> basis;       // [component][channel], orthonormal
};
// Of a symmetric matrix, which is destroyed. most: components wanted.
Result<Components> principal_components(std::vector<double>& matrix, std::size_t channels, std::size_t most);
// Variances alone, all of them.
Result<std::vector<double>> spectrum(std::vector<double>& matrix, std::size_t channels);
// Of centred rows, [count][channels], without any matrix of channels x channels. Deterministic.
Result<Components> randomised_components(const float* rows, std::size_t count, std::size_t channels, std::size_t most,
                                         int iterations = 8);

}  // namespace firn
