#!/usr/bin/env bash
# From the repository's root: deploy/tpu_pod.sh NAME ZONE --config=configs/cart.py:paper --workdir=/mnt/shared/runs/paper \
#     --config.source.data=/mnt/shared/SOURCE --config.target.data=/mnt/shared/TARGET
# Copies the last commit to all hosts of a TPU slice, installs, and starts a process on each; the hosts need Python 3.11
# or newer (PYTHON names it, python3 by default). SHARED (/mnt/shared) is a file system that all hosts have mounted. The
# run hangs on this session: start it where it can stay, as in tmux. Run it again to go on.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 NAME ZONE --config=CONFIG --workdir=DIR [--config.KEY=VALUE ...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
shared=${SHARED:-/mnt/shared} python=${PYTHON:-python3}
archive=$(mktemp -d)/rcmnet_jax.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone="$zone" --worker=all

on_each="mkdir -p rcmnet_jax && rm -rf rcmnet_jax/rcmnet_jax rcmnet_jax/configs && tar -xzf rcmnet_jax.tar.gz -C rcmnet_jax && cd rcmnet_jax"
on_each+=" && { $python -c 'import sys; sys.exit(sys.version_info < (3, 11))'"
on_each+=" || { echo 'Python 3.11 or newer is needed: say with PYTHON where it is.' >&2; exit 2; }; }"
on_each+=" && $python -m venv ../rcmnet_venv"
on_each+=" && ../rcmnet_venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]'"
on_each+=" && RCMNET_DISTRIBUTED=1 RCMNET_CACHE=$(printf %q "$shared/cache")"
on_each+=" ../rcmnet_venv/bin/python launch.py$(printf ' %q' "$@")"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$on_each"
