# Sourced by the launchers: uses .venv beside the checkout where no other environment has distgan.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
command -v distgan >/dev/null || PATH="$root/.venv/bin:$PATH"
command -v distgan >/dev/null || { echo "launch: distgan is missing: run bash launch/local.sh first" >&2; exit 2; }

# horovodrun writes its environment on the command lines of its ranks, for every user of a host to read. What looks like a secret
# goes by a file of this user's alone, and to other hosts by the standard input of ssh: distgan/runtime/credentials.py reads it.
#   hide_secrets FOLDER
hide_secrets() {
  local name
  while IFS= read -r name; do
    [[ "${name^^}" =~ (_KEY|_TOKEN|_SECRET)$|PASSWORD|^AWS_ ]] || continue
    (umask 077 && printf '%s=%s\0' "$name" "${!name}" >>"$1/secrets")
    unset "$name"
  done < <(compgen -e)
  [ -e "$1/secrets" ] || return 0
  mkdir "$1/bin"
  printf '#!/usr/bin/env bash\nexec %q "$@" <%q\n' "$(command -v ssh || echo ssh)" "$1/secrets" >"$1/bin/ssh"
  chmod +x "$1/bin/ssh"
  export DISTGAN_SECRETS="$1/secrets" PATH="$1/bin:$PATH"
}

# Prints a secret for the workers of one job.
new_secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

export DISTGAN_LAUNCHER=$$ # Trainers on this machine save and end once this script is gone.
stop_signals="TERM INT HUP USR1 USR2 XCPU" # As in distgan/signals.py.
trap 'exit 75' $stop_signals               # Until there are trainers there is nothing to save.

# From here on they are noted, and `wait_for` passes them on by the launcher's own function `stop NAME`. The traps do nothing
# else: bash loses its way where a signal comes while a function runs for the one before.
waiting=() passed=() interrupted=-9
note_signals() {
  local name
  for name in $stop_signals; do trap "waiting+=($name:\$SECONDS)" $name; done
}

# Becomes a command that no signal to the launcher's process group ends, as what shows the trainers' last words.
shielded() {
  trap '' $stop_signals
  exec "$@"
}

# Ends with the trainers' exit code: 75 where a passed signal met a trainer that had hardly begun, or a process of horovodrun's,
# and ended it. 130 stays, as it is the second Ctrl-C's.
#   finish STATUS
finish() {
  local name code=$(($1 < 0 ? 128 - $1 : $1)) # horovodrun says -15 for SIGTERM.
  for name in ${passed[@]+TERM "${passed[@]}"}; do
    [ $code = 130 ] || [ $code != $((128 + $(kill -l "$name"))) ] || exit 75
  done
  exit $code
}

# Waits for the process JOB, and sets `status` to its exit code. It looks now and then, as a signal may come just before a `wait`.
# A Ctrl-C that comes twice in a second is passed on once: to trainers the second one is the user's who does not want to wait.
#   wait_for JOB
wait_for() {
  local each name
  while kill -0 "$1" 2>/dev/null; do
    for each in ${waiting[@]+"${waiting[@]}"}; do
      waiting=("${waiting[@]:1}")
      name="${each%:*}"
      if [ "$name" = INT ]; then
        [ $((${each#*:} - interrupted)) -gt 1 ] || continue
        interrupted="${each#*:}"
      fi
      passed+=("$name")
      stop "$name"
    done
    (shielded sleep 0.3) # Else bash would tell of its end.
  done
  status=0
  wait "$1" || status=$?
}

# Has horovodrun wait for hosts as long as the run waits for workers; left alone, it gives them 30 s, and elastic ones 600.
#   allow_time WORDS OF DISTGAN
allow_time() {
  local word seconds=600
  for word in "$@"; do
    [[ ! "$word" =~ ^--runtime\.join_timeout_seconds=([0-9]+)(\.[0-9]*)?$ ]] || seconds="${BASH_REMATCH[1]}"
  done
  export HOROVOD_START_TIMEOUT="${HOROVOD_START_TIMEOUT:-$seconds}" HOROVOD_ELASTIC_TIMEOUT="${HOROVOD_ELASTIC_TIMEOUT:-$seconds}"
}

# horovodrun kills its ranks 4.5 s after it is told to stop. One rank that is told itself is enough: all save, and leave.
#   stop_trainers PROGRAM JOB NAME: sends a signal to the ranks of PROGRAM with this DISTGAN_JOB on this machine; and SIGTERM to
#   horovodrun, process JOB, where there are none
stop_trainers() {
  local process ranks=()
  for process in /proc/[0-9]*; do
    if grep -qsz "^DISTGAN_JOB=$DISTGAN_JOB$" "$process/environ" && grep -qsz '^HOROVOD_RANK=' "$process/environ" &&
      grep -qszx "$1" "$process/cmdline"; then
      ranks+=("${process#/proc/}")
    fi
  done
  if [ ${#ranks[@]} -gt 0 ]; then kill -"$3" "${ranks[@]}"; else kill -TERM "$2"; fi 2>/dev/null || true
}
