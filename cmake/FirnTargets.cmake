# firn_part(NAME SOURCES ... LIBS ...): one object library of the library firn, named after its folder.
function(firn_part name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PUBLIC ${ARG_LIBS} PRIVATE firn_flags)
  target_compile_definitions(${name} PRIVATE FIRN_BUILDING)
endfunction()

# firn_public_library(NAME): headers, link needs, install and export of the one library that users see.
function(firn_public_library name)
  file(GLOB headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/firn/*.h)
  target_sources(${name} PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR}/include FILES ${headers})
  target_compile_features(${name} PUBLIC cxx_std_20)
  target_link_libraries(${name} PUBLIC Threads::Threads
                        PRIVATE hwy::hwy PkgConfig::zstd PkgConfig::xxhash PkgConfig::numa ZLIB::ZLIB yaml-cpp fmt::fmt)
  set_target_properties(${name} PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 0)
  install(TARGETS ${name} EXPORT firnTargets FILE_SET HEADERS)
  install(EXPORT firnTargets NAMESPACE firn:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/firn)
  include(CMakePackageConfigHelpers)
  configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/firnConfig.cmake.in ${PROJECT_BINARY_DIR}/firnConfig.cmake
                                INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/firn)
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/firnConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/firnConfig.cmake ${PROJECT_BINARY_DIR}/firnConfigVersion.cmake
          DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/firn)
endfunction()

# firn_shared_library(NAME OBJECTS...): libfirn.so with the C interface, versioned symbols, a soname and a pkg-config file.
function(firn_shared_library name)
  set(map ${PROJECT_SOURCE_DIR}/capi/firn.map)
  add_library(${name} SHARED ${ARGN})
  add_library(firn::shared ALIAS ${name})
  set_target_properties(${name} PROPERTIES OUTPUT_NAME firn VERSION ${PROJECT_VERSION} SOVERSION 0 EXPORT_NAME shared
                        LINK_DEPENDS ${map} LINKER_LANGUAGE CXX)
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:include>)
  target_link_options(${name} PRIVATE -Wl,--version-script=${map})
  # A sanitizer's functions come with the program. Its name has a comma, so this is no generator expression.
  if(NOT FIRN_SANITIZE)
    target_link_options(${name} PRIVATE -Wl,-z,defs)
  endif()
  target_link_libraries(${name} PRIVATE Threads::Threads hwy::hwy PkgConfig::zstd PkgConfig::xxhash PkgConfig::numa ZLIB::ZLIB
                        yaml-cpp fmt::fmt ${CMAKE_DL_LIBS})
  install(TARGETS ${name} EXPORT firnTargets)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/firn.pc.in ${PROJECT_BINARY_DIR}/firn.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/firn.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

# firn_test(NAME SOURCES ... LIBS ... [LABELS ...] [COST seconds]): one GoogleTest program; ctest runs it as one test.
# Labels: "concurrent" also runs under TSan; "release" runs in release builds only. ctest begins with the tests of the
# highest cost, so that no core waits for a long one at the end; what it measured itself in this folder is stronger.
function(firn_test name)
  cmake_parse_arguments(ARG "" "COST" "SOURCES;LIBS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} firn_flags GTest::gtest GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE _GLIBCXX_ASSERTIONS FIRN_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data"
                             FIRN_TEST_GOLDEN="${PROJECT_SOURCE_DIR}/tests/golden" FIRN_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
                             FIRN_BINARY_DIR="${PROJECT_BINARY_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  # OpenBLAS (calibration only) on one thread: TSan does not see how its own threads wait for each other.
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 900 ENVIRONMENT OPENBLAS_NUM_THREADS=1)
  if(ARG_COST)
    set_tests_properties(${name} PROPERTIES COST ${ARG_COST})
  endif()
endfunction()
