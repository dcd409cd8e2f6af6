# shellcheck shell=bash
# Sourced by up, down and load-image: the names of the lab, its processes and what they leave on the machine.
# shellcheck disable=SC2034,SC2154  # variables from common.sh, and for the scripts that source this file

lab=${PGSET_LAB:-$checkout/target/lab}       # state; goes with `down`
run=/run/pgset-lab                           # sockets: their paths must stay under 108 characters, wherever the checkout is
namespace=pgset-lab                          # of the network; there is one lab on a machine
socket=$run/containerd.sock

# What the lab writes below its folder, its logs aside
state=("$lab"/{etcd,containerd,kubelet,pki,config,cni,ipam,pod-logs,export,kubeconfig,audit.log})
# What its programs write to places that cannot be configured
traces=(/run/containerd /var/lib/cni /var/lib/kubelet /var/log/containers)

# RFC 2544's addresses for tests of networks: they are nobody's
host_address=198.18.255.1
lab_address=198.18.255.2
pod_range=198.18.0.0/24
service_range=198.19.0.0/24

processes=(etcd containerd kube-apiserver coredns kube-controller-manager kube-scheduler kubelet kube-proxy)

# Every process of the lab, containers and their shims too, is in a cgroup of this name, which is how `down` finds all of them
# and nothing else. One hierarchy tells (cgroup v1: `pids`); the kubelet uses all.
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  tracker=/sys/fs/cgroup/pgset-lab
  cgroups=("$tracker")
else
  tracker=/sys/fs/cgroup/pids/pgset-lab
  cgroups=(/sys/fs/cgroup/*/pgset-lab)       # until `up` has made them, the one word with the star
fi

# Not `ip netns exec`: it remounts /sys and hides the cgroups from what it runs.
in_lab() { nsenter --net="/run/netns/$namespace" -- "$@"; }

lab_ctr() { ctr --address "$socket" --namespace k8s.io "$@"; }

api() { # PATH [ARGUMENTS OF curl...]
  local path=$1
  shift
  curl --silent --fail --max-time 5 --cacert "$lab/pki/ca.crt" -H @"$lab/pki/admin.header" "$@" "https://$lab_address:6443$path"
}

alive() { # NAME: does the process that `up` started live?
  local pid
  pid=$(cat "$run/pid/$1" 2>/dev/null) && grep -qx "$pid" "$tracker/system/cgroup.procs" 2>/dev/null
}

node_ready() {
  api /api/v1/nodes/lab 2>/dev/null |
    jq -e 'any(.status.conditions[]?; .type == "Ready" and .status == "True") and .spec.taints == null' >/dev/null
}

owner() { cat "$run/owner" 2>/dev/null; }

healthy() {
  local name
  [ "$(owner)" = "$lab" ] || return 1
  for name in "${processes[@]}"; do alive "$name" || return 1; done
  [ -f "$run/up" ] && api /readyz >/dev/null && node_ready
}

# One lab on a machine: its lock is the machine's, not the checkout's.
lock_lab() { lock /run/lock/pgset-lab.lock "the lab"; }
