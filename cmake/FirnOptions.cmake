# Build options. Tests, tools, benchmarks and warnings-as-errors are on only when firn is the top-level project.
option(FIRN_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(FIRN_BUILD_TOOLS "Build the command line and the example engine" ${PROJECT_IS_TOP_LEVEL})
option(FIRN_BUILD_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(FIRN_SHARED "Build libfirn.so, the library of the C interface" ${PROJECT_IS_TOP_LEVEL})
option(FIRN_WERROR "Treat warnings as errors" ${PROJECT_IS_TOP_LEVEL})
set(FIRN_SANITIZE "" CACHE STRING "Sanitizers, as in -fsanitize= (for example address,undefined)")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# Contraction is off everywhere: a fused multiply-add appears only where the source asks for one, so that results do
# not change with the compiler's mood.
add_library(firn_flags INTERFACE)
target_compile_options(firn_flags INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual
                       -ffp-contract=off $<$<BOOL:${FIRN_WERROR}>:-Werror>)
if(FIRN_SANITIZE)
  add_compile_options(-fsanitize=${FIRN_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${FIRN_SANITIZE})
endif()

# An index beyond a vector's end is a crash where tests are built to find it. Release builds have it in the tests alone,
# because the library's hot paths are its bookkeeping.
if(FIRN_BUILD_TESTS AND (FIRN_SANITIZE OR CMAKE_BUILD_TYPE STREQUAL "Debug"))
  add_compile_definitions(_GLIBCXX_ASSERTIONS)
endif()

find_program(FIRN_CCACHE ccache)
if(FIRN_CCACHE AND PROJECT_IS_TOP_LEVEL)
  set(CMAKE_C_COMPILER_LAUNCHER ${FIRN_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${FIRN_CCACHE})
endif()
