# temper_library(NAME [TORCH] [LINK targets…])   src/NAME/*.cpp (main.cpp apart) as the static library temper_NAME.
# temper_test(NAME [TORCH] [LABEL l] [LINK …])   tests/NAME/*_test.cpp as one binary NAME_test, its cases known to ctest.
# Libraries with TORCH share one precompiled header: LibTorch's headers cost most of the build. What they and templates cost each
# file is what is left, so the presets release and asan compile eight files of a target as one (CMAKE_UNITY_BUILD): less than half
# the time of a build from nothing. Names in a target's anonymous namespaces are therefore unique among its files.

# Off: what GCC 12 says wrongly of its own headers (std::string's operator+, AVX-512 intrinsics), and of anonymous namespaces where
# several files are compiled as one.
set(TEMPER_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wno-unused-parameter -Wno-restrict -Wno-maybe-uninitialized -Wno-subobject-linkage)

add_library(temper_options INTERFACE)
target_include_directories(temper_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_compile_options(temper_options INTERFACE ${TEMPER_WARNINGS})
target_compile_definitions(temper_options INTERFACE TEMPER_VERSION="${PROJECT_VERSION}")
target_link_libraries(temper_options INTERFACE Threads::Threads nlohmann_json::nlohmann_json PkgConfig::XXHASH)
if(TEMPER_WITH_TORCH AND NOT TEMPER_SANITIZE)
  # LibTorch exports the parts of std::filesystem that its own compiler brought. The system's come first, or calls of ours
  # end in halves of two libraries: remove_all() jumped to address 0 on Ubuntu 24.04.
  target_link_options(temper_options INTERFACE "SHELL:-Wl,--push-state,--no-as-needed -lstdc++ -Wl,--pop-state")
endif()
if(TEMPER_SANITIZE)
  target_compile_options(temper_options INTERFACE -fsanitize=${TEMPER_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(temper_options INTERFACE -fsanitize=${TEMPER_SANITIZE})
endif()

if(TEMPER_WITH_TORCH)
  add_library(temper_torch INTERFACE)
  target_include_directories(temper_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
  target_link_libraries(temper_torch INTERFACE ${TORCH_LIBRARIES} OpenMP::OpenMP_CXX)
  # compiles nothing of ours; owns the precompiled header
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/torch_pch.cpp CONTENT "")  # untouched where it is there: it would be compiled anew
  add_library(temper_torch_pch STATIC ${CMAKE_BINARY_DIR}/torch_pch.cpp)
  target_link_libraries(temper_torch_pch PUBLIC temper_options temper_torch)
  target_precompile_headers(temper_torch_pch PRIVATE ${PROJECT_SOURCE_DIR}/cmake/torch_pch.h)
  set_target_properties(temper_torch_pch PROPERTIES UNITY_BUILD OFF)
endif()

function(temper_library NAME)
  cmake_parse_arguments(ARG "TORCH" "" "LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${NAME}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/main\\.cpp$")
  if(NOT sources)
    add_library(temper_${NAME} INTERFACE)
    target_link_libraries(temper_${NAME} INTERFACE temper_options ${ARG_LINK})
    return()
  endif()
  add_library(temper_${NAME} STATIC ${sources})
  # Each compiles one text for every instruction set, under one set of names.
  set(kernels ${sources})
  list(FILTER kernels INCLUDE REGEX "_kernels\\.cpp$")
  set_source_files_properties(${kernels} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  target_link_libraries(temper_${NAME} PUBLIC temper_options ${ARG_LINK})
  if(ARG_TORCH)
    target_link_libraries(temper_${NAME} PUBLIC temper_torch)
    target_precompile_headers(temper_${NAME} REUSE_FROM temper_torch_pch)
  endif()
endfunction()

# A CUDA build links libraries that a machine without a GPU need not have: its tests are not started while it is built.
if(TORCH_CUDA_LIBRARIES)
  set(TEMPER_TEST_DISCOVERY PRE_TEST)
else()
  set(TEMPER_TEST_DISCOVERY POST_BUILD)
endif()

function(temper_test NAME)
  cmake_parse_arguments(ARG "TORCH" "LABEL" "LINK" ${ARGN})
  if(NOT ARG_LABEL)
    set(ARG_LABEL unit)
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${NAME}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(${NAME}_test ${sources})
  target_include_directories(${NAME}_test PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${NAME}_test PRIVATE TEMPER_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/${NAME}/data")
  if(TARGET temper_${NAME})
    target_link_libraries(${NAME}_test PRIVATE temper_${NAME})
  endif()
  target_link_libraries(${NAME}_test PRIVATE ${ARG_LINK} GTest::gmock GTest::gtest GTest::gtest_main)
  if(ARG_TORCH)
    target_link_libraries(${NAME}_test PRIVATE temper_torch)
    # -fPIC, not an executable's -fPIE: else the compiler passes over the precompiled header.
    set_target_properties(${NAME}_test PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${NAME}_test PRIVATE -fPIC)
    target_precompile_headers(${NAME}_test REUSE_FROM temper_torch_pch)
  endif()
  set(timeout 300)
  if(TEMPER_SANITIZE)
    set(timeout 1200)  # under asan some take ten times as long
  endif()
  include(GoogleTest)
  gtest_discover_tests(${NAME}_test TEST_PREFIX "${NAME}." DISCOVERY_TIMEOUT 60 DISCOVERY_MODE ${TEMPER_TEST_DISCOVERY}
    PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${timeout} ENVIRONMENT "OMP_NUM_THREADS=2")
endfunction()
