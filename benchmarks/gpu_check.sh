#!/usr/bin/env bash
# For a machine with a GPU and no network: builds, tests, sanitizes and benchmarks the CUDA backend, then the CPU's.
# Present there: python3 with CuPy, PyTorch (cuDNN), pybind11, scikit-build-core, cmake, pytest, rich; nvcc.
#   benchmarks/gpu_check.sh [FOLDER]     FOLDER (default: benchmarks/results) receives the JSON, the table and the logs
# QUICK=1 takes a layer of each class. Every part runs even if the one before it failed; the end says which did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=$(mkdir -p "${1:-benchmarks/results}" && cd "${1:-benchmarks/results}" && pwd)
quick=${QUICK:+--quick}
prefix=$(mktemp -d)
failed=()

part() {
    local name=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "$folder/gpu-check-$name.log" || failed+=("$name")
    printf -- '== %s: %d s\n' "$name" $((SECONDS - start))
}

build() {
    python3 -m pip install --no-build-isolation --no-deps --no-index --target "$prefix" \
        --config-settings=cmake.define.CONVX_CUDA=ON --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES=native .
}

sanitize() {
    local tool
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 1 python3 -m pytest -q -p no:cacheprovider -m core \
            tests/test_cuda_conv2d.py tests/test_cuda_pool.py || return 1
    done
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv || true
part build build
export PYTHONPATH="$prefix" CONVX_TEST_DEVICE=cuda
part info python3 -m convx info
part tests python3 -m pytest -q -p no:cacheprovider tests/test_cuda_conv2d.py tests/test_cuda_pool.py
part sanitize sanitize
part benchmark python3 -m benchmarks.gpu $quick --output "$folder/gpu.json"
part cpu python3 -m benchmarks floor $quick --output "$folder/gpu-machine-cpu-floor.json"
rm -rf "$prefix"
if ((${#failed[@]})); then
    printf '\ngpu_check: FAILED: %s\n' "${failed[*]}"
    exit 1
fi
printf '\ngpu_check: all parts passed; results in %s\n' "$folder"
