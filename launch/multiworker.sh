#!/usr/bin/env bash
# Runs distgan on N workers of this machine by TensorFlow's MultiWorkerMirroredStrategy, to try what a cluster would do.
#   bash launch/multiworker.sh 2 train --preset=cifar10-dcgan
# On several hosts start `distgan train` on each, with TF_CONFIG or --runtime.workers and --runtime.peers.
set -euo pipefail

workers="${1:-}"
if ! [[ "$workers" =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
  echo "multiworker.sh: usage: bash launch/multiworker.sh N train [--flags]" >&2
  exit 2
fi
shift
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
distgan "$@" --help >/dev/null # A mistake in a flag is told once, and not by each worker.

addresses="$("$(dirname "$(command -v distgan)")/python" - "$workers" <<'PYTHON'
import json, socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(json.dumps(["127.0.0.1:%d" % each.getsockname()[1] for each in sockets]))
PYTHON
)"
echo "multiworker.sh: TF_CONFIG='{\"cluster\": {\"worker\": $addresses}, \"task\": {\"type\": \"worker\", \"index\": N}}' distgan $*" >&2
export DISTGAN_SECRET="${DISTGAN_SECRET:-$(new_secret)}"
jobs=()
stop() {
  [ "$1" != INT ] || set -- TERM # Workers have a terminal's Ctrl-C themselves, and take a second one for the user's.
  kill -"$1" "${jobs[@]}" 2>/dev/null || true
}
note_signals
for ((index = 0; index < workers; index++)); do
  TF_CONFIG="{\"cluster\": {\"worker\": $addresses}, \"task\": {\"type\": \"worker\", \"index\": $index}}" distgan "$@" &
  jobs+=($!)
done
first=0
for job in "${jobs[@]}"; do
  wait_for "$job"
  [ $first != 0 ] || first=$status
done
finish $first
