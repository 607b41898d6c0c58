#!/usr/bin/env bash
#
# The container as a file for pyxis (enroot's .sqsh), from the local Docker or from a registry:
#
#   bash ngc/import.sh megatron-music.sqsh                                        the image that was built here
#   bash ngc/import.sh nemo.sqsh 'docker://nvcr.io#nvidia/nemo:26.06'             with the key in ~/.config/enroot/.credentials
#
# Then: MEGATRON_MUSIC_RUNTIME=pyxis MEGATRON_MUSIC_IMAGE=$PWD/megatron-music.sqsh sbatch launch/train.sbatch ...
# For apptainer: apptainer build megatron-music.sif docker-daemon://megatron-music:latest
set -euo pipefail

[ $# -ge 1 ] || { echo "import.sh: give FILE.sqsh, and an image where it is not dockerd://megatron-music" >&2; exit 2; }
target=$1 image=${2:-dockerd://megatron-music}
[ ! -e "$target" ] || { echo "import.sh: $target is there already; name another file, or remove it" >&2; exit 2; }
command -v enroot > /dev/null || { echo "import.sh: enroot is not on this machine; run it where enroot is installed, often a compute node; or use apptainer (docs/slurm-and-ngc.md)" >&2; exit 2; }
# Under another name until it is whole: a job must not start from half an image.
trap 'rm -f "$target.part"' EXIT
enroot import --output "$target.part" "$image"
mv "$target.part" "$target"
