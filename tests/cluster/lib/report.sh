# shellcheck shell=bash
# What the commands that change nothing print.

print_export() { echo "export KUBECONFIG=$kubeconfig"; }

print_env() {
  require_up
  print_export
}

print_bin() {
  [[ -d $bin ]] || fail "the tools are not built; run \`cluster build\`"
  echo "$bin"
}

print_status() {
  local node component init pid
  if ! is_up; then
    echo "cluster $id of $checkout is not up"
    return 1
  fi
  echo "cluster $id of $checkout, in $range, files in $state"
  printf '%-8s %-24s %-9s %s\n' NODE COMPONENT PID MEMORY
  for node in $(nodes); do
    init=$(node_init "$node") || init=
    for component in $(components_of "$node"); do
      if [[ -n $init ]] && alive "$node" "$component" "$init"; then
        pid=$(cat "$state/$node/pids/$component")
        printf '%-8s %-24s %-9s %s\n' "$node" "$component" "$(outer_pid "$init" "$pid")" \
          "$(awk '/^VmRSS/ {printf "%d MiB", $2 / 1024}' "/proc/$init/root/proc/$pid/status")"
      else
        printf '%-8s %-24s %-9s\n' "$node" "$component" "not running"
      fi
    done
  done
  kubectl get nodes -o wide | cut -c1-60
}

# outer_pid INIT PID: the pid on this machine of the process that is PID in the namespace of INIT.
outer_pid() {
  local namespace file
  namespace=$(readlink "/proc/$1/ns/pid")
  grep -lsE "^NSpid:\s+[0-9]+\s+$2$" /proc/[0-9]*/status | while read -r file; do
    [[ $(readlink "${file%/status}/ns/pid" 2> /dev/null) == "$namespace" ]] && basename "${file%/status}"
  done
  return 0
}

print_logs() {
  [[ -d $state/log ]] || fail "cluster $id has no logs; run \`cluster up\`"
  if [[ -z ${1:-} ]]; then
    ls "$state"/log/*.log
  else
    [[ -f $state/log/$1.log ]] || fail "there is no log of $1; \`cluster logs\` lists them"
    tail -n "${LINES_OF_LOG:-200}" "$state/log/$1.log"
  fi
}
