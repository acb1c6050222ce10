# Everything firn takes from outside, all from Debian 12 packages. What is missing is named with the package that brings it.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

find_package(hwy QUIET)
if(NOT TARGET hwy::hwy)
  pkg_check_modules(hwy REQUIRED IMPORTED_TARGET libhwy)  # Debian: libhwy-dev
  add_library(hwy::hwy ALIAS PkgConfig::hwy)
endif()
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)      # Debian: libzstd-dev
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)  # Debian: libxxhash-dev
pkg_check_modules(numa REQUIRED IMPORTED_TARGET numa)         # Debian: libnuma-dev
find_package(yaml-cpp REQUIRED)                               # Debian: libyaml-cpp-dev
find_package(nlohmann_json REQUIRED)                          # Debian: nlohmann-json3-dev
find_package(fmt REQUIRED)                                    # Debian: libfmt-dev
if(FIRN_BUILD_TOOLS)
  find_package(CLI11 REQUIRED)                                # Debian: libcli11-dev
endif()
if(FIRN_BUILD_TESTS)
  find_package(GTest REQUIRED)                                # Debian: libgtest-dev
endif()
if(FIRN_BUILD_BENCH)
  find_package(benchmark REQUIRED)                            # Debian: libbenchmark-dev
endif()

# BLAKE3: the C implementation of its authors (CC0 or Apache-2.0), which Debian ships inside librust-blake3-dev.
file(GLOB firn_blake3_dirs /usr/share/cargo/registry/blake3-*/c)
find_path(FIRN_BLAKE3_DIR blake3.h PATHS ${firn_blake3_dirs} NO_DEFAULT_PATH REQUIRED)  # Debian: librust-blake3-dev
add_library(firn_blake3 OBJECT ${FIRN_BLAKE3_DIR}/blake3.c ${FIRN_BLAKE3_DIR}/blake3_dispatch.c ${FIRN_BLAKE3_DIR}/blake3_portable.c)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  enable_language(ASM)
  target_sources(firn_blake3 PRIVATE ${FIRN_BLAKE3_DIR}/blake3_sse2_x86-64_unix.S ${FIRN_BLAKE3_DIR}/blake3_sse41_x86-64_unix.S
                 ${FIRN_BLAKE3_DIR}/blake3_avx2_x86-64_unix.S ${FIRN_BLAKE3_DIR}/blake3_avx512_x86-64_unix.S)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  target_sources(firn_blake3 PRIVATE ${FIRN_BLAKE3_DIR}/blake3_neon.c)
endif()
target_include_directories(firn_blake3 SYSTEM INTERFACE $<BUILD_INTERFACE:${FIRN_BLAKE3_DIR}>)
