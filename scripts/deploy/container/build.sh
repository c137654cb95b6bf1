#!/usr/bin/env bash
# Build a plan and its repository on the GPU that will serve them; the entry of the `builder` image.
#
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD/work:/work" retinaserve-builder:26.08 \
#       model.onnx repository
#
# Runs in /work. The graph was exported with --flavour tensorrt; on a second call the repository gets version 2.
#   PLAN_OPTIONS    further options of `retinaserve export`, PLAN_OPTIONS="--batch 1 8 32"
#   BUILD_OPTIONS   further options of `retinaserve build`, BUILD_OPTIONS="--max-image-pixels 25000000"
set -euo pipefail

if [[ $# -ne 2 ]]; then
    echo "usage: build.sh MODEL.onnx REPOSITORY" >&2
    exit 2
fi
graph=$1 repository=$2
plugins=${RETINASERVE_PLUGINS:-/opt/retinaserve/lib/libretinaserve_plugins.so}
read -ra plan_options <<<"${PLAN_OPTIONS:-}"
read -ra build_options <<<"${BUILD_OPTIONS:-}"

if [[ ! -f $graph ]]; then
    echo "$graph: no such file; mount its folder: -v \"\$PWD/work:/work\"" >&2
    exit 3
fi
if [[ ! -f $plugins ]]; then
    echo "$plugins: no such file; the builder image has it, elsewhere set RETINASERVE_PLUGINS" >&2
    exit 3
fi
if ! nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader; then
    echo "no GPU in this container: run it with --gpus all on a machine with NVIDIA's container toolkit" >&2
    exit 3
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
retinaserve export "$graph" "$scratch/model.plan" --plugins "$plugins" "${plan_options[@]}"
retinaserve build "$scratch/model.plan" --profile gpu --plugins "$plugins" \
    --triton-version "${TRITON_VERSION:?the image sets it}" --output "$repository" "${build_options[@]}"
