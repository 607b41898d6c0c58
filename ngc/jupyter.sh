#!/usr/bin/env bash
#
# JupyterLab in the container with examples/music_gpt.ipynb, reached from your own machine through SSH, as in NVIDIA's post on AI
# music; from the root of the clone:
#
#   bash ngc/jupyter.sh                                     on the GPU machine: prints an address with a token
#   ssh -N -L 8888:localhost:8888 GPU_MACHINE               on yours; then open that address
#
# The port is open on the GPU machine's loopback address alone, and every request needs the token, which is drawn at each start.
set -euo pipefail
: "${MEGATRON_MUSIC_IMAGE:=megatron-music}"
: "${PORT:=8888}"
if ! [[ $PORT =~ ^[1-9][0-9]{3,4}$ ]] || [ "$PORT" -lt 1024 ] || [ "$PORT" -gt 65535 ]; then
  echo "jupyter.sh: PORT is $PORT; use a number from 1024 to 65535" >&2
  exit 2
fi

command -v docker > /dev/null || { echo "jupyter.sh: docker is not on this machine; install Docker and the NVIDIA Container Toolkit, or use pyxis or apptainer (docs/slurm-and-ngc.md)" >&2; exit 2; }
exec docker run --rm --gpus all --ipc=host --ulimit memlock=-1 --user "$(id -u):$(id -g)" --env HOME=/tmp \
  --publish "127.0.0.1:$PORT:$PORT" --volume "$PWD:/workspace/music" --entrypoint jupyter "$MEGATRON_MUSIC_IMAGE" \
  lab --ip=0.0.0.0 --port="$PORT" --no-browser --notebook-dir=/workspace/music \
  --LabApp.default_url=/lab/tree/examples/music_gpt.ipynb
