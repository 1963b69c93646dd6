#!/usr/bin/env bash
# One process of a run under torchrun, started by torchrun.sh. Notes its exit code in ASYMGRPO_CODES, and tells
# torchrun of a failure, but not of a stop: torchrun would answer the first process that ends with a code other than 0
# by a signal to the others, and to a process that is stopping already, and may be saving, a second signal means to
# end at once.
set -uo pipefail

trap : INT TERM HUP USR1 USR2 # a signal goes to the whole group: the command has it, too, and decides when to end
setpriv --pdeathsig KILL "$ASYMGRPO" "$@" # ends with this shell, however that ends
code=$?
echo "$code" >>"$ASYMGRPO_CODES"
case $code in
  75 | 129 | 130 | 143) exit 0 ;;
  *) exit "$code" ;;
esac
