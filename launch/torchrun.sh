#!/usr/bin/env bash
# Train with one process per GPU on one machine or several, by torchrun. The arguments are those of `asymgrpo fit`:
#
#   launch/torchrun.sh --config my.yaml --run_dir runs/mine
#
# It goes on where the run stopped, or begins it: `--ckpt_path last` is always added. So the same command is right the
# first time, after a signal, after a crash and after a power cut. Exit codes are those of asymgrpo
# (docs/operations.md), where torchrun alone would end with 1 whatever happened.
#
# Environment:
#   PROCESSES    processes on this machine (default: one per GPU that is visible, or 1)
#   NODES        machines (default: 1); then the script runs on each of them, with the same arguments, and
#   NODE_RANK      the number of this one from 0 (default: what SLURM or a Kubernetes Job says),
#   MASTER_ADDR    a name or address of machine 0 that all of them reach,
#   MASTER_PORT    and a port that is free on it (default: 29500)
#   GRACE        seconds that processes have to stop after a signal, before they are killed (default: 110)
#   ASYMGRPO     the command of one process (default: asymgrpo)
set -euo pipefail

refuse() {
  echo "torchrun.sh: $1" >&2
  exit 2
}

# Print how many GPUs torch will see.
visible_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
  else
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true
  fi
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here
readonly nodes=${NODES:-1} node=${NODE_RANK:-${SLURM_NODEID:-${JOB_COMPLETION_INDEX:-0}}}
processes=${PROCESSES:-$(visible_gpus)}
[[ $processes != 0 ]] || processes=1
export ASYMGRPO=${ASYMGRPO:-asymgrpo}

[[ $# -gt 0 ]] || refuse "There are no arguments: name at least --config and --run_dir, as for asymgrpo fit."
for number in "$processes" "$nodes" "$node"; do
  [[ $number =~ ^[0-9]+$ ]] || refuse "PROCESSES, NODES and NODE_RANK are whole numbers, not '$number'."
done
((node < nodes)) || refuse "NODE_RANK is $node, but there are $nodes machines, numbered from 0."
command -v torchrun >/dev/null || refuse "torchrun is not on the PATH: activate the environment of asymgrpo."
command -v "$ASYMGRPO" >/dev/null || refuse "$ASYMGRPO is not on the PATH: activate the environment of asymgrpo."

meeting=(--standalone)
if ((nodes > 1)); then
  [[ -n ${MASTER_ADDR:-} ]] || refuse "MASTER_ADDR is not set: with $nodes machines it names the first."
  meeting=(--node-rank "$node" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi

ASYMGRPO_CODES=$(mktemp)
export ASYMGRPO_CODES
trap 'rm -f "$ASYMGRPO_CODES"' EXIT

# What torchrun prints of a process that failed is a Python traceback of its own; the process has said why before.
set -m # in a process group of its own, so that a Ctrl-C reaches it once, by the traps below
setpriv --pdeathsig TERM torchrun "${meeting[@]}" --nnodes "$nodes" --nproc-per-node "$processes" \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2 \
  --shutdown-timeout "${GRACE:-110}" --no-python "$here/process.sh" \
  fit "$@" --trainer.num_nodes "$nodes" --trainer.devices "$processes" --ckpt_path last & # the last word on each wins
readonly torchrun=$!
for name in TERM INT HUP USR1 USR2; do
  # shellcheck disable=SC2064 # the name as it is now; one that was ignored from the start, as by nohup, stays ignored
  trap "kill -$name $torchrun 2>/dev/null" "$name"
done

torchrun_code=0
while :; do
  wait "$torchrun" && torchrun_code=0 || torchrun_code=$?
  kill -0 "$torchrun" 2>/dev/null || break # a wait that a signal interrupted ends before torchrun does
done

# The first failure says what happened; the processes that torchrun ended because of it come after. Then the first stop.
for kind in '^(75|129|130|143|0)$' '^0$'; do
  code=$(grep -vE -m1 "$kind" "$ASYMGRPO_CODES") && exit "$code"
done
exit "$torchrun_code"
