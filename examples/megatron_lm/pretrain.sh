#!/usr/bin/env bash
# Megatron-LM's own pretrain_gpt.py on our tokens, with our layers and sizes.
#
#     megatron-music build tokens MIDI_DIR -o OUT
#     MEGATRON_LM=/path/to/Megatron-LM GPUS=8 examples/megatron_lm/pretrain.sh article data.path=OUT train.bf16=true
#
# The first word is a recipe, the others are section.field=value. Nothing is patched: Megatron-LM gets flags, and finds the
# layers through --spec in the installed package. `python -m megatron_music.hosts.megatron_lm RECIPE ...` shows the flags.
set -euo pipefail

: "${MEGATRON_LM:?set MEGATRON_LM to a checkout of Megatron-LM, which holds pretrain_gpt.py}"
# Megatron-LM demands this for tensor parallelism on GPUs before Blackwell.
export CUDA_DEVICE_MAX_CONNECTIONS=1

flags=$(python -m megatron_music.hosts.megatron_lm "$@")
eval "flags=($flags)" # quoted by shlex.join
exec torchrun --nproc_per_node "${GPUS:-1}" "$MEGATRON_LM/pretrain_gpt.py" "${flags[@]}"
