#!/usr/bin/env bash
#
# One command in the container, on this machine's GPUs, as yourself:
#
#   bash ngc/run.sh train article data.path=data checkpoint.save=run
set -euo pipefail
: "${MEGATRON_MUSIC_IMAGE:=megatron-music}"  # as ngc/Dockerfile's first lines build it

command -v docker > /dev/null || { echo "run.sh: docker is not on this machine; install Docker and the NVIDIA Container Toolkit, or use pyxis or apptainer (docs/slurm-and-ngc.md)" >&2; exit 2; }
# --ipc=host and the limits: PyTorch's data loaders and NCCL share memory beyond Docker's 64 MB.
exec docker run --rm --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 \
  --user "$(id -u):$(id -g)" --env HOME=/tmp --volume "$PWD:/workspace/music" "$MEGATRON_MUSIC_IMAGE" "$@"
