#!/usr/bin/env bash
# shellcheck shell=bash
#
# What the job scripts beside it share: settings, and the functions that start tasks. Sourced by them, never run.
#
# Set these here, or in the environment of `sbatch`:
: "${MEGATRON_MUSIC_RUNTIME:=bare}"      # where Python is: bare, pyxis (enroot) or apptainer
: "${MEGATRON_MUSIC_VENV=.venv}"         # bare: the environment that has the package; empty: the python on PATH, as of a module
: "${MEGATRON_MUSIC_IMAGE:=}"            # pyxis: a .sqsh file or registry#image:tag; apptainer: a .sif file
: "${MEGATRON_MUSIC_MOUNTS:=$PWD:$PWD}"  # host:container[:ro], with commas between; data and runs must lie below one of them
: "${MEGATRON_MUSIC_ARCH:=auto}"         # volta, ampere, hopper, blackwell or none; auto: as nvidia-smi on the first node says
: "${MEGATRON_MUSIC_LOGS:=logs}"         # a folder that all nodes see: a file for each rank and each start
: "${MEGATRON_MUSIC_SBATCH:=}"           # more options of sbatch for the jobs that build_dataset.sh submits

say() { echo "[$(date '+%F %T')] $*"; }
fail() { echo "${SLURM_JOB_NAME:-$(basename "$0")}: $*" >&2; exit 2; }

# require_job VARIABLE...: ends the script in a sentence where sbatch has not set these.
require_job() {
  local name
  for name in "$@"; do
    case $name in
      SLURM_ARRAY_*) [ -n "${!name:-}" ] || fail "$name is not set; submit this script as an array: sbatch --array=0-3 ..." ;;
      *) [ -n "${!name:-}" ] || fail "$name is not set: this is no Slurm job; submit it: sbatch launch/$(basename "$0") ..." ;;
    esac
  done
}

# export_to_tasks NAME=VALUE...: for the tasks of a step, in a container too. An image's own ENV goes before what a job
# merely exports, so every name is handed to the container by the runtime's own means.
TASK_VARIABLES=()
export_to_tasks() {
  local pair
  for pair in "$@"; do
    export "${pair?}"
    TASK_VARIABLES+=("${pair%%=*}")
  done
}

# Where the ranks meet. Found here, on the batch host: images have no scontrol, and a fallback to localhost would let
# each node wait for the others alone. A port by the job's number, since two jobs may share a node.
set_rendezvous() {
  local nodes
  require_job SLURM_JOB_ID SLURM_JOB_NODELIST
  nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || fail "scontrol cannot expand $SLURM_JOB_NODELIST; is this a Slurm job?"
  export_to_tasks "MASTER_ADDR=${nodes%%$'\n'*}" "MASTER_PORT=$((10000 + SLURM_JOB_ID % 50000))"
}

gpu_architecture() {
  [ "$MEGATRON_MUSIC_ARCH" = auto ] || { echo "$MEGATRON_MUSIC_ARCH"; return; }
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null) || { echo none; return; }
  case ${capability%%.*} in 7) echo volta ;; 8) echo ampere ;; 9) echo hopper ;; *) echo blackwell ;; esac
}

# splits_layers ARGUMENT...: whether a run's arguments, or a recipe or plan among them, split a layer over GPUs (tensor or context parallel).
splits_layers() {
  local argument file sizes='(tensor.model|context).parallel.size["]?[=: ]+["]?([2-9]|[1-9][0-9])'
  if [[ "$*" =~ $sizes ]]; then return 0; fi
  for argument in "$@"; do
    for file in "$argument" "$argument/plan.json"; do
      if [ -f "$file" ] && grep -Eq "$sizes" "$file"; then return 0; fi
    done
  done
  return 1
}

# set_gpu_environment [ARGUMENT...]: the arguments of the run, which say whether layers are split.
set_gpu_environment() {
  local architecture connections
  architecture=$(gpu_architecture)
  case $architecture in
    none) return ;;
    # One queue to the GPU: kernels start in the order they were issued, so that a tensor-parallel message starts before the
    # product that hides it.
    volta | ampere | hopper) connections=1 ;;
    # There the order holds without, and more queues let more messages run beside each other.
    blackwell) connections=32 ;;
    *) fail "MEGATRON_MUSIC_ARCH is $architecture; use volta, ampere, hopper, blackwell, none or auto" ;;
  esac
  # Where no layer is split there is no such message, and CUDA's own default, 8 queues, lets gradients travel beside the backward pass.
  if [ -n "${CUDA_DEVICE_MAX_CONNECTIONS:-}" ] || splits_layers "$@"; then
    export_to_tasks CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-$connections}"
  fi
  # A rank that waits for a dead one ends with the others after distributed_timeout_minutes, in place of waiting for ever.
  export_to_tasks TORCH_NCCL_ASYNC_ERROR_HANDLING=1
  case $architecture in
    # NVLink SHARP takes buffers of a GB a GPU; a model that fits barely needs them more. Set it to 1 where memory is left.
    hopper | blackwell) export_to_tasks NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-0}" ;;
  esac
  # Blocks of the allocator that grow in place: fewer fragments where lengths differ, as in sampling. The name is that of PyTorch 2.9 and
  # later, which warns of the older one; what you set under either is handed on.
  if [ -n "${PYTORCH_CUDA_ALLOC_CONF:-}" ]; then
    export_to_tasks PYTORCH_CUDA_ALLOC_CONF="$PYTORCH_CUDA_ALLOC_CONF"
  else
    export_to_tasks PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
  fi
}

