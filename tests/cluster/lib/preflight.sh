# shellcheck shell=bash
# What the machine must have, each lack in one sentence that says what to do about it.

fail() {
  printf 'cluster: %s\n' "$*" >&2
  exit 1
}
say() { printf 'cluster: %s\n' "$*" >&2; }

require_root() {
  [[ $(uname -s) == Linux ]] || fail "a Kubernetes node needs Linux, and this is $(uname -s); set KUBECONFIG to a cluster that you have"
  ((EUID == 0)) || fail "a Kubernetes node needs root; run it again as root, for example with sudo -E"
}

go_arch() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) fail "the tools are built for x86_64 and aarch64, and this machine is $(uname -m); set KUBECONFIG to a cluster that you have" ;;
  esac
}

require_build_tools() {
  go_arch > /dev/null
  [[ -x $(type -P go) ]] || PATH=$PATH:/usr/local/go/bin
  [[ -x $(type -P go) ]] || fail "Kubernetes is built from source and there is no go on the PATH; install Go 1.24 or newer"
  require_space "${cache%/cluster/*}" 8 "Go's cache and the tools"
}

require_space() { # FOLDER GIB WHAT
  local folder=$1 free
  until [[ -d $folder ]]; do folder=$(dirname "$folder"); done
  free=$(($(stat -fc '%a * %S' "$folder") / 1024 ** 3))
  ((free >= $2)) || fail "$3 need $2 GiB in $1, and $free GiB are free; make room there"
}

# Debian names a package for what it needs; on other systems the sentence says what to look for.
require_packages() {
  local -A package=(
    [containerd]=containerd [ctr]=containerd [runc]=runc [iptables]=iptables [nft]=nftables [ip]=iproute2
    [busybox]=busybox-static [gcc]=gcc [openssl]=openssl [jq]=jq [pgrep]=procps [flock]=util-linux [unshare]=util-linux
  )
  local command missing=()
  for command in "${!package[@]}"; do
    type -P "$command" > /dev/null || missing+=("${package[$command]}")
  done
  [[ -x /usr/lib/cni/ptp ]] || missing+=(containernetworking-plugins)
  # A busybox that needs a C library would not start in an image of its own.
  if type -P busybox > /dev/null && ldd "$(type -P busybox)" > /dev/null 2>&1; then missing+=(busybox-static); fi
  if type -P gcc > /dev/null && [[ $(gcc -print-file-name=libc.a) == libc.a ]]; then missing+=(libc6-dev); fi
  ((${#missing[@]})) || return 0
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  [[ " ${missing[*]} " != *" gcc "* ]] || missing+=(libc6-dev)
  type -P apt-get > /dev/null || fail "install these first (the names are Debian's): ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  { DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } > /dev/null ||
    fail "apt-get could not install ${missing[*]}; install them by hand, then run this again"
}

# Features are tried, not looked up: a feature may be built in, a module, or forbidden here. What is tried ends with its namespaces.
require_kernel() {
  local folder try="unshare --mount --net --pid --fork --mount-proc"
  $try true 2> /dev/null ||
    fail "this machine does not allow new mount, network and process namespaces; run on a virtual machine or in a privileged container"
  folder=$state/try
  mkdir -p "$folder"/{lower,upper,work,all}
  $try mount -t overlay -o "lowerdir=$folder/lower,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/all" 2> /dev/null ||
    fail "the kernel cannot mount an overlay on the file system of $home; load the module overlay, and keep $home on a disk (ext4 or xfs), not on another overlay"
  rm -rf "$folder"
  $try ip link add try0 type veth peer name try1 2> /dev/null ||
    fail "the kernel cannot make veth interfaces; load the module veth"
  $try nft -f - 2> /dev/null << 'RULES' ||
table ip try {
  chain c { type nat hook postrouting priority 100; ct state new masquerade random; }
  chain d { numgen random mod 2 vmap { 0 : drop, 1 : accept }; fib daddr type local accept; }
}
RULES
    fail "the kernel cannot translate addresses with nftables; it needs Linux 5.13 or newer with the modules nf_tables, nft_ct, nft_fib_ipv4, nft_masq, nft_nat and nft_numgen"
  require_cgroups
}

require_cgroups() {
  local controller
  for controller in cpu cpuset memory pids; do
    if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
      [[ " $(< /sys/fs/cgroup/cgroup.controllers) " == *" $controller "* ]]
    else
      [[ -f /sys/fs/cgroup/$controller/cgroup.procs ]]
    fi || fail "the cgroup controller $controller is not there under /sys/fs/cgroup; turn it on in the kernel's command line, or run outside of a container"
  done
}
