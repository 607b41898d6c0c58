#!/usr/bin/env bash
#
# MIDI archives to .bin/.idx on many nodes: a plan, here; an array of jobs that encode; a merge when all have.
#
#   bash launch/build_dataset.sh JOBS OUT SOURCE... [options of `megatron-music build plan`]
#
# JOBS is how many array tasks share the shards. Given again it goes on: finished shards are found, not made anew. What comes
# out is the same, byte for byte, whatever JOBS is.
set -euo pipefail
source launch/env.sh

[ $# -ge 3 ] || fail "give JOBS, OUT and at least one SOURCE: bash launch/build_dataset.sh 16 data midi.tar.gz"
jobs=$1 out=$2
[[ $jobs =~ ^[1-9][0-9]*$ ]] || fail "JOBS is $jobs; use a whole number from 1"
shift 2
PATH="${MEGATRON_MUSIC_VENV:+$MEGATRON_MUSIC_VENV/bin:}$PATH" python -m megatron_music build plan "$@" -o "$out"
read -ra more <<< "$MEGATRON_MUSIC_SBATCH"
array=$(sbatch --parsable "${more[@]}" --array="0-$((jobs - 1))" launch/build_shards.sbatch "$out")
merge=$(sbatch --parsable "${more[@]}" --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes launch/merge_dataset.sbatch "$out")
echo "jobs ${array%%;*} (array of $jobs) and ${merge%%;*} (merge): squeue --job ${array%%;*},${merge%%;*}"
