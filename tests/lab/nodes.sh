# shellcheck shell=bash
# Sourced by up and node: the nodes of the lab. `lab` is the control plane's own; `lab-2`, `lab-3` and so on each have their kubelet,
# containerd and kube-proxy in a network namespace and a cgroup of their own.
# shellcheck disable=SC2154  # variables of the scripts that source this file

# === who is who ===

# about NODE: sets what is its own, for all that follows
about() {
  local number=${1#lab-}
  node=$1
  case $node in
    lab)
      node_folder=$lab node_run=$run node_network=$namespace node_link=host node_address=$lab_address
      node_pods=$pod_range node_root=/pgset-lab node_prefix='' ;;
    *)
      node_folder=$lab/nodes/$node node_run=$run/$node node_network=$namespace-$number node_link=eth0 node_address=${nodes_range%.0/*}.$number
      node_pods=198.18.$number.0/24 node_root=/pgset-lab/$node node_prefix=$node- ;;
  esac
}

# The hierarchies of cgroups that know a node's processes: for the one to find them, for the other to freeze them.
process_groups() {
  echo "$tracker${node_root#/pgset-lab}/system"
  if [ "$node" != lab ] && [ -d /sys/fs/cgroup/freezer ]; then echo "/sys/fs/cgroup/freezer$node_root/system"; fi
}

# start_on_node NAME COMMAND...: in the node's network and cgroup, apart from this terminal; its process id is the one noted
start_on_node() {
  local name=$node_prefix$1 group
  shift
  (
    for group in $(process_groups); do echo "$BASHPID" >"$group/cgroup.procs"; done
    if [ -n "${lock_fd:-}" ]; then exec {lock_fd}>&-; fi
    exec setsid nsenter --net="/run/netns/$node_network" -- "$@"
  ) >>"$lab/log/$name.log" 2>&1 </dev/null &
  echo $! >"$run/pid/$name"
}

in_node() { nsenter --net="/run/netns/$node_network" -- "$@"; }
node_ctr() { ctr --address "$node_run/containerd.sock" --namespace k8s.io "$@"; }

# === making one ===

make_node_folders() {
  mkdir -p "$node_folder"/{config,cni,containerd,kubelet,pod-logs} "$node_run"
}

# Images are unpacked into memory where there is plenty: 1.6 GB in many small files, which a disk mounted with `discard` takes
# most of a minute to forget when the lab goes down.
make_containerd_folder() {
  if [ "$(awk '$1 == "MemAvailable:" {print int($2 / 1048576)}' /proc/meminfo)" -ge 8 ]; then
    mount -t tmpfs -o size=6g,mode=0711 "$node_network" "$node_folder/containerd"
  fi
}

make_node_cgroups() {
  local hierarchy file
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p "/sys/fs/cgroup$node_root"
  else
    for hierarchy in /sys/fs/cgroup/*/; do mkdir -p "$hierarchy$node_root"; done
    # a new cpuset has neither processors nor memory, and takes no process until it has
    for file in cpuset.cpus cpuset.mems; do
      cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset$node_root/$file"
    done
  fi
  # shellcheck disable=SC2046
  mkdir -p $(process_groups)
}

