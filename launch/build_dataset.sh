#!/usr/bin/env bash
#
# MIDI archives to .bin/.idx on many nodes: a plan, here; an array of jobs that encode; a merge when all have.
#
#   bash launch/build_dataset.sh JOBS OUT SOURCE... [options of `megatron-music build plan`]
#
# The plan is made by a Python on this machine, in container modes too (under apptainer, by the image's): it needs the package and its base
# dependencies, no torch. JOBS is how many array tasks share the shards. Given again it goes on: finished shards are found, not made anew. What comes
# out is the same, byte for byte, whatever JOBS is.
set -euo pipefail
source launch/env.sh

[ $# -ge 3 ] || fail "give JOBS, OUT and at least one SOURCE: bash launch/build_dataset.sh 16 data midi.tar.gz"
jobs=$1 out=$2
[[ $jobs =~ ^[1-9][0-9]*$ ]] || fail "JOBS is $jobs; use a whole number from 1"
shift 2
plan_here() { PATH="${MEGATRON_MUSIC_VENV:+$MEGATRON_MUSIC_VENV/bin:}$PATH" "$@"; }
if [ "$MEGATRON_MUSIC_RUNTIME" = apptainer ] && [ -n "$MEGATRON_MUSIC_IMAGE" ] && command -v apptainer > /dev/null; then
  plan_here() { apptainer exec --bind "$MEGATRON_MUSIC_MOUNTS" --pwd "$PWD" "$MEGATRON_MUSIC_IMAGE" "$@"; }
fi
reason=$(plan_here python -c 'import megatron_music.data.build' 2>&1) || fail "the plan is made on this machine, and its python cannot import this \
package (${reason##*$'\n'}; MEGATRON_MUSIC_RUNTIME=$MEGATRON_MUSIC_RUNTIME, MEGATRON_MUSIC_VENV=$MEGATRON_MUSIC_VENV); set MEGATRON_MUSIC_VENV to an \
environment into which the package is installed, from a clone or from its wheel"
command -v sbatch > /dev/null || fail "sbatch is not on this machine; run this on a login node of the cluster"
plan_here python -m megatron_music build plan "$@" -o "$out"
read -ra more <<< "$MEGATRON_MUSIC_SBATCH"
array=$(sbatch --parsable "${more[@]}" --array="0-$((jobs - 1))" launch/build_shards.sbatch "$out") ||
  fail "sbatch refused the array; the plan is kept in $out.building: correct what sbatch says above (options: MEGATRON_MUSIC_SBATCH), then give the same \
command again"
merge=$(sbatch --parsable "${more[@]}" --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes launch/merge_dataset.sbatch "$out") ||
  fail "sbatch refused the merge, and job ${array%%;*} encodes; the plan is kept in $out.building: when that job is done, run \
sbatch launch/merge_dataset.sbatch $out"
echo "jobs ${array%%;*} (array of $jobs) and ${merge%%;*} (merge): squeue --job ${array%%;*},${merge%%;*}"
