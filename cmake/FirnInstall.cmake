# What an installed firn has beside libraries and headers: the program's data, its manual page and completions, the pages.
# firn_installed builds everything that `cmake --install` copies.
set(firn_data ${PROJECT_BINARY_DIR}/share/firn)  # as an installed program has it: ../share/firn of its own folder
file(MAKE_DIRECTORY ${firn_data})
foreach(folder configs tests/data/traces)
  get_filename_component(name ${folder} NAME)
  file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${folder} ${firn_data}/${name} SYMBOLIC)
endforeach()

set(firn_shell_files)
function(firn_written_by_program file)
  add_custom_command(OUTPUT ${PROJECT_BINARY_DIR}/share/${file} DEPENDS firn_cli VERBATIM
                     COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:firn_cli> "-DARGUMENTS=${ARGN}"
                             -DOUT=${PROJECT_BINARY_DIR}/share/${file} -P ${PROJECT_SOURCE_DIR}/cmake/write_output.cmake)
  set(firn_shell_files ${firn_shell_files} ${PROJECT_BINARY_DIR}/share/${file} PARENT_SCOPE)
endfunction()
firn_written_by_program(firn.1 help --man)
firn_written_by_program(firn.bash completion bash)
firn_written_by_program(_firn completion zsh)
firn_written_by_program(firn.fish completion fish)
add_custom_target(firn_shell ALL DEPENDS ${firn_shell_files})
add_custom_target(firn_installed DEPENDS firn_shell firn firn_cli)
if(TARGET firn_shared)
  add_dependencies(firn_installed firn_shared)
endif()

install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs DESTINATION ${CMAKE_INSTALL_DATADIR}/firn)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/tests/data/traces DESTINATION ${CMAKE_INSTALL_DATADIR}/firn)
install(FILES ${PROJECT_BINARY_DIR}/share/firn.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${PROJECT_BINARY_DIR}/share/firn.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME firn)
install(FILES ${PROJECT_BINARY_DIR}/share/_firn DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
install(FILES ${PROJECT_BINARY_DIR}/share/firn.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
install(FILES LICENSE NOTICE THIRD_PARTY.md README.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES examples/embed.cpp DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples)
