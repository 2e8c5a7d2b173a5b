#!/bin/sh
# Everything that only a GPU can show, in under ten minutes: benchmarks/gpu.sh [options of benchmarks/gpu/runner.py]
#
# Installs and fetches nothing. PYTHON names an interpreter that has torch, 2.11 or newer; what else it lacks may lie as
# wheels in the folder WHEELS, wheels/ by default. The results go into the folder OUT, else into the current one.
set -eu
OUT=${OUT:-.}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu.runner --wheels "${WHEELS:-wheels}" "$@"
