# The vulkan device needs headers, a GLSL compiler and a validator to build; the driver and its loader are looked for when
# a program runs. Where a tool is missing the build goes on without the device, says so here, and again at run time.
option(FIRN_VULKAN "Build the vulkan device" ON)

set(FIRN_VULKAN_MISSING "")
if(FIRN_VULKAN)
  find_path(FIRN_VULKAN_INCLUDE vulkan/vulkan_core.h)        # Debian: libvulkan-dev
  find_program(FIRN_GLSLANG glslangValidator)                # Debian: glslang-tools
  find_program(FIRN_SPIRV_VAL spirv-val)                     # Debian: spirv-tools
  if(NOT FIRN_VULKAN_INCLUDE)
    list(APPEND FIRN_VULKAN_MISSING libvulkan-dev)
  endif()
  if(NOT FIRN_GLSLANG)
    list(APPEND FIRN_VULKAN_MISSING glslang-tools)
  endif()
  if(NOT FIRN_SPIRV_VAL)
    list(APPEND FIRN_VULKAN_MISSING spirv-tools)
  endif()
endif()
if(NOT FIRN_VULKAN)
  set(FIRN_HAS_VULKAN OFF)
elseif(FIRN_VULKAN_MISSING)
  set(FIRN_HAS_VULKAN OFF)
  list(JOIN FIRN_VULKAN_MISSING ", " missing)
  message(STATUS "vulkan device: left out; to have it, install ${missing}")
else()
  set(FIRN_HAS_VULKAN ON)
  message(STATUS "vulkan device: built; cooperative-matrix kernels: left out, because Debian's glslang and spirv-val refuse them and no driver at hand could test them (docs/vulkan.md)")
endif()

# firn_shaders(OUT_VAR NAMES...): compiles shaders/NAME.comp, validates the SPIR-V and writes it as a C++ source.
function(firn_shaders out_var)
  set(sources)
  foreach(name IN LISTS ARGN)
    set(source ${PROJECT_SOURCE_DIR}/shaders/${name}.comp)
    set(spirv ${CMAKE_CURRENT_BINARY_DIR}/${name}.spv)
    set(embedded ${CMAKE_CURRENT_BINARY_DIR}/${name}_spv.cpp)
    add_custom_command(
      OUTPUT ${spirv}
      COMMAND ${FIRN_GLSLANG} --quiet -V -g0 --target-env vulkan1.2 -I${PROJECT_SOURCE_DIR}/shaders --depfile ${spirv}.d ${source} -o ${spirv}
      COMMAND ${FIRN_SPIRV_VAL} --target-env vulkan1.2 --scalar-block-layout ${spirv}
      DEPENDS ${source} DEPFILE ${spirv}.d VERBATIM COMMENT "Shader ${name}")
    add_custom_command(
      OUTPUT ${embedded}
      COMMAND ${CMAKE_COMMAND} -DNAME=${name} -DSPIRV=${spirv} -DOUT=${embedded} -P ${PROJECT_SOURCE_DIR}/cmake/embed_spirv.cmake
      DEPENDS ${spirv} ${PROJECT_SOURCE_DIR}/cmake/embed_spirv.cmake VERBATIM)
    list(APPEND sources ${embedded})
  endforeach()
  set(${out_var} ${sources} PARENT_SCOPE)
endfunction()
