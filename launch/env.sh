# What the job scripts beside it share: settings, and the functions that start tasks. Sourced by them, never run.
#
# Set these here, or in the environment of `sbatch`:
: "${MEGATRON_MUSIC_RUNTIME:=bare}"      # where Python is: bare, pyxis (enroot) or apptainer
: "${MEGATRON_MUSIC_VENV=.venv}"         # bare: the environment that has the package; empty: the python on PATH, as of a module
: "${MEGATRON_MUSIC_IMAGE:=}"            # pyxis: a .sqsh file or registry#image:tag; apptainer: a .sif file
: "${MEGATRON_MUSIC_MOUNTS:=$PWD:$PWD}"  # host:container[:ro], with commas between; data and runs must lie below one of them
: "${MEGATRON_MUSIC_ARCH:=auto}"         # volta, ampere, hopper, blackwell or none; auto: as nvidia-smi on the first node says
: "${MEGATRON_MUSIC_LOGS:=logs}"         # a file for each rank and each start
: "${MEGATRON_MUSIC_SBATCH:=}"           # more options of sbatch for the jobs that build_dataset.sh submits

say() { echo "[$(date '+%F %T')] $*"; }
fail() { echo "$(basename "$0"): $*" >&2; exit 2; }

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
  nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST") || fail "scontrol cannot expand $SLURM_JOB_NODELIST; is this a Slurm job?"
  export_to_tasks "MASTER_ADDR=${nodes%%$'\n'*}" "MASTER_PORT=$((10000 + SLURM_JOB_ID % 50000))"
}

gpu_architecture() {
  [ "$MEGATRON_MUSIC_ARCH" = auto ] || { echo "$MEGATRON_MUSIC_ARCH"; return; }
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null) || { echo none; return; }
  case ${capability%%.*} in 7) echo volta ;; 8) echo ampere ;; 9) echo hopper ;; *) echo blackwell ;; esac
}

set_gpu_environment() {
  local architecture
  architecture=$(gpu_architecture)
  case $architecture in
    none) return ;;
    # One queue to the GPU: kernels start in the order they were issued, so that a tensor-parallel message starts before the
    # product that hides it.
    volta | ampere | hopper) export_to_tasks CUDA_DEVICE_MAX_CONNECTIONS=1 ;;
    # There the order holds without, and more queues let more messages run beside each other.
    blackwell) export_to_tasks CUDA_DEVICE_MAX_CONNECTIONS=32 ;;
    *) fail "MEGATRON_MUSIC_ARCH is $architecture; use volta, ampere, hopper, blackwell, none or auto" ;;
  esac
  # Memory of a tensor that was sent is free for use as soon as the message is over, not when the allocator looks again.
  export_to_tasks TORCH_NCCL_AVOID_RECORD_STREAMS=1
  # A rank that waits for a dead one ends with the others after distributed_timeout_minutes, in place of waiting for ever.
  export_to_tasks TORCH_NCCL_ASYNC_ERROR_HANDLING=1
  case $architecture in
    # NVLink SHARP takes buffers of a GB a GPU; a model that fits barely needs them more. Set it to 1 where memory is left.
    hopper | blackwell) export_to_tasks NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-0}" ;;
  esac
  # Blocks of the allocator that grow in place: fewer fragments where lengths differ, as in sampling.
  export_to_tasks PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
}

# Nothing is looked for on the network: nodes that have none would wait for its time-outs.
set_offline() { export_to_tasks HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=False; }

# What one task runs. One task a GPU, not one torchrun a node: Slurm then sees every rank, ends the step when one dies,
# signals each, and keeps a log of each. All GPUs of a node are visible to all its tasks, so that they reach each other's.
# shellcheck disable=SC2016
TASK='export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
export LOCAL_WORLD_SIZE=${SLURM_STEP_TASKS_PER_NODE%%[(,]*}
exec "$@"'

# run_tasks [SRUN OPTION...] -- COMMAND...: a step of the job, in the runtime that is set.
# `--output`, not `| tee`: a pipe's status is its last command's, and the death of a rank would pass unseen.
run_tasks() {
  local options=() container=() inside=() name
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  mkdir -p "$MEGATRON_MUSIC_LOGS"
  options=(
    --kill-on-bad-exit=1 --mpi=none --open-mode=append
    --output="$MEGATRON_MUSIC_LOGS/%x-%j-start${SLURM_RESTART_COUNT:-0}-rank%t.log"
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
  srun "$@"
}
