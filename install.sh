#!/usr/bin/env bash
# install.sh [--locked] [COMMAND ...]
# install.sh --threestudio PATH
# install.sh --lock
#
# Makes .venv next to this file once, with everything that carv_3d's commands and tests need, then runs COMMAND inside it
# (its exit status is the script's). Later calls go straight to COMMAND. Needs Python 3.10+ and git.
#
#   ./install.sh                               set up, and say what to do next
#   ./install.sh carv generate "a red mug"     set up where needed, then run carv
#   ./install.sh pytest                        the same for the tests
#   ./install.sh --locked [COMMAND ...]        set up with the exact versions of requirements.lock
#   ./install.sh --lock                        write requirements.lock from what .venv holds now
#   ./install.sh --threestudio PATH            for an existing threestudio checkout: links the extension into its
#                                              custom/ and installs carv_3d, without any other package, into the
#                                              environment that is active (PYTHON=... names another); no .venv is made
#
# Environment: PYTHON=python3.12 chooses the interpreter; CARV_TORCH=cpu or CARV_TORCH=cuda chooses the build
# of PyTorch (without it: CUDA where nvidia-smi finds a GPU, the CPU build otherwise).
if [ -z "${BASH_VERSION:-}" ]; then # called by another shell: sh install.sh
  command -v bash >/dev/null || { echo "install.sh: it needs bash, which is not here" >&2; exit 1; }
  exec bash "$0" "$@"
fi
set +o posix
set -euo pipefail

