# Sourced by the launchers: uses .venv beside the checkout where no other environment has distgan.
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
command -v distgan >/dev/null || PATH="$root/.venv/bin:$PATH"
command -v distgan >/dev/null || { echo "launch: distgan is missing: run bash launch/local.sh first" >&2; exit 2; }
