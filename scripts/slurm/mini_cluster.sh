#!/usr/bin/env bash
# A real Slurm on this machine, for the tests labelled slurm: slurmctld, munge and four slurmd, each node with a /tmp of its own, PMIx.
#   scripts/slurm/mini_cluster.sh up      installs what is missing, starts it, waits until all nodes are idle; repeatable
#   scripts/slurm/mini_cluster.sh down    ends it and everything that runs on it
#   scripts/slurm/mini_cluster.sh kill NODE / start NODE    a node dies with its tasks; comes back (n1 … n4)
# Needs root, on Debian 12 or a near relative. Programs and data must not lie in /tmp, which nodes do not share; this checkout may.
set -euo pipefail
readonly CHECKOUT="$(cd "$(dirname "$0")/../.." && pwd)"
readonly CONF=/etc/slurm/slurm.conf STATE=/run/temper_mini_cluster MARK="# made by scripts/slurm/mini_cluster.sh"
readonly NODES=(n1 n2 n3 n4)

say() { printf '[mini_cluster] %s\n' "$*"; }
fail() { printf '[mini_cluster] error: %s\n' "$*" >&2; exit 1; }

# cred_expire shortens the hold of a requeued job, which is 120 s otherwise.
configure() {
  if [ -e "$CONF" ] && ! grep -q "$MARK" "$CONF"; then fail "$CONF is a real cluster's. The mini cluster is for machines without one."; fi
  mkdir -p "$(dirname "$CONF")" /var/spool/slurmctld "$STATE"
  local host; host="$(hostname -s)"
  cat >"$CONF" <<EOF
$MARK
ClusterName=mini
SlurmctldHost=$host
AuthType=auth/munge
AuthInfo=cred_expire=20
CryptoType=crypto/munge
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.%n.pid
SlurmdSpoolDir=/var/spool/slurmd.%n
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.%n.log
StateSaveLocation=/var/spool/slurmctld
SlurmUser=root
SwitchType=switch/none
SlurmdTimeout=10
MinJobAge=600
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName=n[1-4] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-17004] CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
}

start_munge() {
  if [ ! -s /etc/munge/munge.key ]; then
    head -c 1024 /dev/urandom >/etc/munge/munge.key
  fi
  mkdir -p /run/munge /var/log/munge /var/lib/munge
  chown munge: /etc/munge/munge.key /run/munge /var/log/munge /var/lib/munge
  chmod 400 /etc/munge/munge.key; chmod 755 /run/munge
  pgrep -x munged >/dev/null || runuser -u munge -- munged || fail "munged does not start. Look at /var/log/munge/munged.log."
}

start_node() {  # start_node NODE: slurmd in a mount namespace with its own /tmp
  [ -e "/run/slurmd.$1.pid" ] && kill -0 "$(cat "/run/slurmd.$1.pid")" 2>/dev/null && return
  mkdir -p "/var/spool/slurmd.$1" "$STATE/checkout"
  env "CHECKOUT=$CHECKOUT" "STATE=$STATE" unshare -m bash -c '
    set -e
    mount --make-rprivate / 2>/dev/null || true
    case "$CHECKOUT" in /tmp/*) mount --bind "$CHECKOUT" "$STATE/checkout";; esac
    mount -t tmpfs tmpfs /tmp
    case "$CHECKOUT" in /tmp/*) mkdir -p "$CHECKOUT"; mount --bind "$STATE/checkout" "$CHECKOUT";; esac
    exec slurmd -N '"$1" || fail "slurmd of $1 does not start. Look at $STATE/slurmd.$1.log."
}

# Everything that descends from the node's slurmd, the step daemons and their tasks included: it lives in its mount namespace.
kill_node() {
  local pid; pid="$(cat "/run/slurmd.$1.pid" 2>/dev/null || true)"
  local namespace=""
  [ -n "$pid" ] && namespace="$(readlink "/proc/$pid/ns/mnt" 2>/dev/null || true)"
  [ -n "$namespace" ] || return 0
  local entry
  for entry in /proc/[0-9]*; do
    [ "$(readlink "$entry/ns/mnt" 2>/dev/null || true)" = "$namespace" ] && kill -KILL "${entry#/proc/}" 2>/dev/null || true
  done
  rm -f "/run/slurmd.$1.pid"
}

up() {
  "$CHECKOUT/scripts/setup.sh" --slurm
  configure
  start_munge
  pgrep -x slurmctld >/dev/null || slurmctld -c || fail "slurmctld does not start. Look at $STATE/slurmctld.log."
  local node deadline=$((SECONDS + 60))
  for node in "${NODES[@]}"; do start_node "$node"; done
  until [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "${#NODES[@]}" ]; do
    [ "$SECONDS" -lt "$deadline" ] || { sinfo -N >&2 || true; fail "the nodes are not idle after 60 s. Look at $STATE."; }
    for node in "${NODES[@]}"; do scontrol update "NodeName=$node" State=RESUME 2>/dev/null || true; done
    sleep 1
  done
  say "up: $(sinfo -h -o '%D nodes %t')"
}

down() {
  local node
  for node in "${NODES[@]}"; do kill_node "$node"; done
  pkill -x slurmctld || true
  pkill -x munged || true
  local deadline=$((SECONDS + 30))  # slurmctld saves its state before it ends
  while pgrep -x slurmctld >/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
  if grep -qs "$MARK" "$CONF"; then rm -f "$CONF"; fi
  rm -rf /var/spool/slurmctld /var/spool/slurmd.n[1-4]
  say "down"
}

[ "$(id -u)" = 0 ] || fail "needs root: it starts daemons and makes mount namespaces."
case "${1:-}" in
  up) up ;;
  down) down ;;
  kill) kill_node "${2:?which node}" ;;
  start) start_node "${2:?which node}" ;;
  *) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
