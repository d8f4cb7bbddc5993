#!/usr/bin/env bash
# Installs what the tests need and runs them all. Arguments go to pytest: bash launch/test.sh -k index
# As root it installs system packages too (Debian's), and tests several hosts in network namespaces; elsewhere it says what
# is left out. With CI=1 nothing is left out: what is missing is an error.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "[test]"
ruff check .
ruff format --check .
mypy

lacks=()
for program in g++ cmake ssh /usr/sbin/sshd ip chromium-headless-shell; do
  command -v "$program" >/dev/null || lacks+=("$program")
done
if [ ${#lacks[@]} != 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "launch: installing ${lacks[*]}" >&2
  apt-get -qq update >&2
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends g++ cmake openssh-client openssh-server iproute2 chromium-headless-shell >/dev/null
fi
python -c 'import horovod.tensorflow' 2>/dev/null || VIRTUAL_ENV="$PWD/.venv" bash launch/install_horovod.sh
needs="$(PYTHONPATH=tests python -c 'import hosts; print(", ".join(hosts.missing()))')"
if [ -n "$needs" ]; then
  [ -z "${CI:-}" ] || missing "the tests of several hosts need $needs"
  echo "launch: the tests of several hosts are left out: they need $needs" >&2
  set -- --ignore=tests/test_hosts.py "$@"
fi
if ! PYTHONPATH=tests python -c 'import browser, sys; sys.exit(not browser.program())'; then
  [ -z "${CI:-}" ] || missing "the tests of reports need a browser: chromium or chromium-headless-shell"
  echo "launch: the tests of reports in a browser are left out: they need chromium or chromium-headless-shell" >&2
  set -- --ignore=tests/test_report_browser.py "$@"
fi
exec python -m pytest "$@"
