# Sourced by the launchers: uses .venv beside the checkout where no other environment has distgan.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
command -v distgan >/dev/null || PATH="$root/.venv/bin:$PATH"
command -v distgan >/dev/null || { echo "launch: distgan is missing: run bash launch/local.sh first" >&2; exit 2; }

# Waits for the process JOB and sets `status` to its exit code: a trapped signal ends a `wait`, and not the process.
#   wait_for JOB
wait_for() {
  status=0
  wait "$1" || status=$?
  while kill -0 "$1" 2>/dev/null; do
    status=0
    wait "$1" || status=$?
  done
}

# horovodrun kills its ranks 4.5 s after it is told to stop. One rank that is told itself is enough: all save, and leave.
#   stop_trainers PROGRAM JOB: the ranks of PROGRAM with this DISTGAN_JOB on this machine; horovodrun, process JOB, where there are none
stop_trainers() {
  local process told=0
  for process in /proc/[0-9]*; do
    if grep -qsz "^DISTGAN_JOB=$DISTGAN_JOB$" "$process/environ" && grep -qsz '^HOROVOD_RANK=' "$process/environ" &&
      grep -qszx "$1" "$process/cmdline"; then
      kill -TERM "${process#/proc/}" 2>/dev/null && told=1
    fi
  done
  [ $told = 1 ] || kill -TERM "$2" 2>/dev/null || true
}
