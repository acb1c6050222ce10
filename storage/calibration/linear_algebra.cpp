#include "storage/calibration/linear_algebra.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cstdlib>
#include <string>

#include "core/base/check.h"

namespace firn {
namespace {

constexpr const char* kLibrary = "libopenblas.so.0";  // by its soname: whichever variant the system has

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// OpenBLAS asks for its buffers again and again until it has them, so they are asked for here first.
Status check_limits() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return {};
  setenv("OPENBLAS_NUM_THREADS", "1", /*overwrite=*/0);
  constexpr std::size_t kLibraryAndBuffers = std::size_t{256} << 20;
  void* const tried = mmap(nullptr, kLibraryAndBuffers, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (tried == MAP_FAILED)
    return Status(Code::kNoSpace,
                  "calibration: OpenBLAS needs 256 MiB of address space, and the limit (ulimit -v) leaves less");
  munmap(tried, kLibraryAndBuffers);
  return {};
}

Result<LinearAlgebra> load() {
  FIRN_TRY(check_limits());
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return Status(Code::kUnavailable,
                  std::string("calibration needs OpenBLAS (Debian: libopenblas0): ") + dlerror());  // NOLINT
  LinearAlgebra all;
  if (!find(library, "cblas_ssyrk", all.ssyrk) || !find(library, "cblas_dsyrk", all.dsyrk) ||
      !find(library, "cblas_sgemm", all.sgemm) || !find(library, "dsyevr_", all.dsyevr) ||
      !find(library, "sgeqrf_", all.sgeqrf) || !find(library, "sorgqr_", all.sorgqr))
    return Status(Code::kUnavailable, std::string(kLibrary) + " is without LAPACK, which calibration needs");
  return all;
}

}  // namespace

const Result<LinearAlgebra>& load_linear_algebra() {
  static const Result<LinearAlgebra> loaded = load();
  return loaded;
}

const LinearAlgebra& linear_algebra() {
  const Result<LinearAlgebra>& loaded = load_linear_algebra();
  FIRN_CHECK(loaded.ok());
  return *loaded;
}

}  // namespace firn
