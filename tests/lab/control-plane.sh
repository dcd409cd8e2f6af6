# shellcheck shell=bash
# Sourced by up, node and control-plane: who may speak to the API server, and how it and the controllers are run.
# shellcheck disable=SC2034,SC2154  # variables of, and for, the scripts that source this file

# make_identities ADDRESS PORT: in $lab/pki a certificate authority, two certificates, the key of service accounts, and a token for
# each component: with names of their own, the audit log tells who asks the API server how often.
make_identities() (
  host=$1 server=https://$1:$2
  umask 077
  mkdir "$lab/pki"
  cd "$lab/pki"
  key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }
  sign() { # NAME SUBJECT EXTENSION
    key "$1.key"
    openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile <(echo "$3") -out "$1.crt" 2>/dev/null
  }
  identity() { # NAME USER [GROUP]: a token, and a kubeconfig that has it
    local token
    token=$(openssl rand -hex 16)
    echo "$token,$2,$2,\"${3:-}\"" >>tokens.csv
    if [ "$1" = admin ]; then echo "Authorization: Bearer $token" >admin.header; fi
    kubeconfig "$token" >"$1.kubeconfig"
  }
  kubeconfig() { # TOKEN
    cat <<CONF
apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster: {server: "$server", certificate-authority-data: $(base64 -w 0 <ca.crt)}
users:
- name: lab
  user: {token: $1}
contexts:
- name: lab
  context: {cluster: lab, user: lab}
current-context: lab
CONF
  }
  key ca.key
  openssl req -x509 -key ca.key -days 30 -subj /CN=pgset-lab -out ca.crt
  sign apiserver /CN=kube-apiserver "subjectAltName=IP:127.0.0.1,IP:$host,IP:${service_range%.0/*}.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
  sign apiserver-kubelet /O=system:masters/CN=apiserver-kubelet "extendedKeyUsage=clientAuth"
  key service-accounts.key
  openssl ec -in service-accounts.key -pubout -out service-accounts.pub 2>/dev/null
  identity admin admin system:masters
  identity coredns coredns system:masters    # no role of Kubernetes' own fits it
  identity kube-controller-manager system:kube-controller-manager
  identity kube-scheduler system:kube-scheduler
  identity kube-proxy system:kube-proxy
  identity kubelet system:node:lab system:nodes
  for node in "${more_nodes[@]}"; do identity "$node-kubelet" "system:node:$node" system:nodes; done
  cp admin.kubeconfig "$lab/kubeconfig"
)

# Requests of people and service accounts, tests and pgset among them; not the talk of the cluster's own parts.
configure_audit() {
  cat >"$lab/config/audit.yaml" <<'CONF'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:apiserver, system:kube-controller-manager, system:kube-scheduler, system:kube-proxy, coredns]
- level: None
  userGroups: [system:nodes]
- level: Metadata
CONF
}

# etcd_flags PORT: memory is as good as a disk for what lives as long as a test run
etcd_flags() {
  etcd_flags=(--data-dir "$lab/etcd" --unsafe-no-fsync --listen-client-urls "http://127.0.0.1:$1"
    --advertise-client-urls "http://127.0.0.1:$1" --listen-peer-urls "http://127.0.0.1:$(($1 + 1))")
}

# api_server_flags ADDRESS PORT ETCD-PORT
api_server_flags() {
  api_server_flags=(--etcd-servers="http://127.0.0.1:$3" --advertise-address="$1" --secure-port="$2"
    --tls-cert-file="$lab/pki/apiserver.crt" --tls-private-key-file="$lab/pki/apiserver.key" --client-ca-file="$lab/pki/ca.crt"
    --service-account-key-file="$lab/pki/service-accounts.pub" --service-account-signing-key-file="$lab/pki/service-accounts.key"
    --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range="$service_range"
    --token-auth-file="$lab/pki/tokens.csv" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
    --allow-privileged=true
    --audit-policy-file="$lab/config/audit.yaml" --audit-log-path="$lab/audit.log" --audit-log-maxsize=100 --audit-log-maxbackup=2)
}

controller_manager_flags() {
  controller_manager_flags=(--kubeconfig="$lab/pki/kube-controller-manager.kubeconfig"
    --service-account-private-key-file="$lab/pki/service-accounts.key" --root-ca-file="$lab/pki/ca.crt"
    --use-service-account-credentials=true --leader-elect=false)
}

# wait_for SECONDS WHAT PROCESS... -- COMMAND...: until the command succeeds. When the time is over, or one of the processes
# has died, the last lines of their logs say why. $run/pid/PROCESS holds its id, $lab/log/PROCESS.log what it said.
wait_for() {
  local limit=$1 what=$2 deadline=$((SECONDS + $1)) names=() name reason=''
  shift 2
  while [ "$1" != -- ]; do names+=("$1"); shift; done
  shift
  until "$@" >/dev/null 2>&1; do
    for name in "${names[@]}"; do
      if ! kill -0 "$(cat "$run/pid/$name")" 2>/dev/null; then
        reason="$name has died"
        names=("$name")
        break
      fi
    done
    if (( SECONDS >= deadline )); then reason="not after $limit s"; fi
    if [ -n "$reason" ]; then
      for name in "${names[@]}"; do
        warn "the last lines of $lab/log/$name.log:"
        tail -n 15 "$lab/log/$name.log" | cut -c 1-400 >&2
      done
      die "no $what: $reason"
    fi
    sleep 0.1
  done
}
