#!/usr/bin/env bash
# Real Slurm daemons on this machine: several nodes, each with fake GPUs.
#
#   cluster.sh up ROOT [NODES] [CPUS A NODE] [GPUS A NODE]      then: export SLURM_CONF=ROOT/slurm.conf
#   cluster.sh down ROOT
#
# As root, with slurm-wlm and munge installed. Each node has a loopback address and a host name of its own, so that a wrong
# MASTER_ADDR fails as it would on a cluster; names are known only to the daemons and what they start. A fake GPU is a
# character device without a driver: it shows what Slurm does with GPUs, and nothing of CUDA.
set -euo pipefail

up() {
  local root=$1 nodes=${2:-2} cpus=${3:-4} gpus=${4:-2} host i
  host=$(hostname -s)
  mkdir -p "$root"/{state,log,run,dev}
  chmod 755 "$root" "$root"/*
  for i in $(seq "$nodes"); do mkdir -p "$root/spool/n$i"; done
  if [ -z "${IN_NAMESPACE:-}" ]; then  # an /etc/hosts of our own
    { cat /etc/hosts; for i in $(seq "$nodes"); do echo "127.0.1.$i n$i"; done; } > "$root/hosts"
    # shellcheck disable=SC2016
    IN_NAMESPACE=1 exec unshare --mount bash -c 'mount --bind "$1/hosts" /etc/hosts; shift; exec bash "$0" "$@"' \
      "$0" "$root" up "$root" "$nodes" "$cpus" "$gpus"
  fi
  [ -f "$root/munge.key" ] || (umask 077; head -c 128 /dev/urandom > "$root/munge.key")
  munged --key-file="$root/munge.key" --socket="$root/run/munge.sock" --pid-file="$root/run/munged.pid" \
    --log-file="$root/log/munged.log" --seed-file="$root/run/munge.seed" --force
  for i in $(seq 0 $((gpus - 1))); do [ -e "$root/dev/nvidia$i" ] || mknod "$root/dev/nvidia$i" c 1 3; done
  write_configuration "$root" "$nodes" "$cpus" "$gpus" "$host"
  export SLURM_CONF=$root/slurm.conf
  slurmctld -i
  for i in $(seq "$nodes"); do
    # shellcheck disable=SC2016
    unshare --uts bash -c 'hostname "n$1"; exec slurmd -N "n$1"' _ "$i"
  done
  for _ in $(seq 100); do
    [ "$(timeout 3 sinfo -h -N -p batch -t idle -o %N 2>/dev/null | wc -l)" = "$nodes" ] && { echo "up: $nodes nodes"; return; }
    sleep 0.3
  done
  tail -n 20 "$root"/log/*.log
  return 1
}

# cred_expire: a requeued job starts again in seconds, in place of two minutes. Ports beside Slurm's own, for one that runs.
write_configuration() {
  cat > "$1/slurm.conf" <<CONF
ClusterName=music
SlurmctldHost=$5(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket=$1/run/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool/%n
SlurmctldPidFile=$1/run/slurmctld.pid
SlurmdPidFile=$1/run/slurmd.%n.pid
SlurmctldLogFile=$1/log/slurmctld.log
SlurmdLogFile=$1/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SrunPortRange=21000-21999
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2
GresTypes=gpu
ReturnToService=2
KillWait=5
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
NodeName=n[1-$2] NodeHostname=n[1-$2] NodeAddr=127.0.1.[1-$2] Port=[17001-$((17000 + $2))] CPUs=$3 Boards=1 SocketsPerBoard=1 CoresPerSocket=$3 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:v100:$4 State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=04:00:00 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=04:00:00 PriorityTier=10 PreemptMode=OFF
CONF
  cat > "$1/gres.conf" <<CONF
AutoDetect=off
NodeName=n[1-$2] Name=gpu Type=v100 File=$1/dev/nvidia[0-$(($4 - 1))] Flags=nvidia_gpu_env
CONF
}

down() {
  local file
  for file in "$1"/run/{slurmd.*,slurmctld,munged}.pid; do
    [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
  done
}

"$@"
