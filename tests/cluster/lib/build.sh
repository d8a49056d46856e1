# shellcheck shell=bash
# The tools, built from their published modules into a cache outside of the tree, once for each set of versions.

# Part of the components binary, which answers to all of these names.
parts=(etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl)

declare -A tools
# shellcheck source=/dev/null
source "$here/versions"

version_key() { cat "$here"/components/{go.mod,go.sum,main.go} "$here"/{versions,pause.c,lib/archive.sh} | sha256sum | cut -c1-12; }
cache=${ANNEAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/anneal}/cluster/$(version_key)
bin=$cache/bin

# build_tools [NAME...]: all of them, or those named. Killed half-way it goes on where it stopped: each tool appears under its
# name only when it is whole, and the compiler keeps its own cache.
build_tools() {
  local name missing=()
  (($#)) || set -- components "${!tools[@]}"
  for name; do
    [[ " ${parts[*]} " == *" $name "* ]] && name=components
    [[ $name == components || -v tools[$name] ]] || fail "there is no tool called $name; there are ${parts[*]} ${!tools[*]}"
    [[ -x $bin/$name ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  require_build_tools
  lock "$cache.lock" "another build of the same tools"
  mkdir -p "$bin"
  for name in "${missing[@]}"; do
    [[ -x $bin/$name ]] || build_tool "$name"
  done
  unlock "$cache.lock"
}

build_tool() {
  local name=$1 began=$SECONDS part work
  # The folder, not the file, is the temporary: `go install` chooses the name of the file.
  work=$bin/.building
  rm -rf "$work"
  mkdir -p "$work"
  if [[ $name == components ]]; then
    say "building Kubernetes $(kubernetes_version) from its Go module (about 10 minutes the first time)"
    build_components "$work/components"
  else
    say "building $name ${tools[$name]##*@} from its Go module (1 to 3 minutes the first time)"
    # Outside of any module: the tool's own go.mod rules.
    (cd / && GOBIN=$work with_go install -trimpath -ldflags '-s -w' "${tools[$name]}") ||
      fail "building $name failed; the compiler's message is above"
  fi
  mv "$work/$name" "$bin/$name"
  rm -rf "$work"
  if [[ $name == components ]]; then
    for part in "${parts[@]}"; do ln -sf components "$bin/$part"; done
  fi
  say "built $name in $((SECONDS - began)) s"
}

kubernetes_version() { awk '$1 == "k8s.io/kubernetes" {print $2}' "$here/components/go.mod"; }

build_components() { # OUT
  local v minor into=k8s.io/component-base/version
  v=$(kubernetes_version)
  minor=${v#v1.}
  (cd "$here/components" && with_go build -trimpath -o "$1" -ldflags \
    "-s -w -X $into.gitVersion=$v -X $into.gitMajor=1 -X $into.gitMinor=${minor%%.*}" .) ||
    fail "building Kubernetes failed; the compiler's message is above"
}

# Static, since they run in images without a C library; at low priority, since it takes long and nobody waits on a build alone.
with_go() { CGO_ENABLED=0 GOFLAGS=-buildvcs=false nice -n 5 go "$@" >&2; }
