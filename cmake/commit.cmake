# cmake -DSOURCE=DIR -DOUTPUT=FILE -P commit.cmake: writes the commit that DIR is at into a header, where it changed.
set(commit "")
find_program(GIT git)
if(GIT)
  execute_process(COMMAND ${GIT} describe --always --abbrev=12 --dirty=+changes --exclude=* WORKING_DIRECTORY ${SOURCE}
    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT commit)
  set(commit "unknown commit")  # an unpacked archive
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define TEMPER_COMMIT \"@commit@\"\n" @ONLY)
