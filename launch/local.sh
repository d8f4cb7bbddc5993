#!/usr/bin/env bash
# Sets up distgan and runs it on this machine: without arguments it trains the default preset.
#   bash launch/local.sh
#   bash launch/local.sh train --preset=mnist-dcgan
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "${DISTGAN_EXTRAS:-}"
[ $# -gt 0 ] || set -- train
exec distgan "$@"