# Nothing is looked for on the network: nodes that have none would wait for its time-outs.
set_offline() { export_to_tasks HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=False; }

# What one task runs. One task a GPU, not one torchrun a node: Slurm then sees every rank, ends the step when one dies,
# signals each, and keeps a log of each. All GPUs of a node are visible to all its tasks, so that they reach each other's.
# shellcheck disable=SC2016
TASK='export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
export LOCAL_WORLD_SIZE=${SLURM_STEP_TASKS_PER_NODE%%[(,]*}
exec "$@"'

# require_rank_logs TASKS: Slurm ends a step with 0 though a task could not open its log and never ran.
require_rank_logs() {
  local log found=()
  for log in "$MEGATRON_MUSIC_LOGS/"*"-$SLURM_JOB_ID-start${SLURM_RESTART_COUNT:-0}-rank"*.log; do
    [ ! -f "$log" ] || found+=("$log")
  done
  [ "${#found[@]}" -ge "${1:-1}" ] || fail "only ${#found[@]} of ${1:-1} tasks ran: the others could not open their logs in \
$MEGATRON_MUSIC_LOGS; set MEGATRON_MUSIC_LOGS to a folder that every node sees and may write to"
}

# run_tasks [SRUN OPTION...] -- COMMAND...: a step of the job, in the runtime that is set. Called with &, its caller must see to
# require_rank_logs itself.
# `--output`, not `| tee`: a pipe's status is its last command's, and the death of a rank would pass unseen.
run_tasks() {
  local options=() container=() inside=() name tasks=${SLURM_NTASKS:-1} status=0
  require_job SLURM_JOB_ID
  while [ "$1" != -- ]; do
    case $1 in --ntasks=*) tasks=${1#*=} ;; esac
    options+=("$1")
    shift
  done
  shift
  # Of `sbatch --gpus-per-task`: srun would show each task its own GPU alone, and LOCAL_RANK would count past it.
  unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK
  case ${SLURM_GPU_BIND:-} in per_task*) unset SLURM_GPU_BIND ;; esac
  mkdir -p "$MEGATRON_MUSIC_LOGS" || fail "the folder $MEGATRON_MUSIC_LOGS of the ranks' logs cannot be made; set MEGATRON_MUSIC_LOGS to another"
  options=(
    --kill-on-bad-exit=1 --mpi=none --open-mode=append
    --export=ALL  # a job of `sbatch --export=NONE` would give its tasks no PATH
    --output="${MEGATRON_MUSIC_LOGS//%/%%}/%x-%j-start${SLURM_RESTART_COUNT:-0}-rank%t.log"  # Slurm reads %j; %% is a percent sign
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}  # srun has not taken it from sbatch since 22.05
    "${options[@]}"
  )
  case $MEGATRON_MUSIC_RUNTIME in
    bare)
      [ -z "$MEGATRON_MUSIC_VENV" ] || inside=(env "PATH=$(cd "$MEGATRON_MUSIC_VENV/bin" && pwd):$PATH")
      ;;
    pyxis)
      [ -n "$MEGATRON_MUSIC_IMAGE" ] || fail "MEGATRON_MUSIC_IMAGE is not set; name a .sqsh file or registry#image:tag"
      container=(
        --container-image="$MEGATRON_MUSIC_IMAGE" --container-mounts="$MEGATRON_MUSIC_MOUNTS"
        --container-workdir="$PWD" --no-container-mount-home
        --container-env="$(IFS=,; echo "${TASK_VARIABLES[*]}")"
      )
      ;;
    apptainer)
      [ -n "$MEGATRON_MUSIC_IMAGE" ] || fail "MEGATRON_MUSIC_IMAGE is not set; name a .sif file"
      for name in "${TASK_VARIABLES[@]}"; do export "APPTAINERENV_$name=${!name}"; done
      inside=(apptainer exec --nv --bind "$MEGATRON_MUSIC_MOUNTS" --pwd "$PWD" "$MEGATRON_MUSIC_IMAGE")
      ;;
    *) fail "MEGATRON_MUSIC_RUNTIME is $MEGATRON_MUSIC_RUNTIME; use bare, pyxis or apptainer" ;;
  esac
  set -- "${options[@]}" "${container[@]}" "${inside[@]}" bash -c "$TASK" task "$@"
  # Called with & it runs in a shell between, which a signal would end in place of reaching srun: let that become srun.
  if [ "$BASHPID" != "$$" ]; then exec srun "$@"; fi
  srun "$@" || status=$?
  [ "$status" -ne 0 ] || require_rank_logs "$tasks"
  return "$status"
}
