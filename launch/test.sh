#!/usr/bin/env bash
# Installs what the tests need and runs them all. Arguments go to pytest: bash launch/test.sh -k index
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "[test]"
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
