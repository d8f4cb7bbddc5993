# Sourced by the other scripts: makes .venv beside the checkout and installs distgan into it, with the extras in $1.
# Does nothing where that was done before from the same pyproject.toml.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"

missing() {
  echo "launch: $*" >&2
  exit 2
}

# A program of that name may be there and not start, as pyenv's stand-ins do: running it tells.
needed="Python 3.11 to 3.13 is needed: install one, or name it by PYTHON=..."
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || missing "$python is missing or does not start: $needed"
case "$version" in
  3.11 | 3.12 | 3.13) ;;
  *) missing "$python is Python $version: $needed" ;;
esac
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing "Python's venv module is missing: install it (on Debian the package python3-venv)"

stamp=".venv/installed-$(cat pyproject.toml distgan/__init__.py launch/setup.sh | cksum | cut -d' ' -f1)${1:-}"
if [ ! -e "$stamp" ]; then
  [ -x .venv/bin/python ] || "$python" -m venv .venv || missing "no virtual environment could be made in .venv"
  echo "launch: installing into .venv; this takes a few minutes the first time" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${1:-}" || missing "pip could not install distgan's dependencies (its own message is above)"
  touch "$stamp"
fi
PATH="$PWD/.venv/bin:$PATH"
