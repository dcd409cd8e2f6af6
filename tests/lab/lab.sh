# shellcheck shell=bash
# Sourced by up, down and load-image: the names of the lab, its processes and what they leave on the machine.
# shellcheck disable=SC2034,SC2154  # variables from common.sh, and for the scripts that source this file

lab=${PGSET_LAB:-$checkout/target/lab}       # state; goes with `down`
run=/run/pgset-lab                           # sockets: their paths must stay under 108 characters, wherever the checkout is
namespace=pgset-lab                          # of the network; there is one lab on a machine
socket=$run/containerd.sock

# What the lab writes below its folder, its logs aside
state=("$lab"/{nodes,etcd,containerd,kubelet,pki,config,cni,ipam,pod-logs,export,kubeconfig,audit.log})
# What its programs write to places that cannot be configured
traces=(/run/containerd /var/lib/cni /var/lib/kubelet /var/log/containers)

# RFC 2544's addresses for tests of networks: they are nobody's
host_address=198.18.255.1
lab_address=198.18.255.2
pod_range=198.18.0.0/24                      # of the node `lab`; lab-2 has 198.18.2.0/24
cluster_range=198.18.0.0/17                  # all pods
nodes_range=198.18.254.0/24                  # the nodes but `lab`: lab-2 is 198.18.254.2
switch_address=198.18.254.1
service_range=198.19.0.0/24

processes=(etcd containerd kube-apiserver coredns kube-controller-manager kube-scheduler kubelet kube-proxy)
node_processes=(containerd kubelet kube-proxy)   # of a node that is not the control plane's

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

api() { # PATH [ARGUMENTS OF curl...]
  local path=$1
  shift
  curl --silent --fail --max-time 5 --cacert "$lab/pki/ca.crt" -H @"$lab/pki/admin.header" "$@" "https://$lab_address:6443$path"
}

# name_nodes NUMBER: the names of so many nodes but the first, which is `lab`
name_nodes() {
  local number
  more_nodes=()
  for ((number = 2; number <= $1; number++)); do more_nodes+=("lab-$number"); done
}
more_nodes=()

how_many() { cat "$run/nodes" 2>/dev/null || echo 1; }

alive() { # NAME [NODE]: does the process that `up` started live?
  local pid
  pid=$(cat "$run/pid/${2:+$2-}$1" 2>/dev/null) && grep -qx "$pid" "$tracker/${2:+$2/}system/cgroup.procs" 2>/dev/null
}

node_ready() { # NODE
  api "/api/v1/nodes/$1" 2>/dev/null |
    jq -e 'any(.status.conditions[]?; .type == "Ready" and .status == "True") and .spec.taints == null' >/dev/null
}

owner() { cat "$run/owner" 2>/dev/null; }

healthy() {
  local name node more_nodes
  [ "$(owner)" = "$lab" ] && [ -f "$run/up" ] || return 1
  for name in "${processes[@]}"; do alive "$name" || return 1; done
  api /readyz >/dev/null && node_ready lab || return 1
  name_nodes "$(how_many)"
  for node in "${more_nodes[@]}"; do
    for name in "${node_processes[@]}"; do alive "$name" "$node" || return 1; done
    node_ready "$node" || return 1
  done
}

# One lab on a machine: its lock is the machine's, not the checkout's.
lock_lab() { lock /run/lock/pgset-lab.lock "the lab"; }
