#!/usr/bin/env bash
# Builds Horovod for the TensorFlow (2.20 or 2.21) of the active environment, or of .venv, and installs it there. The
# wheel is cached, so that the next time takes seconds.
#   bash launch/install_horovod.sh           Gloo: needs nothing but a C++ compiler and cmake
#   bash launch/install_horovod.sh --mpi     for plain mpirun as well: needs mpicxx
#   bash launch/install_horovod.sh --gpu     with NCCL: needs a CUDA toolkit of TensorFlow's major version in CUDA_HOME
#                                            (/usr/local/cuda where that is unset), but no GPU
#   bash launch/install_horovod.sh --gpu --trial   with a toolkit of any version: a build to be tried, not used
set -euo pipefail
version=0.28.1

missing() {
  echo "install_horovod: $*" >&2
  exit 2
}

gpu=0 mpi=0 trial=0
for word in "$@"; do
  case "$word" in
    --gpu) gpu=1 ;;
    --mpi) mpi=1 ;;
    --trial) trial=1 ;;
    *) missing "unknown option $word; there are --gpu, --mpi and --trial" ;;
  esac
done
[ $trial = 0 ] || [ $gpu = 1 ] || missing "--trial is about the CUDA toolkit: it goes with --gpu alone"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${VIRTUAL_ENV:-$root/.venv}/bin/python"
[ -x "$python" ] || missing "no active environment and no $root/.venv: run launch/local.sh or launch/test.sh first"
command -v g++ >/dev/null || missing "g++ is missing: install a C++ compiler (on Debian the package g++)"
command -v cmake >/dev/null || missing "cmake is missing: install it (on Debian the package cmake)"
[ $mpi = 0 ] || command -v mpicxx >/dev/null || missing "mpicxx is missing: install Open MPI (on Debian the packages libopenmpi-dev and openmpi-bin)"
export TF_CPP_MIN_LOG_LEVEL=3
pip=("$python" -m pip --quiet --disable-pip-version-check)

# A fact a line: Python's tag, TensorFlow's version, headers, CUDA and compute capabilities, and the NCCL that it names.
facts="$("$python" -c '
import re, sys
from importlib import metadata
import tensorflow as tf
build = tf.sysconfig.get_build_info()
print(f"cp{sys.version_info[0]}{sys.version_info[1]}", tf.__version__, tf.sysconfig.get_include(), sep="\n")
print(build.get("cuda_version") or "none")
print(*sorted({int(re.sub(r"\D", "", each)) for each in build.get("cuda_compute_capabilities", ())} or {"none"}))
needs = [line for name in set(metadata.packages_distributions()["tensorflow"]) for line in metadata.requires(name) or ()]
print(*{line.partition(";")[0] for line in needs if line.startswith("nvidia-nccl")} or {"none"})
' 2>/dev/null)" || missing "$python has no TensorFlow: install distgan there first"
{ read -r tag; read -r tensorflow; read -r include; read -r cuda; read -r capabilities; read -r nccl; } <<<"$facts"

toolkit=none built_for=""
if [ $gpu = 1 ]; then
  [ "$cuda" != none ] && [ "$nccl" != none ] || missing "--gpu needs a TensorFlow that is built with CUDA; $tensorflow in $python is not"
  export CUDA_HOME="${CUDA_HOME:-/usr/local/cuda}"
  nvcc="$CUDA_HOME/bin/nvcc"
  [ -x "$nvcc" ] || missing "--gpu needs CUDA_HOME to name a CUDA ${cuda%%.*} toolkit with bin/nvcc (tensorflow[and-cuda] brings none); $nvcc is not there"
  toolkit="$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')"
  [ $trial = 1 ] || [ "${toolkit%%.*}" = "${cuda%%.*}" ] ||
    missing "--gpu needs CUDA ${cuda%%.*}, TensorFlow's own; $nvcc is of CUDA $toolkit (--trial builds with it all the same, to be tried and not used)"
  for number in $capabilities; do
    if "$nvcc" --list-gpu-arch | grep -qx "compute_$number"; then built_for+="${built_for:+,}$number"; fi
  done
  [ -n "$built_for" ] || missing "$nvcc knows none of TensorFlow's compute capabilities ($capabilities)"
  "${pip[@]}" install "$nccl" || missing "pip could not install $nccl (its own message is above)"
  nccl="$("$python" -c 'from importlib import metadata; print(metadata.version("nvidia-nccl-cu12"))')"
else
  nccl=none
fi