SCRIPT=${BASH_SOURCE[0]:-}
[ -n "$SCRIPT" ] || { echo "install.sh: it sets up the folder that it is in, so it is called there: ./install.sh" >&2; exit 1; }
while [ -L "$SCRIPT" ]; do # called through links
  link=$(readlink "$SCRIPT")
  case "$link" in /*) SCRIPT=$link ;; *) SCRIPT=$(dirname "$SCRIPT")/$link ;; esac
done
ROOT=$(cd "$(dirname "$SCRIPT")" && pwd -P)
VENV=$ROOT/.venv
STAMP=$VENV/.carv-ready      # written last: holds the key of a finished set-up
MAKING=$VENV/.carv-making    # written first, removed last: its presence means a set-up that was cut short
LOG=$VENV/install.log
LOCK=$ROOT/requirements.lock
LOCKED=''                    # --locked: the exact versions of $LOCK
CHILD=''                     # the process group of the long step at hand

say() { printf '%s\n' "$*" >&2; }
die() { say "install.sh: $*"; exit 1; }
usage() { sed -n '/^# install.sh/,/^[^#]/s/^# \{0,1\}//p' "$ROOT/install.sh"; }

# key [FILE]: of this folder, what it requires, and the lock file where one is given
key() { printf '%s %s' "$ROOT" "$(cat "$ROOT/pyproject.toml" "$ROOT/install.sh" "$@" | cksum)"; }

stamp() { cat "$STAMP" 2>/dev/null || true; }

ready() {
  [ -x "$VENV/bin/python" ] && [ ! -e "$MAKING" ] || return 1
  [ -f "$LOCK" ] && [ "$(stamp)" = "$(key "$LOCK")" ] && return 0
  [ -z "$LOCKED" ] && [ "$(stamp)" = "$(key)" ] # exact versions are within the ranges, not the other way
}

# version PROGRAM: prints "3.11", fails where that is too old or no Python
version() {
  local said status=0
  said=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 10))' 2>/dev/null) || status=1
  [[ $said =~ ^[0-9]+\.[0-9]+$ ]] || return 1 # such as PYTHON=echo
  printf '%s\n' "$said"
  return "$status"
}

find_python() {
  local name here
  if [ -n "${PYTHON:-}" ]; then
    [ ! -d "$PYTHON" ] || die "PYTHON is $PYTHON, a folder; name the program in it, such as PYTHON=$PYTHON/bin/python3"
    command -v -- "$PYTHON" >/dev/null || die "PYTHON is $PYTHON, and there is no such program; name another, or unset it"
    here=$(version "$PYTHON") && { printf '%s' "$PYTHON"; return; }
    [ -n "$here" ] || die "PYTHON is $PYTHON, which does not run as a Python; name another, or unset it"
    die "PYTHON is $PYTHON, Python $here, and carv_3d needs 3.10 or newer; name another, or unset it"
  fi
  for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
    version "$name" >/dev/null && { printf '%s' "$name"; return; }
  done
  die "no Python 3.10 or newer was found (tried: python3, python3.10 to 3.13); install one, or name it: PYTHON=/path/to/python3 ./install.sh"
}

# A long step, in a process group of its own: a signal ends it with all that it has started.
run() {
  local status=0
  set -m
  "$@" </dev/null >>"$LOG" 2>&1 &
  CHILD=$!
  set +m
  wait "$CHILD" || status=$?
  CHILD=''
  return "$status"
}

stopped() {
  trap '' INT TERM HUP
  if [ -n "$CHILD" ]; then
    kill -TERM -- "-$CHILD" 2>/dev/null || true
    wait "$CHILD" 2>/dev/null || true
  fi
  say "install.sh: the set-up was stopped; the next call makes it anew"
  exit $((128 + $1))
}

# Python compiles a module when it is first imported: compiling all 18 000 takes longer than all else that pip does.
pip() { run env PIP_COMPILE=0 "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

# writable: dies with the system's own reason where .venv cannot be written
writable() {
  local why
  why=$({ mkdir -p "$VENV" && echo >"$VENV/.probe" && rm -f "$VENV/.probe"; } 2>&1) ||
    die "$VENV cannot be written: ${why##*: }; mend that and run it again"
}

failed() {
  writable
  ! grep -qE 'No space left on device|Disk quota exceeded' "$LOG" ||
    die "the disk is full: $VENV could not be written; free some space and run it again (the whole log: $LOG)"
  tail -n 8 "$LOG" >&2 || true
  die "$1; mend that and run it again (the whole log: $LOG)"
}

# install_torch REQUIREMENT VERSION: an empty version is any
install_torch() {
  local build=${CARV_TORCH:-}
  if [ -z "$build" ]; then
    if nvidia-smi -L >/dev/null 2>&1 || [ "$(uname -s)" != Linux ]; then build=cuda; else build=cpu; fi
  fi
  # The default wheels (CUDA on Linux, Metal on a Mac) come with the package's own requirements below.
  [ "$build" = cpu ] || return 0
  "$VENV/bin/python" -c 'import torch, sys; sys.exit(sys.argv[1] not in ("", torch.__version__.partition("+")[0]))' \
    "$2" 2>/dev/null && return 0
  say "  PyTorch, the CPU build ..."
  # 1. A wheel that this machine's pip already has at hand (find-links); 2. PyTorch's own CPU index.
  pip install --no-index --no-deps "$1" && return 0
  PIP_EXTRA_INDEX_URL='' pip install --retries 1 --timeout 20 --no-deps \
    --index-url https://download.pytorch.org/whl/cpu "$1" && return 0
  say "  PyTorch's CPU index was not reached: taking the default build, which is several GB larger"
  pip install "$1" || failed "PyTorch could not be installed"
}

# A cut-short set-up may hold half-unpacked packages, and a moved folder's scripts point to its old place: both are made
# anew. What this script has not made is never removed.
clear_venv() {
  local made
  made=$(stamp)
  if [ ! -L "$VENV" ] && { [ ! -e "$VENV" ] || rmdir "$VENV" 2>/dev/null; }; then return; fi
  if [ ! -e "$MAKING" ] && [ "${made% * *}" = "$ROOT" ] && [ -x "$VENV/bin/python" ]; then return; fi
  [ ! -L "$VENV" ] || die "$VENV is a link to $(readlink "$VENV"); remove the link and run this again"
  [ -e "$MAKING" ] || [ -n "$made" ] || die "$VENV was not made by this script; move or remove it and run this again"
  say "The set-up in .venv was cut short or moved: making it anew."
  rm -rf "$VENV" 2>/dev/null || die "$VENV could not be removed; see what is at work in it, or remove it yourself"
}

setup() {
  local python started=$SECONDS torch=''
  python=$(find_python) || exit 1
  case "${CARV_TORCH:-}" in
    '' | cpu | cuda) ;;
    *) die "CARV_TORCH is '$CARV_TORCH', but it must be cpu or cuda" ;;
  esac
  if [ -n "$LOCKED" ]; then
    [ -f "$LOCK" ] || die "there is no $LOCK; run without --locked"
    torch=$(sed -n 's/^torch==//p' "$LOCK")
  fi
  clear_venv
  writable
  true >"$MAKING"
  true >"$LOG"
  trap 'stopped 2' INT
  trap 'stopped 15' TERM
  trap 'stopped 1' HUP
  say "Setting up .venv (once; 1 to 4 minutes)"
  if [ ! -x "$VENV/bin/python" ] && ! run "$python" -m venv "$VENV"; then
    grep -q ensurepip "$LOG" && failed "$python lacks venv (on Debian and Ubuntu: apt install python3-venv)"
    failed "$python could not make a virtual environment"
  fi
  install_torch "torch${torch:+==}${torch:->=2.0}" "$torch"
  say "  carv_3d and the other packages ..."
  if [ -n "$LOCKED" ]; then
    pip install -r "$LOCK" || failed "the versions of requirements.lock could not be installed ($(head -n 1 "$LOCK"))"
    pip install --no-deps -e "$ROOT" || failed "carv_3d could not be installed"
  else
    pip install -e "$ROOT[all,dev]" || failed "the packages could not be installed"
  fi
  rm -f "$STAMP"
  key ${LOCKED:+"$LOCK"} >"$STAMP" || failed "the set-up could not be marked as done"
  rm -f "$MAKING"
  trap - INT TERM HUP
  say "Ready after $((SECONDS - started)) s."
}

# The versions alone, without hosts, paths or builds: the same file serves any index.
lock() {
  local versions
  versions=$("$VENV/bin/python" -m pip --disable-pip-version-check list --format=freeze --exclude-editable --exclude pip) ||
    die "pip could not list what .venv holds"
  {
    "$VENV/bin/python" -c 'import platform as p; print("# tried with Python", p.python_version(), "on", p.system(), p.machine())'
    sed 's/+[a-z0-9.]*$//' <<<"$versions"
  } >"$LOCK"
  say "$LOCK holds $(grep -c == "$LOCK") versions."
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

case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  --threestudio)
    shift
    threestudio "$@"
    exit 0
    ;;
  --locked)
    LOCKED=1
    shift
    ;;
esac
case "${1:-}" in
  --lock) ;;
  -*)
    usage >&2
    say "install.sh: there is no option $1 here"
    exit 2
    ;;
esac

if ! ready; then
  # One set-up at a time: a second caller waits for the first, and for what a killed one left running.
  if command -v flock >/dev/null 2>&1; then
    exec 9<"$ROOT/install.sh"
    flock -n 9 || { say "Another set-up is at work here: waiting for it ..."; flock 9; }
    ready || setup
    exec 9<&-
  else
    setup
  fi
fi

if [ "${1:-}" = --lock ]; then
  lock
  exit 0
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
