#include "storage/calibration/components.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "core/base/check.h"
#include "storage/calibration/linear_algebra.h"

namespace firn {
namespace {

constexpr std::size_t kBlockRows = 512;

Status failed(const char* routine, int info) {
  return Status(
      Code::kInvalidArgument,
      fmt::format("calibration: {} ended with {}; the captured values are not finite, or too few", routine, info));
}

// Eigenvalues (and vectors, into z [wanted][n]) of the largest `wanted`, ascending as LAPACK has them.
Status eigen(std::vector<double>& matrix, int n, int wanted, std::vector<double>& values,
             std::vector<double>* vectors) {
  const char* jobz = vectors != nullptr ? "V" : "N";
  const int first = n - wanted + 1, one = 1;
  const double zero = 0;
  int found = 0, info = 0, lwork = -1, liwork = -1, integer_work = 0;
  double work_size = 0;
  values.resize(static_cast<std::size_t>(n));
  std::vector<int> support(2 * static_cast<std::size_t>(n));
  double* z = nullptr;
  if (vectors != nullptr) {
    vectors->resize(static_cast<std::size_t>(wanted) * static_cast<std::size_t>(n));
    z = vectors->data();
  }
  const auto call = [&](double* work, int* iwork) {
    linear_algebra().dsyevr(jobz, wanted == n ? "A" : "I", "U", &n, matrix.data(), &n, &zero, &zero, &first, &n, &zero,
                            &found, values.data(), z, vectors != nullptr ? &n : &one, support.data(), work, &lwork,
                            iwork, &liwork, &info);
  };
  call(&work_size, &integer_work);
  if (info != 0) return failed("dsyevr", info);
  lwork = static_cast<int>(work_size);
  liwork = integer_work;
  std::vector<double> work(static_cast<std::size_t>(lwork));
  std::vector<int> iwork(static_cast<std::size_t>(liwork));
  call(work.data(), iwork.data());
  if (info != 0 || found != wanted) return failed("dsyevr", info);
  values.resize(static_cast<std::size_t>(wanted));
  return {};
}

// Columns of q [n][k] in column-major order become orthonormal.
Status orthonormalise(std::vector<float>& q, int n, int k) {
  std::vector<float> tau(static_cast<std::size_t>(k)), work(1);
  int lwork = -1, info = 0;
  linear_algebra().sgeqrf(&n, &k, q.data(), &n, tau.data(), work.data(), &lwork, &info);
  lwork = static_cast<int>(work[0]);
  work.resize(static_cast<std::size_t>(lwork));
  linear_algebra().sgeqrf(&n, &k, q.data(), &n, tau.data(), work.data(), &lwork, &info);
  if (info != 0) return failed("sgeqrf", info);
  lwork = -1;
  linear_algebra().sorgqr(&n, &k, &k, q.data(), &n, tau.data(), work.data(), &lwork, &info);
  lwork = static_cast<int>(work[0]);
  work.resize(static_cast<std::size_t>(lwork));
  linear_algebra().sorgqr(&n, &k, &k, q.data(), &n, tau.data(), work.data(), &lwork, &info);
  return info == 0 ? Status{} : failed("sorgqr", info);
}

}  // namespace

void Covariance::add(const float* rows, std::size_t stride, std::size_t count) {
  if (count == 0) return;
  if (guess_.empty()) {  // the mean of the first rows: near enough that nothing cancels afterwards
    guess_.resize(channels_);
    for (std::size_t c = 0; c < channels_; ++c) {
      double sum = 0;
      for (std::size_t r = 0; r < count; ++r) sum += rows[r * stride + c];
      guess_[c] = static_cast<float>(sum / static_cast<double>(count));
    }
    block_.resize(kBlockRows * channels_);
    product_.resize(channels_ * channels_);
    sums_.resize(channels_);
    gram_.resize(channels_ * channels_);
  }
  for (std::size_t r = 0; r < count; ++r) {
    float* to = &block_[pending_ * channels_];
    for (std::size_t c = 0; c < channels_; ++c) {
      to[c] = rows[r * stride + c] - guess_[c];
      sums_[c] += to[c];
    }
    if (++pending_ == kBlockRows) flush();
  }
  count_ += count;
}

void Covariance::flush() {
  if (pending_ == 0) return;
  const auto n = static_cast<int>(channels_);
  linear_algebra().ssyrk(CblasColMajor, CblasUpper, CblasNoTrans, n, static_cast<int>(pending_), 1.0f, block_.data(), n,
                         0.0f, product_.data(), n);
  for (std::size_t column = 0; column < channels_; ++column)
    for (std::size_t row = 0; row <= column; ++row)
      gram_[column * channels_ + row] += static_cast<double>(product_[column * channels_ + row]);
  pending_ = 0;
}

std::vector<float> Covariance::mean() const {
  std::vector<float> mean(channels_);
  for (std::size_t c = 0; c < channels_ && count_ != 0; ++c)
    mean[c] = static_cast<float>(guess_[c] + sums_[c] / static_cast<double>(count_));
  return mean;
}

double Covariance::energy() const {
  double energy = 0;
  const std::vector<double> all = matrix();
  for (std::size_t c = 0; c < channels_; ++c) energy += all[c * channels_ + c];
  return energy;
}

std::vector<double> Covariance::matrix() const {
  const_cast<Covariance*>(this)->flush();
  std::vector<double> full(channels_ * channels_);
  if (count_ == 0) return full;
  const auto n = static_cast<double>(count_);
  for (std::size_t column = 0; column < channels_; ++column)
    for (std::size_t row = 0; row <= column; ++row) {
      const double value = gram_[column * channels_ + row] / n - sums_[column] / n * (sums_[row] / n);
      full[column * channels_ + row] = full[row * channels_ + column] = value;
    }
  return full;
}

Result<Components> principal_components(std::vector<double>& matrix, std::size_t channels, std::size_t most) {
  const std::size_t wanted = std::min(most, channels);
  Components components;
  if (wanted == 0) return components;
  std::vector<double> values, vectors;
  FIRN_TRY(eigen(matrix, static_cast<int>(channels), static_cast<int>(wanted), values, &vectors));
  components.basis.resize(wanted * channels);
  for (std::size_t i = 0; i < wanted; ++i) {
    const double* vector = &vectors[(wanted - 1 - i) * channels];
    components.variances.push_back(std::max(0.0, values[wanted - 1 - i]));
    for (std::size_t c = 0; c < channels; ++c) components.basis[i * channels + c] = static_cast<float>(vector[c]);
  }
  return components;
}

Result<std::vector<double>> spectrum(std::vector<double>& matrix, std::size_t channels) {
  std::vector<double> values;
  if (channels == 0) return values;
  FIRN_TRY(eigen(matrix, static_cast<int>(channels), static_cast<int>(channels), values, nullptr));
  std::reverse(values.begin(), values.end());
  for (double& value : values) value = std::max(0.0, value);
  return values;
}

Result<Components> randomised_components(const float* rows, std::size_t count, std::size_t channels, std::size_t most,
                                         int iterations) {
  const std::size_t wanted = std::min({most, channels, count});
  Components components;
  if (wanted == 0) return components;
  const std::size_t extra = std::min(wanted + 16, std::min(channels, count));  // a little wider than asked for
  const auto n = static_cast<int>(channels), m = static_cast<int>(count), k = static_cast<int>(extra);
  std::mt19937_64 random(20251124);
  std::vector<float> q(channels * extra), z(count * extra);  // column-major: [k columns][rows]
  for (float& value : q) {  // a sum of uniforms: near enough to a Gaussian, and the same everywhere
    float sum = -2;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(random() >> 40) / 16777216.0f;
    value = sum;
  }
  FIRN_TRY(orthonormalise(q, n, k));
  // rows is [count][channels] in row-major order, hence channels x count in column-major.
  const auto forward = [&] {
    linear_algebra().sgemm(CblasColMajor, CblasTrans, CblasNoTrans, m, k, n, 1.0f, rows, n, q.data(), n, 0.0f, z.data(),
                           m);
  };
  for (int i = 0; i < iterations; ++i) {
    forward();
    linear_algebra().sgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, n, k, m, 1.0f, rows, n, z.data(), m, 0.0f,
                           q.data(), n);
    FIRN_TRY(orthonormalise(q, n, k));
  }
  forward();
  std::vector<double> wide(z.begin(), z.end()), small(extra * extra);
  linear_algebra().dsyrk(CblasColMajor, CblasUpper, CblasTrans, k, m, 1.0 / static_cast<double>(count), wide.data(), m,
                         0.0, small.data(), k);
  std::vector<double> values, vectors;
  FIRN_TRY(eigen(small, k, static_cast<int>(wanted), values, &vectors));
  std::vector<float> turn(vectors.begin(), vectors.end());  // [wanted columns][k], ascending
  std::vector<float> ascending(wanted * channels);
  linear_algebra().sgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, n, static_cast<int>(wanted), k, 1.0f, q.data(), n,
                         turn.data(), k, 0.0f, ascending.data(), n);
  components.basis.resize(wanted * channels);
  for (std::size_t i = 0; i < wanted; ++i) {
    components.variances.push_back(std::max(0.0, values[wanted - 1 - i]));
    std::copy_n(&ascending[(wanted - 1 - i) * channels], channels, &components.basis[i * channels]);
  }
  return components;
}

}  // namespace firn