# A link of the node to the switch, which is a bridge in the control plane's namespace, and a route to it from everybody else.
make_node_network() {
  local number=${node#lab-} other
  ip netns add "$node_network"
  in_node ip link set lo up
  in_lab ip link add "$node" type veth peer name eth0 netns "$node_network"
  in_lab ip link set "$node" master nodes up
  in_node ip address add "$node_address/24" dev eth0
  in_node ip link set eth0 up
  in_node ip route add default via "$switch_address"
  in_node sysctl -qw net.ipv4.ip_forward=1
  for other in "${more_nodes[@]}"; do
    other=${other#lab-}
    if [ "$other" != "$number" ]; then in_node ip route add "198.18.$other.0/24" via "${nodes_range%.0/*}.$other"; fi
  done
}

# The switch, and the ways to what is behind it
make_switch() {
  local number
  in_lab ip link add nodes type bridge
  in_lab ip address add "$switch_address/24" dev nodes
  in_lab ip link set nodes up
  ip route add "$nodes_range" via "$lab_address"
  for node in "${more_nodes[@]}"; do
    number=${node#lab-}
    in_lab ip route add "198.18.$number.0/24" via "${nodes_range%.0/*}.$number"
    ip route add "198.18.$number.0/24" via "$lab_address"
  done
}

configure_containerd() {
  # Pods of several nodes see each other's own addresses
  local masquerade=true
  if [ ${#more_nodes[@]} -gt 0 ]; then masquerade=false; fi
  cat >"$node_folder/config/containerd.toml" <<CONF
version = 2
root = "$node_folder/containerd"
state = "$node_run/containerd"
[grpc]
  address = "$node_run/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$node_folder/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.local/pause:1"
  disable_apparmor = true
  netns_mounts_under_state_dir = true   # not in /run/netns, where everyone's are
  # Without CAP_SYS_RESOURCE nobody may lower a process's OOM score: runc would die with "can't get final child's PID from pipe".
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$node_folder/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "$node_folder/config/registries"
CONF
  # No registry is reachable: a pull is refused at once instead of timing out.
  mkdir -p "$node_folder/config/registries/_default"
  printf 'server = "http://127.0.0.1:1"\n' >"$node_folder/config/registries/_default/hosts.toml"
  cat >"$node_folder/cni/10-lab.conflist" <<CONF
{"cniVersion": "0.4.0", "name": "$node_network", "plugins": [
  {"type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": $masquerade, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$node_folder/ipam", "ranges": [[{"subnet": "$node_pods"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONF
}

configure_kubelet() {
  cat >"$node_folder/config/kubelet.yaml" <<CONF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false                 # the machine may have cgroup v1 only
cgroupDriver: cgroupfs
cgroupRoot: $node_root
enforceNodeAllocatable: []
oomScoreAdj: 0                      # see containerd.toml
failSwapOn: false
# A disk that fills up must not cost the tests their pods, nor the images, which cannot be pulled again
evictionHard: {imagefs.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $lab/pki/ca.crt}}
authorization: {mode: Webhook}
clusterDNS: ["$lab_address"]
clusterDomain: cluster.local
resolvConf: /dev/null
containerRuntimeEndpoint: unix://$node_run/containerd.sock
podLogsDir: $node_folder/pod-logs
volumePluginDir: $node_folder/kubelet/volume-plugins
CONF
}

# === running it ===

start_containerd() { start_on_node containerd containerd --config "$node_folder/config/containerd.toml"; }

start_kubelet() {
  start_on_node kubelet "$bin/kubelet" --config="$node_folder/config/kubelet.yaml" --kubeconfig="$lab/pki/${node_prefix}kubelet.kubeconfig" \
    --root-dir="$node_folder/kubelet" --cert-dir="$node_folder/kubelet/pki" --hostname-override="$node" --node-ip="$node_address"
  start_on_node kube-proxy "$bin/kube-proxy" --kubeconfig="$lab/pki/kube-proxy.kubeconfig" --hostname-override="$node" \
    --proxy-mode=nftables --cluster-cidr="$cluster_range"
}

wait_for_containerd() { wait_for 30 "containerd on $node" "${node_prefix}containerd" -- node_ctr version; }
wait_for_node() { wait_for 90 "node $node that is Ready" "${node_prefix}kubelet" "${node_prefix}containerd" -- node_ready "$node"; }

import_images() { # FOLDER
  local archive
  for archive in pause bookworm trixie; do
    node_ctr images import "$1/$archive.tar" || return 1
  done
} >>"$lab/log/images.log" 2>&1

# === ending it ===

# kill_all FOLDER-OF-CGROUPS...: all at once and without a chance to object; what would start them again dies in the same moment.
# A process may have had a child meanwhile, so again until there is none.
kill_all() {
  local pids deadline=$((SECONDS + 20))
  while pids=$(find "$@" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u) && [ -n "$pids" ]; do
    (( SECONDS < deadline )) || die "processes that do not end: ${pids//$'\n'/ }"
    # shellcheck disable=SC2086
    kill -KILL $pids 2>/dev/null || :
    sleep 0.1
  done
}

# thaw FOLDER-OF-CGROUPS...: what is frozen does not even die
thaw() {
  local file
  find "$@" \( -name freezer.state -o -name cgroup.freeze \) 2>/dev/null | while read -r file; do
    case $file in
      */freezer.state) echo THAWED >"$file" ;;
      *) echo 0 >"$file" ;;
    esac
  done || :    # of the cgroups that it looks through some may be going
}

unmount() { # FOLDER: all that is mounted in it, innermost first
  awk -v top="$1/" 'index($2, top) == 1 {print $2}' /proc/mounts | sort -r | while read -r point; do
    umount "$(printf '%b' "$point")" 2>/dev/null || umount --lazy "$(printf '%b' "$point")" || warn "still mounted: $point"
  done
}
