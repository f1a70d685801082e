# convx._jax: handlers for XLA's foreign function interface. All they need is headers, which every jaxlib brings along.
# XLA loads handlers built with headers of its own version or an older one; 0.6.1 is the oldest jaxlib that convx.jax works
# with, and so the best one to build a wheel with.

if(CONVX_JAX STREQUAL "OFF")
    return()
endif()

if(NOT CONVX_JAX_INCLUDE)
    execute_process(
        COMMAND ${Python_EXECUTABLE} -c
                "import importlib.util; print(importlib.util.find_spec('jaxlib').submodule_search_locations[0] + '/include')"
        OUTPUT_VARIABLE CONVX_JAX_INCLUDE OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT EXISTS "${CONVX_JAX_INCLUDE}/xla/ffi/api/ffi.h")
    set(convx_jax_missing "no xla/ffi/api/ffi.h in the jaxlib of ${Python_EXECUTABLE}, if it has one, nor in CONVX_JAX_INCLUDE")
    if(CONVX_JAX STREQUAL "ON")
        message(FATAL_ERROR "convx: CONVX_JAX is ON, but there is ${convx_jax_missing}. "
                            "CONVX_JAX_INCLUDE is what `python -c 'import jax; print(jax.ffi.include_dir())'` prints.")
    endif()
    message(STATUS "convx: _jax is left out: ${convx_jax_missing}")
    return()
endif()
message(STATUS "convx: _jax by the headers in ${CONVX_JAX_INCLUDE}")

file(GLOB convx_jax_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/bindings/jax_*.cpp)
pybind11_add_module(_jax MODULE NO_EXTRAS ${convx_jax_sources})
target_compile_definitions(_jax PRIVATE CONVX_VERSION="${version}")
target_include_directories(_jax PRIVATE csrc)
if(NOT MSVC)
    # Members of a struct there have the names of their types, which g++ takes for an error where it is pedantic.
    target_compile_options(_jax PRIVATE -Wno-pedantic)
endif()
target_include_directories(_jax SYSTEM PRIVATE ${CONVX_JAX_INCLUDE})
install(TARGETS _jax DESTINATION convx)
