# PROGRAM's stdout for ARGUMENTS, into OUT. What a sanitizer thinks of a short run is not asked here.
set(ENV{ASAN_OPTIONS} detect_leaks=0)
execute_process(COMMAND ${PROGRAM} ${ARGUMENTS} OUTPUT_FILE ${OUT} COMMAND_ERROR_IS_FATAL ANY)
