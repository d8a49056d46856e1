# shellcheck shell=bash
# Which cluster this is: every checkout has one of its own, with its own folder, network interface, cgroup and addresses.

checkout=$(cd "$here/../.." && pwd -P)
id=${ANNEAL_CLUSTER_ID:-$(printf %s "$checkout" | sha256sum | cut -c1-8)}
# The interface is called an-ID, and the kernel takes 15 characters.
[[ $id =~ ^[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?$ && $id != slots ]] ||
  fail "ANNEAL_CLUSTER_ID is \"$id\"; use at most 12 of a-z, 0-9 and -, other than \"slots\""
home=/var/lib/anneal
state=$home/$id
link=an-$id
cgroup=anneal-$id
kubeconfig=$state/admin.kubeconfig

# lock FILE WHAT: holds FILE until this process ends. Its holder may have deleted it (unlock does), so whoever gets the lock
# makes sure that it is still the file of that name.
lock() {
  local fd tries=0
  while :; do
    mkdir -p "${1%/*}"
    # The folder may go between the two lines, since `down` removes an empty one.
    { exec {fd}> "$1"; } 2> /dev/null || { ((++tries < 100)) || fail "$1 cannot be written; look at who owns it"; continue; }
    flock -n "$fd" || { say "waiting for $2"; flock "$fd"; }
    [[ $(stat -c %i "$1" 2> /dev/null) == "$(stat -Lc %i "/proc/self/fd/$fd")" ]] && break
    exec {fd}>&-
  done
  locks[$1]=$fd
}
declare -A locks=()

unlock() { # FILE
  local fd=${locks[$1]}
  rm -f "$1"
  exec {fd}>&-
  unset "locks[$1]"
}

lock_instance() { lock "$state.lock" "another cluster command of this checkout"; }

# No other process may use the ranges of an instance, so each gets a /16 that no route of the machine overlaps.
reserve_network() {
  local base owner
  mkdir -p "$state" "$home/slots"
  lock "$home/slots/lock" "another checkout that chooses its addresses"
  for base in 10.{100..163} 172.{20..31} 198.{18,19}; do
    owner=$(cat "$home/slots/$base" 2> /dev/null || true)
    [[ -n $owner && $owner != "$id" && -d $home/$owner ]] && continue
    is_unrouted "$base.0.0/16" || continue
    echo "$id" > "$home/slots/$base"
    echo "$base" > "$state/network"
    unlock "$home/slots/lock"
    use_network
    return
  done
  fail "every range that a cluster could use (10.100.0.0 to 10.163.255.255, 172.20.0.0/14 and on, 198.18.0.0/15) has a route on this machine or belongs to another checkout; run \`cluster down\` in those that need none"
}

is_unrouted() { # RANGE: neither a part of it nor a range around it is routed, the default route aside
  local routes
  routes=$(ip -4 route show table all root "$1"; ip -4 route show table all match "$1")
  ! grep -vE '^([a-z]+ )?default|^$' <<< "$routes" > /dev/null
}

release_network() {
  [[ -d $home/slots ]] || return 0
  lock "$home/slots/lock" "another checkout that chooses its addresses"
  local slot
  for slot in "$home"/slots/*.*; do
    [[ -f $slot && $(cat "$slot") == "$id" ]] && rm -f "$slot"
  done
  unlock "$home/slots/lock"
  rmdir "$home/slots" 2> /dev/null || true # other checkouts may have theirs in it
}

# The addresses of the instance, out of the /16 that it reserved: node links, then pods (a /24 for each node), then services.
use_network() {
  local base
  [[ -f $state/network ]] || return 1
  base=$(cat "$state/network")
  range=$base.0.0/16
  pods=$base.64.0/18
  services=$base.128.0/17
  api_service=$base.128.1
  dns_service=$base.128.10
  network=$base
}
gateway_of() { echo "$network.0.$((4 * ${1#node-} - 3))"; }
address_of() { echo "$network.0.$((4 * ${1#node-} - 2))"; }
pods_of() { echo "$network.$((63 + ${1#node-})).0/24"; }
