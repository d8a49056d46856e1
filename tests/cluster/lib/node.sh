# shellcheck shell=bash
# A node is a set of namespaces (mounts, network, processes, host name, IPC) with containerd, kubelet and kube-proxy in it.
# No file says which process holds them, since after a reboot or a kill it would lie: the process carries the node's folder in
# its environment, and is looked for there.

node_components=(containerd kubelet kube-proxy)
control_plane=(etcd kube-apiserver kube-controller-manager kube-scheduler)

components_of() { # NODE
  [[ $1 != node-1 ]] || printf '%s\n' "${control_plane[@]}"
  printf '%s\n' "${node_components[@]}"
}

# The nodes that this cluster has, running or not.
nodes() {
  local folder
  for folder in "$state"/node-*; do [[ -d $folder ]] && echo "${folder##*/}"; done
  return 0
}

running_nodes() {
  local node
  for node in $(nodes); do node_init "$node" > /dev/null && echo "$node"; done
  return 0
}

# The process outside of the namespaces that holds node NODE, or every node of this instance.
holders() { # [NODE]
  local file pid marker="ANNEAL_CLUSTER_NODE=$state/${1:-node-}"
  { grep -lszF "$marker" /proc/[0-9]*/environ || true; } | while read -r file; do
    pid=${file#/proc/} pid=${pid%/environ}
    [[ $(cat "/proc/$pid/comm" 2> /dev/null) == unshare ]] && echo "$pid"
  done
  return 0
}

# The first process in the namespaces of a node that is set up.
node_init() { # NODE
  local holder pid
  holder=$(holders "$1") && [[ $holder =~ ^[0-9]+$ ]] || return 1
  pid=$(pgrep -P "$holder") && [[ $(cat "/proc/$pid/comm" 2> /dev/null) == pause ]] && echo "$pid"
}

start_node() { # NODE
  local folder=$state/$1
  mkdir -p "$folder"/{lib,log,run,pids,cni} "$state/log"
  make_cgroup "$cgroup/$1"
  detached "$state/log/$1.log" env -i ANNEAL_CLUSTER_NODE="$folder" PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    unshare --mount --net --pid --uts --ipc --propagation slave --fork --kill-child --mount-proc \
    "$here/lib/node-init" "$folder" "$state" "$bin"
  until_ok 10 "the namespaces of $1 (see $state/log/$1.log)" node_init "$1"
}

# What runs on must hold neither a lock nor a pipe of whoever called this script.
close_files() {
  local fd
  for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    ((fd <= 2)) || eval "exec $fd>&-"
  done
}

detached() { # LOG COMMAND...
  local log=$1
  shift
  (
    close_files
    cd /
    exec setsid "$@" < /dev/null >> "$log" 2>&1
  ) &
}

# Ends what holds the nodes; the kernel ends all that runs in them before it lets the holder go.
stop_nodes() { # [NODE]
  local pid found
  found=$(holders "${1:-}")
  for pid in $found; do
    pkill -KILL -P "$pid" 2> /dev/null || kill -KILL "$pid" 2> /dev/null || true
  done
  for pid in $found; do until_ok 30 "the end of process $pid" gone "$pid"; done
}
gone() { [[ ! -e /proc/$1 ]]; }

in_node() { # NODE COMMAND...
  local init
  init=$(node_init "$1") || fail "$1 does not run"
  shift
  nsenter --target "$init" --mount --net --pid --uts --ipc -- "$@"
}
in_network() { # NODE COMMAND...: the machine's files, the node's network
  local init
  init=$(node_init "$1") || fail "$1 does not run"
  shift
  nsenter --target "$init" --net -- "$@"
}
ctr_on() { # NODE ARGUMENT...
  local init
  init=$(node_init "$1") || fail "$1 does not run"
  shift
  ctr -a "/proc/$init/root/run/containerd/containerd.sock" -n k8s.io "$@"
}

# start NODE COMPONENT ARGUMENT...: it becomes a child of the node's first process, and its pid there is kept in a file.
start() {
  local node=$1 name=$2 program=/run/anneal/bin/$2 log
  shift 2
  [[ $name == containerd ]] && program=containerd
  log=$(log_of "$node" "$name")
  (
    close_files
    # The script reads its own arguments when it runs in the node.
    # shellcheck disable=SC2016
    in_node "$node" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root sh -c 'pid=$1 log=$2; shift 2
      setsid sh -c "echo \$\$ > \"\$0\"; exec \"\$@\"" "$pid" "$@" < /dev/null >> "$log" 2>&1 &' sh \
      "$state/$node/pids/$name" "$log" "$program" "$@"
  )
}
log_of() { # NODE COMPONENT
  [[ $1 == node-1 ]] && echo "$state/log/$2.log" || echo "$state/log/$1-$2.log"
}

# The pid may belong to another process by now, so its command decides.
alive() { # NODE COMPONENT [INIT]
  local init=${3:-} pid command=
  [[ -n $init ]] || init=$(node_init "$1") || return 1
  pid=$(cat "$state/$1/pids/$2" 2> /dev/null) || return 1
  { IFS= read -r -d '' command < "/proc/$init/root/proc/$pid/cmdline"; } 2> /dev/null || return 1
  [[ ${command##*/} == "$2" ]]
}

# until_ok SECONDS WHAT COMMAND...
until_ok() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    ((SECONDS < end)) || fail "waited in vain for $what; \`cluster logs\` lists the logs"
    sleep 0.2
  done
}

wire_node() { # NODE
  local node=$1 init up address gateway
  address=$(address_of "$1")
  gateway=$(gateway_of "$1")
  init=$(node_init "$node")
  if [[ $node == node-1 ]]; then
    up=$link
    ip link add "$up" type veth peer name eth0 netns "$init"
    ip addr add "$gateway/30" dev "$up"
    ip link set "$up" up
    # From this machine, nodes, pods and services are reached through node-1 and in no other way.
    ip route add "$range" via "$address"
  else
    up=$node
    in_network node-1 ip link add "$up" type veth peer name eth0 netns "$init"
    in_network node-1 ip addr add "$gateway/30" dev "$up"
    in_network node-1 ip link set "$up" up
    in_network node-1 ip route add "$(pods_of "$node")" via "$address"
  fi
  in_network "$node" ip link set lo up
  in_network "$node" ip addr add "$address/30" dev eth0
  in_network "$node" ip link set eth0 up
  in_network "$node" sysctl -qw net.ipv4.ip_forward=1
  [[ $node == node-1 ]] || in_network "$node" ip route add "$range" via "$gateway"
  # kube-proxy rewrites a service address only after the kernel found some route for it, and there is no default route.
  in_network "$node" ip route add "$services" dev lo src "$address"
  # Pods have routes of their own; the address of one that is gone must not travel between the nodes until its time to live ends.
  in_network "$node" ip route add unreachable "$(pods_of "$node")"
}

# A cgroup of the node's own keeps kubelets from removing each other's pods. In version 1 a new cpuset is empty and takes no process.
make_cgroup() { # PATH
  local hierarchy path file name
  if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
    path=/sys/fs/cgroup
    for name in ${1//\// } ""; do
      for file in cpu cpuset memory pids io hugetlb; do
        { echo "+$file" > "$path/cgroup.subtree_control"; } 2> /dev/null || true
      done
      path+=/$name
      mkdir -p "$path"
    done
    return
  fi
  for hierarchy in $(cgroup_hierarchies); do
    path=$hierarchy
    for name in ${1//\// }; do
      path+=/$name
      mkdir -p "$path"
      [[ -f $path/cpuset.cpus ]] || continue
      for file in cpuset.cpus cpuset.mems; do
        [[ -n $(< "$path/$file") ]] || cat "${path%/*}/$file" > "$path/$file"
      done
    done
  done
}
cgroup_hierarchies() { awk '$3 ~ /^cgroup2?$/ {print $2}' /proc/self/mounts; }

remove_cgroups() { # [NODE]
  until_ok 30 "the removal of the cgroups $cgroup" try_remove_cgroups "$cgroup${1:+/$1}"
}
try_remove_cgroups() { # PATH
  local hierarchy left=0
  for hierarchy in $(cgroup_hierarchies); do
    [[ ! -d $hierarchy/$1 ]] || find "$hierarchy/$1" -depth -type d -exec rmdir {} + || left=1
  done
  return $left
}
