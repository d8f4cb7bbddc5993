#!/usr/bin/env bash
# Installs what the tests need and runs them all. Arguments go to pytest: bash launch/test.sh -k index
# With --soak (or --soak=N) everything is tested as a whole, which takes long: a run is killed at 30 (or N) random moments.
# As root it installs system packages too (Debian's), and tests several hosts and pods in network namespaces; elsewhere, and
# where kubectl is missing, it says what is left out. With CI=1 nothing is left out: what is missing is an error.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "[test]"
ruff check .
ruff format --check .
mypy

programs=(g++ cmake ssh /usr/sbin/sshd ip tini chromium-headless-shell)
packages=(g++ cmake openssh-client openssh-server iproute2 tini chromium-headless-shell)
case " $*" in
  *" --soak"*) programs+=(mpicxx mpirun) packages+=(libopenmpi-dev openmpi-bin) ;;
esac
lacks=()
for program in "${programs[@]}"; do
  command -v "$program" >/dev/null || lacks+=("$program")
done
if [ ${#lacks[@]} != 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "launch: installing ${lacks[*]}" >&2
  apt-get -qq update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${packages[@]}" >/dev/null
fi
python -c 'import horovod.tensorflow' 2>/dev/null || VIRTUAL_ENV="$PWD/.venv" bash launch/install_horovod.sh

# leave_out NEEDS FILE...: the tests in these files are left out where something is missing, and an error with CI=1.
leave_out() {
  local needs="$1" file
  shift
  [ -n "$needs" ] || return 0
  [ -z "${CI:-}" ] || missing "$* need $needs"
  echo "launch: $* are left out: they need $needs" >&2
  for file in "$@"; do ignored+=("--ignore=$file"); done
}

ignored=()
leave_out "$(PYTHONPATH=tests python -c 'import hosts; print(", ".join(hosts.missing()))')" tests/test_hosts.py
leave_out "$(command -v kubectl >/dev/null || echo kubectl)" tests/test_manifests.py tests/test_launch_kubernetes.py
leave_out "$(PYTHONPATH=tests python -c 'import hosts, pods; print(", ".join(hosts.missing(pods.NEEDED)))')" tests/test_pods.py tests/test_image.py
leave_out "$(PYTHONPATH=tests python -c 'import environments; print(", ".join(environments.missing()))')" tests/test_versions.py
case " $*" in
  *" --soak"*) leave_out "$(PYTHONPATH=tests python -c 'import hosts, pods, toolkit; print(", ".join([*hosts.missing(pods.NEEDED), *toolkit.missing()]))')" tests/test_gpu_packages.py ;;
esac
leave_out "$(PYTHONPATH=tests python -c 'import browser; print("" if browser.program() else "chromium or chromium-headless-shell")')" tests/test_report_browser.py
if [ "$(id -u)" != 0 ]; then
  [ -z "${CI:-}" ] || missing "the tests of small disks need root"
  echo "launch: the tests of small disks are left out: they need root" >&2
  disks=(test_survive.py::test_disk_is_bad_for_a_while test_survive.py::test_soak test_run_dir.py::test_read_only_disk)
  ignored+=("${disks[@]/#/--deselect=tests/}")
fi
for word; do # Else pytest would take the word behind a bare --soak for its number.
  shift
  [ "$word" = --soak ] && word=--soak=30
  set -- "$@" "$word"
done
# Test files run side by side. Those that measure time limits run after all others, on a quieter machine.
nothing=5 # What pytest ends with where no test is chosen.
outcome=$nothing
run() {
  local code=0
  python -m pytest -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=30 --durations-min=10 "${ignored[@]}" "$@" || code=$?
  case $outcome in
    0) [ $code = $nothing ] || outcome=$code ;;
    "$nothing") outcome=$code ;;
  esac
}
run -m "not timed" "$@"
run -m timed "$@"
exit $outcome
