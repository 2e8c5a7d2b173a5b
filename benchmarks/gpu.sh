#!/bin/sh
# Everything that only a GPU can show, into gpu.json: benchmarks/gpu.sh [options of benchmarks/gpu.py]
#
# Needs Python 3.11 or newer. A torch that is installed already is used; without a network, so is all the rest, and
# what is missing is skipped. PYTHON=python3.12 names another interpreter.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv-gpu}

if "$PYTHON" -m venv --system-site-packages "$VENV" 2>/dev/null; then
    PYTHON=$VENV/bin/python
    # One by one: what cannot be installed must not keep the rest from it.
    for package in '-e .' 'bitsandbytes>=0.50' 'peft>=0.18' 'pytest>=8.4'; do
        # shellcheck disable=SC2086
        timeout 240 "$PYTHON" -m pip install --quiet --disable-pip-version-check --retries 0 --timeout 15 $package ||
            echo "not installed: $package" >&2
    done
fi
PYTHONPATH=src exec "$PYTHON" benchmarks/gpu.py "$@"
