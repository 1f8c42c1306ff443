#!/usr/bin/env bash
# install.sh [COMMAND ...]
# install.sh --threestudio PATH
#
# Makes .venv next to this file once, with everything that carv_3d's commands and tests need, then runs COMMAND inside it
# (its exit status is the script's). Later calls go straight to COMMAND. Needs Python 3.10+ and git.
#
#   ./install.sh                               set up, and say what to do next
#   ./install.sh carv generate "a red mug"     set up where needed, then run carv
#   ./install.sh pytest                        the same for the tests
#   ./install.sh --threestudio PATH            for an existing threestudio checkout: links the extension into its
#                                              custom/ and installs carv_3d, without any other package, into the
#                                              environment that is active (PYTHON=... names another); no .venv is made
#
# Environment: PYTHON=python3.12 chooses the interpreter; CARV_TORCH=cpu or CARV_TORCH=cuda chooses the build
# of PyTorch (without it: CUDA where nvidia-smi finds a GPU, the CPU build otherwise).
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
VENV=$ROOT/.venv
STAMP=$VENV/.carv-ready      # written last: holds the key of a finished set-up
MAKING=$VENV/.carv-making    # written first, removed last: its presence means a set-up that was cut short
LOG=$VENV/install.log

say() { printf '%s\n' "$*" >&2; }
die() { say "install.sh: $*"; exit 1; }

key() { printf '%s %s' "$ROOT" "$(cat "$ROOT/pyproject.toml" "$ROOT/install.sh" | cksum)"; }

ready() { [ -x "$VENV/bin/python" ] && [ ! -e "$MAKING" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$(key)" ]; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      printf '%s' "$name"
      return
    fi
  done
  die "no Python 3.10 or newer was found (tried: ${PYTHON:-python3, python3.10 to 3.13}); install one, or name it: PYTHON=/path/to/python3 ./install.sh"
}

# Python compiles a module when it is first imported: compiling all 18 000 takes longer than all else that pip does.
pip() { PIP_COMPILE=0 "$VENV/bin/python" -m pip --disable-pip-version-check "$@" >>"$LOG" 2>&1; }

failed() {
  tail -n 8 "$LOG" >&2 || true
  die "$1; mend that and run it again (the whole log: $LOG)"
}

install_torch() {
  local build=${CARV_TORCH:-}
  case "$build" in
    '' | cpu | cuda) ;;
    *) die "CARV_TORCH is '$build', but it must be cpu or cuda" ;;
  esac
  if [ -z "$build" ]; then
    if nvidia-smi -L >/dev/null 2>&1 || [ "$(uname -s)" != Linux ]; then build=cuda; else build=cpu; fi
  fi
  # The default wheels (CUDA on Linux, Metal on a Mac) come with the package's own requirements below.
  [ "$build" = cpu ] || return 0
  "$VENV/bin/python" -c 'import torch' 2>/dev/null && return 0
  say "  PyTorch, the CPU build ..."
  # 1. A wheel that this machine's pip already has at hand (find-links); 2. PyTorch's own CPU index.
  pip install --no-index --no-deps 'torch>=2.0' && return 0
  PIP_EXTRA_INDEX_URL='' pip install --retries 1 --timeout 20 --no-deps \
    --index-url https://download.pytorch.org/whl/cpu 'torch>=2.0' && return 0
  say "  PyTorch's CPU index was not reached: taking the default build, which is several GB larger"
  pip install 'torch>=2.0' || failed "PyTorch could not be installed"
}

