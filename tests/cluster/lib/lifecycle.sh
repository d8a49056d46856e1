# shellcheck shell=bash
# Up, down and what lies between. A start that was cut short, a reboot and a component that died look alike from the outside:
# what is marked as complete is mended, everything else is removed and made afresh.

up() {
  local count=${NODES:-1} node began=$SECONDS
  [[ $count =~ ^[1-9]$ ]] || fail "NODES is \"$count\"; use a number from 1 to 9"
  require_root
  lock_instance
  if [[ $(cat "$state/complete" 2> /dev/null) == "$cache" ]] && use_network && (mend); then
    :
  else
    if something_left; then
      say "removing a cluster that was left unfinished, was ended by a reboot or is of other versions"
      remove_everything
    fi
    start_cluster
    say "cluster $id is up after $((SECONDS - began)) s"
  fi
  for ((i = 2; i <= count; i++)); do
    node=node-$i
    [[ -f $state/$node/complete ]] || add_node "$node"
  done
  print_export
}

start_cluster() {
  require_packages
  build_tools
  make_images
  require_space "$home" 3 "the nodes of a cluster"
  mkdir -p "$state/log"
  require_kernel
  reserve_network
  echo "$checkout" > "$state/checkout"
  cp "$here/audit-policy.yaml" "$state/audit-policy.yaml"
  say "starting cluster $id (about 30 s): nodes, pods and services in $range"
  (make_authority)
  (make_node_certificate node-1)
  start_node node-1
  wire_node node-1
  local component loading
  for component in containerd etcd kube-apiserver; do start_component node-1 "$component"; done
  # The images go in while the API server starts.
  until_ok 30 "containerd on node-1" ctr_on node-1 version
  load_images "$cache/images.tar" & loading=$!
  until_ok 120 "the API server" kubectl get --raw /readyz
  say "the API server is ready"
  wait "$loading" || fail "loading the images of the cluster itself failed"
  for component in kube-controller-manager kube-scheduler kubelet kube-proxy; do start_component node-1 "$component"; done
  sed "s|@DNS@|$dns_service|" "$here/addons.yaml" | kubectl apply -f - > /dev/null
  until_ok 120 "node-1 to be ready" node_ready node-1
  say "node-1 is ready"
  until_ok 120 "cluster DNS, metrics and storage" addons_ready
  touch "$state/node-1/complete"
  echo "$cache" > "$state/complete"
}

# add_node NODE: also brings back one that was stopped or only half made. Its disk, if it has one, stays.
add_node() {
  local node=$1 began=$SECONDS component
  say "starting $node (about 15 s)"
  rm -f "$state/$node/complete"
  stop_nodes "$node"
  # The other end went with the node's namespace, if not half-way through wire_node.
  in_network node-1 ip link del "$node" 2> /dev/null || true
  remove_cgroups "$node"
  start_node "$node"
  wire_node "$node"
  (make_node_certificate "$node")
  start_component "$node" containerd
  until_ok 30 "containerd on $node" ctr_on "$node" version
  copy_images node-1 "$node"
  for component in kubelet kube-proxy; do start_component "$node" "$component"; done
  until_ok 120 "$node to be ready" node_ready "$node"
  touch "$state/$node/complete"
  say "$node is ready after $((SECONDS - began)) s"
}

# mend: true if the cluster is healthy, if need be after starting again what does not run.
mend() {
  local node component init mended=
  init=$(node_init node-1) && [[ -e /sys/class/net/$link ]] || return 1
  [[ -x $bin/kubectl ]] || build_tools # somebody emptied the cache
  for component in $(components_of node-1); do
    alive node-1 "$component" "$init" && continue
    say "starting $component again"
    start_component node-1 "$component"
    mended=1
  done
  for node in $(nodes); do
    [[ $node == node-1 ]] && continue
    if [[ ! -f $state/$node/complete ]] || ! init=$(node_init "$node"); then
      until_ok 60 "the API server" kubectl get --raw /readyz
      add_node "$node"
      mended=1
      continue
    fi
    for component in "${node_components[@]}"; do
      alive "$node" "$component" "$init" && continue
      say "starting $component of $node again"
      start_component "$node" "$component"
      mended=1
    done
  done
  [[ -z $mended ]] && healthy && return 0
  say "waiting for the cluster to be healthy"
  until_ok 120 "the cluster to be healthy" healthy
}

healthy() {
  kubectl get --raw /readyz > /dev/null 2>&1 && all_nodes_ready && addons_ready
}
# shellcheck disable=SC2317
node_ready() { kubectl get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' | grep -qx True; }
all_nodes_ready() {
  local node ready
  ready=$(kubectl get nodes -o 'jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' 2> /dev/null)
  for node in $(nodes); do grep -qx "$node True" <<< "$ready" || return 1; done
}
addons_ready() {
  local available
  available=$(kubectl -n kube-system get deployment coredns metrics-server local-path-provisioner -o 'jsonpath={.items[*].status.availableReplicas}' 2> /dev/null)
  [[ $available == "1 1 1" ]]
}

# Whatever state an earlier command was killed in.
remove_everything() {
  rm -f "$state/complete"
  stop_nodes
  ip link del "$link" 2> /dev/null || true
  remove_cgroups
  release_network
  rm -rf --one-file-system "$state"
}

down() {
  require_root
  lock_instance
  local end="cluster $id is gone"
  something_left || end="cluster $id was not there"
  remove_everything
  unlock "$state.lock"
  rmdir "$home" 2> /dev/null || true # other checkouts may have theirs in it
  say "$end"
}

something_left() { [[ -e $state || -e /sys/class/net/$link || -n $(holders) ]]; }

load() {
  require_root
  (($#)) || fail "say which archives to load: cluster load ARCHIVE.tar..."
  require_up
  load_images "$@"
}

stop() {
  require_root
  require_up
  [[ ${1:-} =~ ^node-[2-9]$ && -d $state/$1 ]] || fail "say which node to stop, other than node-1, which has the control plane: $(nodes | tr '\n' ' ')"
  lock_instance
  stop_nodes "$1"
}

exec_in() {
  require_root
  [[ ${1:-} == node-* && $# -gt 1 ]] || fail "say in which node to run what: cluster exec node-1 ip route"
  in_node "$@"
}

require_up() { is_up || fail "cluster $id is not up; run \`cluster up\`"; }
is_up() { [[ -f $state/complete ]] && use_network && node_init node-1 > /dev/null; }

# The cluster's own kubectl, whatever the caller has in its environment.
kubectl() { env -u HTTPS_PROXY -u https_proxy "$bin/kubectl" --kubeconfig="$kubeconfig" --request-timeout=5s "$@"; }
