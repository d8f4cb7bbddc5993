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
