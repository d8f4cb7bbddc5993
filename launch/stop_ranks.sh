#!/usr/bin/env bash
# Tells the ranks of this pod to save and to end, and waits for it: what a worker pod does before it
# is stopped (preStop), and what the launcher asks of it before its own end.
#   bash launch/stop_ranks.sh SECONDS
#   bash launch/stop_ranks.sh SECONDS --wait     tells them nothing: elastic ranks of other pods go on when these are gone
set -euo pipefail
seconds="${1:?usage: bash launch/stop_ranks.sh SECONDS [--wait]}"

# Prints the process numbers of `python .../distgan train ...`: not of the shells around them, whose words hold the same text.
ranks() {
  local each words
  for each in /proc/[0-9]*; do
    mapfile -d '' -t words 2>/dev/null <"$each/cmdline" || continue
    [[ "${words[0]:-}" == *python* && "${words[1]:-}" == */distgan ]] && echo "${each#/proc/}"
  done
  return 0
}

mapfile -t pids < <(ranks)
[ ${#pids[@]} = 0 ] && exit 0
[ "${2:-}" = --wait ] || kill -TERM "${pids[@]}" 2>/dev/null || true
end=$((SECONDS + seconds))
while [ -n "$(ranks)" ]; do
  [ $SECONDS -lt $end ] || { echo "stop_ranks: ranks ${pids[*]} still run after $seconds s" >&2; exit 1; }
  sleep 0.5
done
