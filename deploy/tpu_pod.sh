#!/usr/bin/env bash
# From the repository's root: deploy/tpu_pod.sh NAME ZONE --config=configs/cart.py:paper --workdir=/mnt/shared/runs/paper
# Copies the last commit to all hosts of a TPU slice, installs, and starts a process on each. SHARED (/mnt/shared) is a
# file system that all hosts have mounted. A slice that is lost ends the command: run it again to go on.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 NAME ZONE --config=CONFIG --workdir=DIR [--config.KEY=VALUE ...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
shared=${SHARED:-/mnt/shared}
archive=$(mktemp -d)/rcmnet_jax.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone="$zone" --worker=all

on_each="mkdir -p rcmnet_jax && tar -xzf rcmnet_jax.tar.gz -C rcmnet_jax && cd rcmnet_jax"
on_each+=" && python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]'"
on_each+=" && RCMNET_DISTRIBUTED=1 RCMNET_CACHE=$(printf %q "$shared/cache") .venv/bin/python launch.py$(printf ' %q' "$@")"
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$on_each"
