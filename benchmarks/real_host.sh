#!/usr/bin/env bash
# The extension's tests inside a real threestudio, on a CPU too:
#
#   PYTHON=PATH/TO/ENVIRONMENT/bin/python benchmarks/real_host.sh CHECKOUT [pytest's arguments]
#
# PYTHON has threestudio's packages, without those that need CUDA, and pytest. The checkout is only read.
set -euo pipefail
[ $# -ge 1 ] && [ -f "$1/launch.py" ] || { echo "usage: benchmarks/real_host.sh CHECKOUT (the folder with launch.py)" >&2; exit 2; }
checkout=$(cd "$1" && pwd -P)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARV_THREESTUDIO="$checkout" PYTHONPATH="$PWD" HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${PYTHON:-python}" -m pytest tests/real_host "$@"