# Builds the wheel and puts it into the cache. Its text is part of the key, as all is that it reads.
build() (
  work="$(mktemp -d)"
  trap 'rm -rf "$work"' EXIT
  # TensorFlow has moved this header and dropped a name of it. Its library does not export three functions that Horovod
  # calls: the two instantiations, as another compiler built it, and from 2.21 on the last one, which stands here as it
  # is in 2.20. One file of Horovod's includes this header.
  moved="$work/include/tensorflow/compiler/xla/client"
  mkdir -p "$moved"
  cat >"$moved/xla_builder.h" <<'END'
#pragma once
#include "absl/log/internal/log_message.h"
#include "absl/status/statusor.h"
#include "xla/hlo/builder/xla_builder.h"

namespace xla {
template <typename T>
using StatusOr = absl::StatusOr<T>;
}

namespace absl {
ABSL_NAMESPACE_BEGIN
namespace log_internal {
template LogMessage& LogMessage::operator<<(const int& value);
template LogMessage& LogMessage::operator<<(const float& value);
}
ABSL_NAMESPACE_END
}

#if HAVE_CUDA
#include <cuda_runtime.h>
#include "xla/stream_executor/stream.h"

namespace stream_executor::gpu {
cudaStream_t AsGpuStreamValue(Stream* stream) {
  return static_cast<cudaStream_t>(stream->platform_specific_handle().stream);
}
}
#endif
END
  # TensorFlow ships these two where Horovod does not look.
  export CPATH="$include/external/highwayhash:$include/external/farmhash_archive/src:$work/include${CPATH:+:$CPATH}"
  export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1
  export MAKEFLAGS="${MAKEFLAGS:--j$(nproc)}"
  if [ $mpi = 1 ]; then export HOROVOD_WITH_MPI=1; else export HOROVOD_WITHOUT_MPI=1; fi
  if [ $gpu = 1 ]; then
    packaged="$("$python" -c 'import nvidia.nccl; print(nvidia.nccl.__path__[0])')"
    mkdir "$work/nccl"
    ln -s "$packaged/lib/libnccl.so.2" "$work/nccl/libnccl.so" # The package lacks the name that the linker looks for.
    export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_CUDA_HOME="$CUDA_HOME" HOROVOD_BUILD_CUDA_CC_LIST="$built_for" CUDAARCHS="${built_for//,/;}"
    export HOROVOD_NCCL_LINK=shared HOROVOD_NCCL_INCLUDE="$packaged/include" HOROVOD_NCCL_LIB="$work/nccl"
  fi
  "${pip[@]}" download --no-deps --no-build-isolation --no-binary horovod --dest "$work" "horovod==$version" &&
    tar -xf "$work/horovod-$version.tar.gz" -C "$work" || missing "Horovod's source could not be downloaded (pip's own message is above)"
  source="$work/horovod-$version"
  # The library finds NCCL and TensorFlow beside itself in site-packages, wherever the environment lies.
  sed -i '/^project(horovod CXX)/a set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\nset(CMAKE_INSTALL_RPATH "$ORIGIN/../../nvidia/nccl/lib;$ORIGIN/../../tensorflow")' "$source/CMakeLists.txt"
  # Python 3.12 has no distutils any more.
  sed -i 's/^from distutils.spawn import find_executable/from shutil import which as find_executable/' "$source/horovod/runner/js_run.py"
  [ $trial = 0 ] || export HOROVOD_LOCAL_VERSION=trial # After the download, which looks for the version without it.
  "${pip[@]}" wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$work" "$source" >"$cache/build.log" 2>&1 ||
    missing "the build failed; its log is $cache/build.log"
  mv "$work"/horovod-*.whl "$cache/"
)

# All that changes the wheel: the same words, the same wheel.
processor="$(g++ -march=native -Q --help=target 2>/dev/null | grep -E -- '-m(f16c|avx|fma) ' || true)"
mpi_version="$([ $mpi = 0 ] || mpicxx --showme:version 2>/dev/null || mpicxx -show)"
ingredients="$(uname -m) $processor $(g++ -dumpfullversion) $toolkit $built_for $nccl $mpi_version $(declare -f build)"
kinds="gpu$gpu-mpi$mpi-trial$trial-$(cksum <<<"$ingredients" | cut -d' ' -f1)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/distgan/horovod-$version-$tag-tensorflow-$tensorflow-$kinds"
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -w 1800 9 || missing "another build holds $cache/lock since 30 minutes"
[ $trial = 0 ] || echo "install_horovod: --trial: CUDA $toolkit in place of TensorFlow's $cuda, a build to be tried and not used" >&2
"${pip[@]}" install setuptools wheel cloudpickle psutil pyyaml packaging cffi
if ! ls "$cache"/horovod-*.whl >/dev/null 2>&1; then
  echo "install_horovod: building Horovod $version for TensorFlow $tensorflow; this takes a few minutes the first time" >&2
  build
fi
"${pip[@]}" install --force-reinstall --no-deps "$cache"/horovod-*.whl

check='import sys, horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
total = hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum)
assert hvd.size() == 2 and float(total) == 3.0, (hvd.size(), total)
assert [bool(hvd.nccl_built()), bool(hvd.mpi_built())] == [word == "1" for word in sys.argv[1:]], sys.argv'
PATH="$(dirname "$python"):$PATH" timeout 600 horovodrun --gloo -np 2 "$python" -c "$check" $gpu $mpi >"$cache/check.log" 2>&1 ||
  missing "Horovod is installed, but a reduction over two ranks failed or took over 10 minutes; see $cache/check.log"
echo "install_horovod: Horovod $version works with TensorFlow $tensorflow in $(dirname "$(dirname "$python")")"
