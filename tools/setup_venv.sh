#!/usr/bin/env bash
# Build .venv from requirements/cpu.lock and install the project into it in editable mode. `make` calls this when
# .venv/ready is missing or older than the lock file or pyproject.toml; it can be called by hand too.
#
# Environment:
#   PYTHON       the Python to use (default: python3 if it is suitable, otherwise the newest python3.X that is)
#   TORCH_INDEX  where to find the CPU build of torch if pip does not find it as it is configured
set -euo pipefail
cd "$(dirname "$0")/.."

readonly lock=requirements/cpu.lock
readonly venv=.venv
readonly ready=$venv/ready              # written last: only a finished environment has it
readonly installed=$venv/installed.lock # the lock file this environment was built from
readonly log=$venv/setup.log
readonly torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

# Refuse this machine with one sentence.
refuse() {
  echo "$1" >&2
  exit 1
}

check_machine() {
  [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
    refuse "The CPU environment is for Linux on x86-64, and this is $(uname -s) on $(uname -m)."
  [[ ! -r /proc/cpuinfo ]] || grep -qw avx2 /proc/cpuinfo ||
    refuse "vLLM's CPU build needs a processor with AVX2, and /proc/cpuinfo does not list it."
}

# Print "ok" and the path of the interpreter behind $1 (not that of a virtual environment, which may be the one to be
# replaced), or the reason why it is not suitable.
probe() {
  "$1" -c '
import sys, sysconfig
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    reason = "is Python %d.%d" % sys.version_info[:2]
elif sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    reason = "is not the standard build of CPython"
else:
    try:
        import ensurepip, venv
        reason = ""
    except ImportError:
        reason = "lacks it (Debian, Ubuntu: install python%d.%d-venv)" % sys.version_info[:2]
print(reason or "ok " + (getattr(sys, "_base_executable", None) or sys.executable))
' 2>/dev/null || echo "does not run"
}

# Print the path of a suitable Python.
choose_python() {
  local candidate result complaint=""
  local candidates=(python3 python3.14 python3.13 python3.12 python3.11)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    command -v "$candidate" >/dev/null || continue
    result=$(probe "$candidate")
    if [[ $result == ok\ * ]]; then
      echo "${result#ok }"
      return
    fi
    # Of several reasons the first tells most: it is that of python3.
    complaint=${complaint:-", and $candidate $result"}
  done
  local needed="Python 3.11 to 3.14 with its module venv is needed"
  [[ -z ${PYTHON:-} ]] || refuse "$needed${complaint:-, and there is no $PYTHON}."
  refuse "$needed$complaint; if you have one elsewhere, name it: make PYTHON=/path/to/python3."
}

# Look for the system libraries that the wheels do not bring along; $1 is the Python to look with.
check_libraries() {
  "$1" -c '
import platform, sys
name, version = platform.libc_ver()
sys.exit(name != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 31))' ||
    refuse "The wheels of the CPU environment need glibc 2.31 or later (Debian 11, Ubuntu 20.04, RHEL 9 or newer)."
  "$1" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    refuse "vLLM needs the system library libnuma.so.1 (package libnuma1 on Debian, numactl-libs on Fedora)."
}

# Let one set-up at a time run in this folder.
wait_for_other_setup() {
  command -v flock >/dev/null || return 0
  exec 9>.venv.lock
  flock --nonblock 9 && return
  echo "Another set-up is running in this folder; waiting for it ..."
  flock 9
}

up_to_date() {
  [[ $ready -nt $lock && $ready -nt pyproject.toml ]]
}

pip_install() {
  "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --no-deps "$@" >>"$log" 2>&1
}

fail() {
  echo "The set-up failed; these are the last lines of $log:" >&2
  tail -n 15 "$log" | sed 's/^/  /' >&2
  exit 1
}

install_lock() {
  local python=$1 start=$SECONDS torch
  [[ ! -e $venv ]] || echo "Removing $venv: it is unfinished or was built from another lock file."
  rm -rf "$venv"
  echo "Setting up $venv with $python (about 2 minutes, 4 GB) ..."
  "$python" -m venv "$venv" || refuse "$python could not create the virtual environment $venv."
  torch=$(grep '^torch==' "$lock")
  echo "  $torch"
  # First as pip is configured. Only if that finds no such build, from PyTorch's index, and then nothing but torch.
  pip_install --no-compile "$torch" || pip_install --no-compile --index-url "$torch_index" "$torch" || fail
  echo "  $(($(grep -c '^[a-z]' "$lock") - 1)) more packages"
  pip_install --no-compile -r "$lock" || fail
  # Shows that the environment works, and compiles what is used of it; that all of it is compiled would take a minute.
  PYTHONDONTWRITEBYTECODE="" "$venv/bin/python" -c '
import lightning.pytorch.cli, tensorboard
from transformers import Qwen3ForCausalLM
from vllm import LLM, SamplingParams' >>"$log" 2>&1 || fail
  cp "$lock" "$installed"
  echo "Set up $venv in $((SECONDS - start)) s."
}

main() {
  local python
  check_machine
  python=$(choose_python)
  check_libraries "$python"
  wait_for_other_setup
  ! up_to_date || return 0
  rm -f "$ready"
  cmp --silent "$lock" "$installed" || install_lock "$python"
  pip_install --no-build-isolation --editable . || fail
  touch "$ready"
}

main
