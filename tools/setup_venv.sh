#!/usr/bin/env bash
# Build .venv from a lock file and install the project into it in editable mode. `make` calls this when .venv/ready is
# missing or older than the lock file or pyproject.toml; it can be called by hand too.
#
#   tools/setup_venv.sh [cpu|gpu]    from requirements/cpu.lock or gpu.lock (default: what .venv was built for, or cpu)
#
# Environment:
#   PYTHON       the Python to use (default: python3 if it is suitable, otherwise the newest python3.X that is)
#   TORCH_INDEX  where to find the CPU build of torch if pip does not find it as it is configured
set -euo pipefail
cd "$(dirname "$0")/.."

readonly venv=.venv
readonly marker=$venv/device # what the environment was built for; one without it is older than the choice
built=$(cat "$marker" 2>/dev/null || echo cpu)
readonly built
readonly device=${1:-$built}
readonly lock=requirements/$device.lock
readonly ready=$venv/ready              # written last: only a finished environment has it
readonly installed=$venv/installed.lock # the lock file this environment was built from
readonly log=$venv/setup.log
readonly torch_hashed_for=3.11          # the Python for whose build of torch cpu.lock has the hash
readonly torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

# Refuse this machine with one sentence.
refuse() {
  echo "$1" >&2
  exit 1
}

check_machine() {
  [[ $# -le 1 && $device =~ ^(cpu|gpu)$ ]] || refuse "The environment is cpu or gpu, not $*."
  [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
    refuse "The ${device^^} environment is for Linux on x86-64, and this is $(uname -s) on $(uname -m)."
  [[ $device == gpu || ! -r /proc/cpuinfo ]] || grep -qw avx2 /proc/cpuinfo ||
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
    refuse "The wheels of the environment need glibc 2.31 or later (Debian 11, Ubuntu 20.04, RHEL 9 or newer)."
  if [[ $device == cpu ]]; then
    "$1" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
      refuse "vLLM needs the system library libnuma.so.1 (package libnuma1 on Debian, numactl-libs on Fedora)."
  else
    # No reason to refuse: images are built on machines without a GPU.
    "$1" -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null ||
      echo "Note: there is no NVIDIA driver (libcuda.so.1) here; training on a GPU needs one that knows CUDA 13 (580 or newer)."
  fi
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
  [[ $built == "$device" && $ready -nt $lock && $ready -nt pyproject.toml ]]
}

pip_install() {
  "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --no-deps "$@" >>"$log" 2>&1
}

fail() {
  echo "The set-up failed; these are the last lines of $log:" >&2
  tail -n 15 "$log" | sed 's/^/  /' >&2
  exit 1
}

# The CPU build of torch: first as pip is configured. Only if that finds no such build, from PyTorch's index, and then
# nothing but torch.
install_cpu_torch() {
  local torch=$venv/torch.lock
  # Its line and the hashes that continue it.
  sed -n '/^torch==/,/[^\\]$/p' "$lock" >"$torch"
  echo "  $(grep -o '^torch==[^ ]*' "$torch")"
  if [[ $("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') != "$torch_hashed_for" ]]; then
    echo "  Note: $lock has torch's hash for Python $torch_hashed_for alone; here it is taken without being compared."
    grep -o '^torch==[^ ]*' "$lock" >"$torch"
  fi
  pip_install --no-compile -r "$torch" || pip_install --no-compile --index-url "$torch_index" -r "$torch" || fail
}

# Show that the environment works, and compile what is used of it; that all of it is compiled would take a minute.
try_imports() {
  PYTHONDONTWRITEBYTECODE="" "$venv/bin/python" -c '
import sys, torch
if (sys.argv[1] == "gpu") != (torch.version.cuda is not None):
    sys.exit(f"pip chose torch {torch.__version__}, which is not the build for the {sys.argv[1].upper()}: look at its "
             "configuration (find-links, extra-index-url).")
import lightning.pytorch.cli, tensorboard
from transformers import Qwen3ForCausalLM
from vllm import LLM, SamplingParams' "$device" >>"$log" 2>&1 || fail
}

install_lock() {
  local python=$1 start=$SECONDS cost="about 2 minutes, 4 GB"
  [[ $device == cpu ]] || cost="many minutes, over 10 GB"
  [[ ! -e $venv ]] || echo "Removing $venv: it is unfinished or was built from another lock file."
  rm -rf "$venv"
  echo "Setting up $venv for the ${device^^} with $python ($cost) ..."
  "$python" -m venv "$venv" || refuse "$python could not create the virtual environment $venv."
  echo "  $(grep -c '^[a-z]' "$lock") packages of $lock"
  if [[ $device == cpu ]]; then
    install_cpu_torch
    sed '/^torch==/,/[^\\]$/d' "$lock" >"$venv/packages.lock"
  else
    cp "$lock" "$venv/packages.lock"
  fi
  pip_install --no-compile --require-hashes -r "$venv/packages.lock" || fail
  try_imports
  echo "$device" >"$marker"
  cp "$lock" "$installed"
  echo "Set up $venv in $((SECONDS - start)) s."
}

main() {
  local python
  check_machine "$@"
  python=$(choose_python)
  check_libraries "$python"
  wait_for_other_setup
  ! up_to_date || return 0
  rm -f "$ready"
  cmp --silent "$lock" "$installed" || install_lock "$python"
  pip_install --no-build-isolation --editable . || fail
  touch "$ready"
}

main "$@"
