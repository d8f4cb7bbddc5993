#!/usr/bin/env bash
# Runs distgan on Horovod ranks. Options of horovodrun stand before --, words of distgan behind it.
#   bash launch/horovod.sh -np 4 -- train --preset=cifar10-dcgan
#   bash launch/horovod.sh -np 8 -H host1:4,host2:4 -- train --preset=cifar10-dcgan
#   bash launch/horovod.sh -np 8 --hostfile hosts -p 2222 -- train --preset=cifar10-dcgan
# It ends with the exit code of the first rank that failed, where bare horovodrun always ends with 1.
set -euo pipefail

options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
if [ $# -lt 2 ] || [ ${#options[@]} = 0 ]; then
  echo "horovod.sh: usage: bash launch/horovod.sh -np N [-H host1:4,host2:4] -- train [--flags]" >&2
  exit 2
fi
shift
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
command -v horovodrun >/dev/null || { echo "horovod.sh: Horovod is missing: bash launch/install_horovod.sh" >&2; exit 2; }

export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" # horovodrun imports TensorFlow too.
distgan "$@" --help >/dev/null # A mistake in a flag is told once, and not by each rank.
program="$(command -v distgan)"
allow_time "$@"
command=(horovodrun --gloo "${options[@]}" "$program" "$@")
echo "horovod.sh: ${command[*]}" >&2
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
mkfifo "$folder/errors"
export DISTGAN_SECRET="${DISTGAN_SECRET:-$(new_secret)}"
hide_secrets "$folder"
# horovodrun tells of a failed rank by a traceback of its own: it is held back, and the rank's exit code taken from it.
awk=(awk)
! awk -W version 2>&1 </dev/null | grep -q ^mawk || awk+=(-W interactive) # Else it holds lines back.
shielded "${awk[@]}" -v code="$folder/code" '
  /^Traceback \(most recent call last\):$/ { held = 1 }
  held { text = text $0 "\n"; if (/^Exit code: -?[0-9]+/) { print $3 > code; found = 1 } next }
  { sub(/^\[[0-9]+\]<stderr>:/, "") }
  /^(Killed|Aborted|Terminated)$/ { next } # Said by the shell of a rank that a signal ended.
  /^WARNING: All log messages before absl::InitializeLog|^[IW][0-9]+ [0-9:.]+ / { next } # TensorFlow 2.21, whatever its log level.
  { print; fflush() }
  END { if (!found) printf "%s", text }
' <"$folder/errors" >&2 &
reader=$!
export DISTGAN_JOB="$folder"
stop() { stop_trainers "$program" "$job" "$1"; }
note_signals
# In a session of its own, as it would end by a Ctrl-C and leave its ranks 4.5 s.
setsid "${command[@]}" </dev/null 2>"$folder/errors" > >(shielded sed -u -E '/^(Process [0-9]+ exit with|Terminating remaining workers)/d; s/^\[[0-9]+\]<stdout>://') &
job=$!
wait_for $reader
wait_for $job
[ $status = 0 ] || [ ! -s "$folder/code" ] || status="$(cat "$folder/code")"
finish "$status"
