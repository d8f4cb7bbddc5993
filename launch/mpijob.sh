#!/usr/bin/env bash
# The launcher of a Kubernetes MPIJob: runs launch/horovod.sh on all slots of the operator's host file, and again where the
# run was stopped or a worker was lost, once all workers answer. A mistake of the user (2), a run that diverged (3) and the
# end of the launcher's own pod end it with their code.
#   bash launch/mpijob.sh -- train --flagfile=/etc/distgan/flags.txt --run_dir=/runs/NAME
set -euo pipefail
host_file="${DISTGAN_HOST_FILE:-/etc/mpi/hostfile}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/environment.sh"
port=2222 wait_seconds=1800 restarts=20

[ $# -gt 1 ] && [ "$1" = -- ] || { echo "mpijob.sh: usage: bash launch/mpijob.sh -- train [--flags]" >&2; exit 2; }
mapfile -t hosts < <(awk 'NF { print $1 }' "$host_file")
ranks="$(awk '{ sub(/.*slots=/, ""); total += $0 } END { print total }' "$host_file")"

# Waits until sshd of every worker answers.
meet() {
  local end=$((SECONDS + wait_seconds)) told=0 host
  for host in "${hosts[@]}"; do
    until timeout 5 bash -c "exec 3<>/dev/tcp/$host/$port" 2>/dev/null; do
      [ ${#waiting[@]} = 0 ] || exit 75
      [ $SECONDS -lt $end ] || { echo "mpijob.sh: $host does not answer on port $port after $wait_seconds s" >&2; exit 1; }
      [ $told = 1 ] || echo "mpijob.sh: waiting for $host" >&2
      told=1
      sleep 1
    done
  done
}

# horovodrun would leave its ranks five seconds: the first worker's ranks are told instead, and all save and end together.
stop() {
  stopped=1
  [ -z "$job" ] || ssh -p $port "${hosts[0]}" bash "$here/stop_ranks.sh" 100 &
}

stopped=0 job=
note_signals
for ((restart = 0; ; restart++)); do
  meet
  [ ${#waiting[@]} = 0 ] || exit 75
  bash "$here/horovod.sh" -np "$ranks" --hostfile "$host_file" -p $port --network-interfaces eth0 "$@" &
  job=$!
  wait_for $job
  case $status in 0 | 2 | 3) exit $status ;; esac
  if [ $stopped = 1 ] || [ $restart = $restarts ]; then exit $status; fi
  echo "mpijob.sh: the run ended with exit code $status: starting it again" >&2
  sleep 3 # A pod that is being deleted still answers for a moment.
done