setup() {
  local python started=$SECONDS
  python=$(find_python) || exit 1
  # A cut-short set-up may hold half-unpacked packages, and a moved folder's scripts point to its old place.
  if [ -e "$MAKING" ] || { [ -e "$STAMP" ] && [ "$(cut -d' ' -f1 "$STAMP")" != "$ROOT" ]; } ||
     { [ -e "$VENV" ] && [ ! -x "$VENV/bin/python" ]; }; then
    say "The set-up in .venv was cut short or moved: making it anew."
    rm -rf "$VENV"
  fi
  mkdir -p "$VENV"
  : >"$MAKING"
  : >"$LOG"
  say "Setting up .venv (once; 1 to 4 minutes)"
  if [ ! -x "$VENV/bin/python" ]; then
    "$python" -m venv "$VENV" >>"$LOG" 2>&1 ||
      failed "$python could not make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"
  fi
  install_torch
  say "  carv_3d and the other packages ..."
  pip install -e "$ROOT[all,dev]" || failed "the packages could not be installed"
  rm -f "$STAMP"
  key >"$STAMP"
  rm -f "$MAKING"
  say "Ready after $((SECONDS - started)) s."
}

# Into threestudio's own environment, whose packages are left as they are (--no-deps): it has all that the extension
# imports. The checkout gets one symbolic link.
threestudio() {
  local python=${PYTHON:-python} checkout link said
  [ $# -eq 1 ] && [ -n "$1" ] || die "--threestudio takes one path, that of a threestudio checkout"
  checkout=$(cd "$1" 2>/dev/null && pwd -P) || die "there is no folder $1; name a threestudio checkout (it holds launch.py)"
  [ -f "$checkout/launch.py" ] && [ -f "$checkout/threestudio/__init__.py" ] ||
    die "$checkout is no threestudio checkout: it lacks launch.py or threestudio/__init__.py"
  [ -d "$checkout/custom" ] ||
    die "$checkout has no folder custom/, so it is older than extensions: update it (git pull)"
  command -v "$python" >/dev/null || die "there is no $python; activate threestudio's environment, or name its Python: PYTHON=/path/to/python"
  said=$("$python" -c '
import sys
if sys.version_info < (3, 10):
    sys.exit("it is Python %d.%d, and carv_3d needs 3.10 or newer" % sys.version_info[:2])
try:
    import torch, diffusers, transformers
except Exception as error:
    sys.exit("it does not load what threestudio needs (%s)" % error)
if int(torch.__version__.split(".")[0]) < 2:
    sys.exit("its torch is %s, and carv_3d needs 2.0 or newer" % torch.__version__)
' 2>&1) || die "$(command -v "$python") cannot be used: $(tail -n 1 <<<"$said"); activate threestudio's environment first"
  link=$checkout/custom/threestudio-carv
  if [ -L "$link" ]; then
    [ "$(cd "$link" 2>/dev/null && pwd -P)" = "$ROOT/custom/threestudio-carv" ] ||
      die "$link leads elsewhere ($(readlink "$link")); remove it and run this again"
  elif [ -e "$link" ]; then
    die "$link exists and is no link of this script's; move it away and run this again"
  fi
  said=$("$python" -m pip --disable-pip-version-check install --no-deps -e "$ROOT" 2>&1) || {
    tail -n 8 <<<"$said" >&2
    die "carv_3d could not be installed into the environment of $(command -v "$python"); mend that and run it again"
  }
  [ -L "$link" ] || ln -s "$ROOT/custom/threestudio-carv" "$link"
  "$python" -m carv_3d.cli.main doctor --threestudio "$checkout" >&2 || say "The extension is linked; what is still missing stands above."
}

if [ "${1:-}" = --threestudio ]; then
  shift
  threestudio "$@"
  exit 0
fi

if ! ready; then
  # One set-up at a time: a second caller waits for the first, then finds it ready.
  if command -v flock >/dev/null 2>&1; then
    exec 9<"$ROOT/install.sh"
    flock 9
    ready || setup 9<&-
    exec 9<&-
  else
    setup
  fi
fi

if [ $# -eq 0 ]; then
  say 'carv_3d is set up. Next:'
  say '  ./install.sh carv generate "a red mug"    a prompt becomes a 3D asset in outputs/'
  say '  ./install.sh carv doctor                  what is here, and how to get what is not'
  say '  ./install.sh pytest                       the tests'
  say 'or enter the environment with: source .venv/bin/activate'
  exit 0
fi

unset PYTHONHOME
export VIRTUAL_ENV=$VENV PATH=$VENV/bin:$PATH
exec "$@"
