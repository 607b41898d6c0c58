#!/usr/bin/env bash
#
# One command in the container, on this machine's GPUs, as yourself:
#
#   bash ngc/run.sh train article data.path=data checkpoint.save=run
set -euo pipefail
: "${MEGATRON_MUSIC_IMAGE:=megatron-music}"  # as ngc/Dockerfile's first lines build it

# --ipc=host and the limits: PyTorch's data loaders and NCCL share memory beyond Docker's 64 MB.
exec docker run --rm --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 \
  --user "$(id -u):$(id -g)" --env HOME=/tmp --volume "$PWD:/workspace/music" "$MEGATRON_MUSIC_IMAGE" "$@"
