#!/usr/bin/env bash
# Builds Horovod for the TensorFlow of the active environment (or of .venv) and installs it there. The wheel is kept, so
# that the next time takes seconds.
#   bash launch/install_horovod.sh           Gloo: needs nothing but a C++ compiler and cmake
#   bash launch/install_horovod.sh --mpi     for plain mpirun as well: needs mpicxx
#   bash launch/install_horovod.sh --gpu     with NCCL: needs a CUDA toolkit of TensorFlow's CUDA version in CUDA_HOME
set -euo pipefail
version=0.28.1

missing() {
  echo "install_horovod: $*" >&2
  exit 2
}

gpu=0 mpi=0
for word in "$@"; do
  case "$word" in
    --gpu) gpu=1 ;;
    --mpi) mpi=1 ;;
    *) missing "unknown option $word; there are --gpu and --mpi" ;;
  esac
done

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${VIRTUAL_ENV:-$root/.venv}/bin/python"
[ -x "$python" ] || missing "no active environment and no $root/.venv: run launch/local.sh or launch/test.sh first"
command -v g++ >/dev/null || missing "g++ is missing: install a C++ compiler (on Debian the package g++)"
command -v cmake >/dev/null || missing "cmake is missing: install it (on Debian the package cmake)"
[ $mpi = 0 ] || command -v mpicxx >/dev/null || missing "mpicxx is missing: install Open MPI (on Debian the packages libopenmpi-dev and openmpi-bin)"
export TF_CPP_MIN_LOG_LEVEL=3
facts="$("$python" -c '
import sys, tensorflow as tf
print(f"cp{sys.version_info[0]}{sys.version_info[1]}", tf.__version__, tf.sysconfig.get_include(), tf.sysconfig.get_build_info().get("cuda_version") or "none")
' 2>/dev/null)" || missing "$python has no TensorFlow: install distgan there first"
read -r tag tensorflow include cuda <<<"$facts"
if [ $gpu = 1 ]; then
  nvcc="${CUDA_HOME:-}/bin/nvcc"
  [ -x "$nvcc" ] || missing "--gpu needs CUDA_HOME to name a CUDA ${cuda%%.*} toolkit with bin/nvcc (tensorflow[and-cuda] brings none); CUDA_HOME is '${CUDA_HOME:-}'"
  found="$("$nvcc" --version | sed -n 's/.*release \([0-9]*\).*/\1/p')"
  [ "$found" = "${cuda%%.*}" ] || missing "--gpu needs CUDA ${cuda%%.*}, TensorFlow's own; $nvcc is of CUDA $found"
fi

cache="${XDG_CACHE_HOME:-$HOME/.cache}/distgan/horovod-$version-$tag-tensorflow-$tensorflow-gpu$gpu-mpi$mpi"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -w 1800 9 || missing "another build holds $cache/lock since 30 minutes"
if ! ls "$cache"/horovod-*.whl >/dev/null 2>&1; then
  echo "install_horovod: building Horovod $version for TensorFlow $tensorflow; this takes a few minutes the first time" >&2
  work="$(mktemp -d)"
  trap 'rm -rf "$work"' EXIT
  # TensorFlow 2.20 moved one header and ships two others where Horovod does not look.
  moved="$work/include/tensorflow/compiler/xla/client"
  mkdir -p "$moved"
  echo '#include "xla/hlo/builder/xla_builder.h"' >"$moved/xla_builder.h"
  export CPATH="$include/external/highwayhash:$include/external/farmhash_archive/src:$work/include${CPATH:+:$CPATH}"
  export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1
  if [ $mpi = 1 ]; then export HOROVOD_WITH_MPI=1; else export HOROVOD_WITHOUT_MPI=1; fi
  [ $gpu = 0 ] || export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_CUDA_HOME="$CUDA_HOME"
  pip=("$python" -m pip --quiet --disable-pip-version-check)
  "${pip[@]}" install "setuptools<80" wheel cloudpickle psutil pyyaml packaging cffi
  "${pip[@]}" wheel --no-cache-dir --no-build-isolation --no-deps --no-binary horovod --wheel-dir "$work" "horovod==$version" >"$cache/build.log" 2>&1 ||
    missing "the build failed; its log is $cache/build.log"
  mv "$work"/horovod-*.whl "$cache/"
fi
"$python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$cache"/horovod-*.whl
"$python" -m pip install --quiet --disable-pip-version-check cloudpickle psutil pyyaml packaging cffi

check='import horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
total = hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum)
assert hvd.size() == 2 and float(total) == 3.0, (hvd.size(), total)'
PATH="$(dirname "$python"):$PATH" timeout 120 horovodrun --gloo -np 2 "$python" -c "$check" >"$cache/check.log" 2>&1 ||
  missing "Horovod is installed, but a reduction over two ranks failed; see $cache/check.log"
echo "install_horovod: Horovod $version works with TensorFlow $tensorflow in $(dirname "$(dirname "$python")")"
