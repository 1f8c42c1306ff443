#!/usr/bin/env bash
# The extension's tests inside a real threestudio, on a CPU too. The checkout is only read.
#
#   benchmarks/real_host.sh --setup CHECKOUT [pytest's arguments]
#
# makes the environments `today` and `pinned` (threestudio's own versions) once, runs all in each, and prints a table.
# They lie in $REAL_HOST, else in .real-host/ here; PYTHON=python3.11 chooses the interpreter. Or, in an environment that
# has threestudio's packages without those that need CUDA, and pytest:
#
#   PYTHON=PATH/TO/ENVIRONMENT/bin/python benchmarks/real_host.sh CHECKOUT [pytest's arguments]
set -euo pipefail
usage() { echo "usage: benchmarks/real_host.sh [--setup] CHECKOUT (the folder with launch.py)" >&2; exit 2; }
setup=''
[ "${1:-}" != --setup ] || { setup=yes; shift; }
[ $# -ge 1 ] && [ -f "$1/launch.py" ] || usage
checkout=$(cd "$1" && pwd -P)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARV_THREESTUDIO="$checkout" PYTHONPATH="$PWD" HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
[ -n "$setup" ] || exec "${PYTHON:-python}" -m pytest tests/real_host "$@"

folder=${REAL_HOST:-$PWD/.real-host}
mkdir -p "$folder"
status=0
for stack in today pinned; do
  list=benchmarks/real_host/requirements-$stack.txt ready=$folder/$stack/.ready
  if [ ! -f "$ready" ] || ! cmp -s "$list" "$ready"; then
    echo "setting up $folder/$stack" >&2
    [ -x "$folder/$stack/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder/$stack"
    [ "$stack" = today ] || "$folder/$stack/bin/pip" install -q 'setuptools<70' # before what is built with it
    "$folder/$stack/bin/pip" install -q -r "$list"
    cp "$list" "$ready"
  fi
  "$folder/$stack/bin/python" -m pytest tests/real_host --junitxml="$folder/$stack.xml" "$@" || status=$?
done
[ -n "${CARV_MVDREAM:-}" ] && [ -n "${CARV_THREESTUDIO_MVDREAM:-}" ] \
  || echo 'not run: test_mvdream, which needs CARV_MVDREAM and CARV_THREESTUDIO_MVDREAM'
"$folder/today/bin/python" benchmarks/real_host/table.py "$folder"/{today,pinned}.xml
exit "$status"
