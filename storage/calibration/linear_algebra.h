// linear_algebra.h: the few routines of BLAS and LAPACK that calibration stands on, from OpenBLAS, loaded when the
// first calibrator is made. No other command needs them, and a process that links OpenBLAS starts its threads before
// main() does: below a limit on memory those never end.
// Where address space is limited (ulimit -v) one thread does all of it. OPENBLAS_NUM_THREADS, if set, is obeyed.
#pragma once

#include <cblas.h>

#include "firn/status.h"

extern "C" {
void dsyevr_(const char* jobz, const char* range, const char* uplo, const int* n, double* a, const int* lda,
             const double* vl, const double* vu, const int* il, const int* iu, const double* abstol, int* m, double* w,
             double* z, const int* ldz, int* isuppz, double* work, const int* lwork, int* iwork, const int* liwork,
             int* info);
void sgeqrf_(const int* m, const int* n, float* a, const int* lda, float* tau, float* work, const int* lwork,
             int* info);
void sorgqr_(const int* m, const int* n, const int* k, float* a, const int* lda, const float* tau, float* work,
             const int* lwork, int* info);
}

namespace firn {

struct LinearAlgebra {
  decltype(&::cblas_ssyrk) ssyrk = nullptr;
  decltype(&::cblas_dsyrk) dsyrk = nullptr;
  decltype(&::cblas_sgemm) sgemm = nullptr;
  decltype(&::dsyevr_) dsyevr = nullptr;
  decltype(&::sgeqrf_) sgeqrf = nullptr;
  decltype(&::sorgqr_) sorgqr = nullptr;
};

// kUnavailable: it is not installed; kNoSpace: the limit leaves no room for its buffers. The same answer ever after.
const Result<LinearAlgebra>& load_linear_algebra();
// After it was loaded.
const LinearAlgebra& linear_algebra();

}  // namespace firn
