# Installs into an empty prefix, builds tests/install/consumer/project against it, runs what came out.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT code EQUAL 0)
    string(REPLACE ";" " " command "${ARGV}")
    message(FATAL_ERROR "${command}\nended with ${code}:\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
# A build that is not whole installs nothing at all.
file(RENAME ${FIRN_BUILD}/share/firn.fish ${FIRN_BUILD}/share/firn.fish.away)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${FIRN_BUILD} --prefix ${WORK}/half RESULT_VARIABLE code ERROR_VARIABLE why
                OUTPUT_QUIET)
file(RENAME ${FIRN_BUILD}/share/firn.fish.away ${FIRN_BUILD}/share/firn.fish)
if(code EQUAL 0 OR EXISTS ${WORK}/half OR NOT why MATCHES "firn_installed")
  message(FATAL_ERROR "half a build was installed: ${code} ${why}")
endif()
run(${CMAKE_COMMAND} --install ${FIRN_BUILD} --prefix ${WORK}/prefix)
run(${CMAKE_COMMAND} -G ${GENERATOR} -S ${FIRN_SOURCE}/tests/install/consumer/project -B ${WORK}/build
    -DCMAKE_PREFIX_PATH=${WORK}/prefix -DCMAKE_CXX_COMPILER=${CXX} -DPROGRAM=${FIRN_SOURCE}/examples/embed.cpp)
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${WORK}/build/consumer)
if(NOT output STREQUAL "96 of 100 tokens are there for the next prompt\n")
  message(FATAL_ERROR "the consumer printed: ${output}")
endif()
# What a checkout hides: all that is shipped is found from an empty folder, wherever it was installed.
foreach(file share/man/man1/firn.1 share/bash-completion/completions/firn share/zsh/site-functions/_firn
             share/fish/vendor_completions.d/firn.fish share/firn/configs/schema.json share/firn/configs/devices/h200.yaml
             share/doc/firn/LICENSE share/doc/firn/README.md share/doc/firn/docs/config.md)
  if(NOT EXISTS ${WORK}/prefix/${file})
    message(FATAL_ERROR "${file} is not installed")
  endif()
endforeach()
run(${Python3} ${CMAKE_CURRENT_LIST_DIR}/check_docs.py --prefix ${WORK}/prefix --source ${FIRN_SOURCE} --work ${WORK}/empty
    --model ${MODEL})
message(STATUS "${output}")
run(${WORK}/prefix/bin/firn version)
if(NOT output MATCHES "^firn [0-9]+\\.[0-9]+\\.[0-9]+")
  message(FATAL_ERROR "the installed program printed: ${output}")
endif()
