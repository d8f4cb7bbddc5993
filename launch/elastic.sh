#!/usr/bin/env bash
# Runs distgan on Horovod ranks that may come and go. Options of horovodrun stand before --, words of distgan behind it.
#   bash launch/elastic.sh -np 2 -- train --preset=cifar10-dcgan                  slots of this machine
#   bash launch/elastic.sh --min-np 1 --max-np 8 --hostfile hosts -- train ...    hosts of a file (see discover_hosts.sh)
# A rank that ends without a word is started again where it was, after --blacklist-cooldown-range (2 to 60 seconds here); the
# host file may be edited meanwhile. It ends with the exit code of the first rank that failed; SIGTERM stops the training, saved.
set -euo pipefail

usage() {
  echo "elastic.sh: $1; usage: bash launch/elastic.sh [-np N] [--min-np A] [--max-np B] [--hostfile FILE] -- train [--flags]" >&2
  exit 2
}

count="" least=1 most="" file="" script="" nics="" cooldown="1 60" options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case "$1" in
    -np | --num-proc | --min-np | --max-np | --hostfile | --host-discovery-script | --network-interfaces) [ $# -gt 1 ] || usage "$1 needs a value" ;;&
    -np | --num-proc) count="$2"; shift ;;
    --min-np) least="$2"; shift ;;
    --max-np) most="$2"; shift ;;
    --hostfile) file="$2"; shift ;;
    --host-discovery-script) script="$2"; shift ;;
    --network-interfaces) nics="$2"; shift ;;
    --blacklist-cooldown-range) [ $# -gt 2 ] || usage "$1 needs two values"; cooldown="$2 $3"; shift 2 ;;
    *) options+=("$1") ;;
  esac
  shift
done
[ $# -ge 2 ] || usage "no command of distgan"
[ -n "$count$file$script" ] || usage "-np, --hostfile or --host-discovery-script is missing"
for number in "$count" "$least" "$most"; do
  [[ "$number" =~ ^([1-9][0-9]*)?$ ]] || usage "$number is not a number of ranks"
done
shift
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$here/environment.sh"
command -v horovodrun >/dev/null || { echo "elastic.sh: Horovod is missing: bash launch/install_horovod.sh" >&2; exit 2; }

export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" # horovodrun imports TensorFlow too.
distgan "$@" --help >/dev/null # A mistake in a flag is told once, and not by each rank.
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
if [ -z "$file$script" ]; then
  # A host of its own for each slot, as a rank that fails has its whole host left out for a while: 127.1, 127.01, 127.001, ...
  # are 127.0.0.1 for horovodrun too, which would call any other address by ssh.
  file="$folder/hosts"
  zeros=""
  for ((slot = 0; slot < count; slot++)); do echo "127.${zeros}1"; zeros+=0; done >"$file"
  most="${most:-$count}"
fi
program="$(command -v distgan)"
if [ -z "$script" ]; then
  hosts="$(bash "$here/discover_hosts.sh" "$file")" || exit 2
  [ -n "$hosts" ] || { echo "elastic.sh: --hostfile $file names no host" >&2; exit 2; }
  [ -n "$nics" ] || grep -qv '^127\.' <<<"$hosts" || nics=lo
  script="bash '$here/discover_hosts.sh' '$(realpath "$file")'"
fi
options+=(-np "${count:-$least}" --min-np "$least" ${most:+--max-np "$most"} ${nics:+--network-interfaces "$nics"})
options+=(--blacklist-cooldown-range $cooldown --host-discovery-script "$script")
allow_time "$@"
command=(horovodrun --gloo "${options[@]}" "$program" "$@")
echo "elastic.sh: ${command[*]}" >&2

mkfifo "$folder/errors"
export DISTGAN_SECRET="${DISTGAN_SECRET:-$(new_secret)}"
hide_secrets "$folder"
# What the ranks say is shown; horovodrun's own words are held back, and the exit code is taken from them.
tell_apart() {
  trap '' $stop_signals
  while IFS= read -r line; do
    if [[ "$line" =~ ^\[[0-9]+\]\<stderr\>:(.*)$ ]]; then
      line="${BASH_REMATCH[1]}"
      case "$line" in
        "distgan: "*) touch "$folder/told" ;;
        Killed | Aborted | Terminated) continue ;; # Said by the shell of a rank that a signal ended.
      esac
      printf '%s\n' "$line"
    else
      printf '%s\n' "$line" >>"$folder/held"
      case "$line" in "Exit code: "*) echo "${line#Exit code: }" >"$folder/code" ;; esac
    fi
  done
}
tell_apart <"$folder/errors" >&2 &
reader=$!
export DISTGAN_JOB="$folder"
stop() { stop_trainers "$program" "$job" "$1"; }
note_signals
setsid "${command[@]}" </dev/null 2>"$folder/errors" > >(shielded sed -u -n -E 's/^\[[0-9]+\]<stdout>://p') &
job=$!

# Once a rank has told how all end, they have half a minute: horovodrun waits for ever for one that is stopped.
(
  until [ -e "$folder/told" ]; do kill -0 $job && sleep 1 || exit; done
  for ((second = 0; second < 30; second++)); do kill -0 $job && sleep 1 || exit; done
  kill -TERM $job
) >/dev/null 2>&1 &
watch=$!

wait_for $reader
kill $watch 2>/dev/null || true
wait_for $job
if [ -s "$folder/code" ]; then
  status="$(cat "$folder/code")"
elif [ $status != 0 ]; then
  cat "$folder/held" >&2 || true
fi
finish "$status"
