#!/usr/bin/env bash
# The steps of k8s/Dockerfile, on Debian, as root.
#   bash launch/image.sh system             what the pods need, and their user
#   bash launch/image.sh compilers          what Horovod is built with
#   bash launch/image.sh packages cpu|gpu   distgan, TensorFlow and Horovod, in .venv beside the checkout; further words
#                                           are options of launch/install_horovod.sh
set -euo pipefail

add() {
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$@" >/dev/null
  rm -rf /var/lib/apt/lists/*
}

case "${1:-}" in
  system)
    add tini openssh-server openssh-client
    rm -f /etc/ssh/ssh_host_*_key* # Pods bring their own.
    useradd --uid 1000 --user-group --create-home --shell /bin/bash distgan
    # Mount points: the root is read-only in a pod.
    install -d -o 1000 -g 1000 /home/distgan/.ssh /runs /data
    ;;
  compilers)
    add g++ cmake
    ;;
  packages)
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    case "${2:-}" in
      cpu) extras="" options=() ;;
      gpu) extras="[gpu]" options=(--gpu) ;;
      *) echo "image.sh: packages needs cpu or gpu, and not '${2:-}'" >&2; exit 2 ;;
    esac
    bash launch/setup.sh "$extras"
    bash launch/install_horovod.sh "${options[@]}" "${@:3}"
    .venv/bin/python -m compileall -q distgan # The pods cannot write what they compile.
    ;;
  *)
    echo "image.sh: usage: bash launch/image.sh system | compilers | packages cpu|gpu" >&2
    exit 2
    ;;
esac
