# `cmake --install` and `cpack`: the program, LibTorch's libraries in a folder of its own beside it, and what a user
# reads: PREFIX/bin/temper, PREFIX/lib/temper/, PREFIX/share/temper/, PREFIX/share/doc/temper/.
#   cmake --install build/release --prefix /opt/temper
#   cd build/release && cpack                     temper_VERSION_ARCHITECTURE.deb; LibTorch's CPU build
# The program finds LibTorch by its run path, $ORIGIN/../lib/temper, wherever PREFIX is; everything else it needs are
# system packages, which the .deb names.
set_target_properties(temper PROPERTIES INSTALL_RPATH "$ORIGIN/../lib/temper")
install(TARGETS temper RUNTIME DESTINATION bin)
if(NOT TORCH_CUDA_LIBRARIES)
  foreach(library libtorch_cpu.so libc10.so libgomp.so.1)
    if(EXISTS "${TEMPER_TORCH}/lib/${library}")
      install(PROGRAMS "${TEMPER_TORCH}/lib/${library}" DESTINATION lib/temper)
    endif()
  endforeach()
else()
  # Its CUDA libraries are gigabytes and belong to the machine: LD_LIBRARY_PATH has to name LibTorch's folder and theirs.
  message(STATUS "cmake --install leaves LibTorch's CUDA build out")
endif()
install(DIRECTORY configs scripts/slurm deploy/kubernetes DESTINATION share/temper
  USE_SOURCE_PERMISSIONS PATTERN mini_cluster.sh EXCLUDE)
install(FILES README.md CHANGELOG.md LICENSE DESTINATION share/doc/temper)
install(DIRECTORY docs/ DESTINATION share/doc/temper)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_VENDOR "The Temper authors")
set(CPACK_PACKAGE_CONTACT "${CPACK_PACKAGE_VENDOR}")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_COMPRESSION_TYPE zstd)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS "${TEMPER_TORCH}/lib")
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "openmpi-bin, bubblewrap")  # mpirun for train.ranks > 1; rewards that run code
set(CPACK_DEBIAN_PACKAGE_SUGGESTS slurm-client)
include(CPack)
