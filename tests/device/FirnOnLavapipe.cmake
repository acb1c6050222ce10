# firn_on_lavapipe(TARGET [LABELS ...]): runs a test program once more with --device lavapipe, under validation. The program
# has ${firn_device_main} among its sources. Not under TSan: the driver's threads are not built for it.
# Leak checking is off in these programs: the software driver leaves some bytes of its own behind, and ours are counted.
set(firn_device_main ${CMAKE_CURRENT_LIST_DIR}/main.cpp)
file(GLOB firn_lavapipe /usr/share/vulkan/icd.d/lvp_icd*.json /usr/local/share/vulkan/icd.d/lvp_icd*.json /etc/vulkan/icd.d/lvp_icd*.json)
set(firn_vk_environment "ASAN_OPTIONS=detect_leaks=0" "MESA_SHADER_CACHE_DIR=${PROJECT_BINARY_DIR}/shader_cache")
if(firn_lavapipe)
  list(GET firn_lavapipe 0 firn_lavapipe)  # Debian: mesa-vulkan-drivers
  list(APPEND firn_vk_environment "VK_DRIVER_FILES=${firn_lavapipe}")
endif()

function(firn_on_lavapipe target)
  cmake_parse_arguments(ARG "" "" "LABELS" ${ARGN})
  if(NOT FIRN_HAS_VULKAN)
    return()
  endif()
  target_compile_definitions(${target} PRIVATE FIRN_HAS_VULKAN)
  target_include_directories(${target} SYSTEM PRIVATE ${FIRN_VULKAN_INCLUDE})
  if(FIRN_SANITIZE MATCHES "thread")
    return()
  endif()
  add_test(NAME ${target}_lavapipe COMMAND ${target} --device lavapipe)
  set_tests_properties(${target}_lavapipe PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 900
                       ENVIRONMENT "OPENBLAS_NUM_THREADS=1;${firn_vk_environment}")
endfunction()
