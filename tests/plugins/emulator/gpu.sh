#!/usr/bin/env bash
# SPDX-FileCopyrightText: Copyright (c) 2026 the retinaserve authors
# SPDX-License-Identifier: Apache-2.0
#
# All that a GPU is needed for, in one command: build for it, test, compute-sanitizer, benchmark.
#
#   TENSORRT_ROOT=/opt/tensorrt tests/plugins/emulator/gpu.sh [build folder]
#   STEPS="tests bench" tests/plugins/emulator/gpu.sh      some of: tests memcheck racecheck initcheck synccheck bench
#
# Needs nvcc, cmake, and a Python with numpy, pytest and pytest-timeout (PYTHON; torch and torchvision for the
# comparison with torchvision). Without TensorRT's headers everything but the plugins' life in the harness runs.

set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-python3}
build=${1:-build/gpu}
steps=${STEPS:-tests memcheck racecheck initcheck synccheck bench}
export RETINASERVE_PLUGINS_BUILD=$PWD/$build PYTHONPATH=$PWD:$PWD/src

cmake -S plugins -B "$build" -DCMAKE_CUDA_ARCHITECTURES=native
cmake --build "$build" --parallel

# No conftest: it imports packages that only the whole project needs.
tests=("$python" -m pytest --noconftest -W default --timeout=0 -m gpu tests/plugins)
# The sanitizers slow kernels down tenfold and more: all golden cases, a tenth of the random ones.
few="not 32_bits and not float32_does_not_hold and not (random_problems and not gpu-3)"

for step in $steps; do
    echo "== $step"
    case $step in
    tests) "${tests[@]}" ;;
    bench) "$python" -m tests.plugins.emulator.bench --library "$build/libretinaserve_kernels.so" --json "$build/bench.json" ;;
    *) compute-sanitizer --tool "$step" --target-processes all --error-exitcode 9 "${tests[@]}" -k "$few" ;;
    esac
done
