# shellcheck shell=bash
# How each component is called. Names and addresses come from the instance; everything else is said here once.

start_component() { "start_${2//-/_}" "$1"; } # NODE COMPONENT

# No fsync: the data need not survive a power cut, and the disk of a test machine is slow.
start_etcd() {
  start "$1" etcd --data-dir="$state/etcd" --unsafe-no-fsync --log-level=warn --listen-peer-urls=http://127.0.0.1:2380 \
    --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379
}

# The audit log is written before the answer is sent, so that a test finds in it what it just did.
start_kube_apiserver() {
  local pki=$state/pki
  start "$1" kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address="$(address_of "$1")" --secure-port=6443 \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/sa.pub" \
    --service-account-signing-key-file="$pki/sa.key" --service-cluster-ip-range="$services" --allow-privileged=true \
    --enable-aggregator-routing=true --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- --proxy-client-cert-file="$pki/front-proxy.crt" \
    --proxy-client-key-file="$pki/front-proxy.key" --audit-policy-file="$state/audit-policy.yaml" \
    --audit-log-path="$state/log/audit.log" --audit-log-mode=blocking --audit-log-maxsize=50 --audit-log-maxbackup=3
}

# The periods of the HorizontalPodAutoscaler are short, so that a test can watch a scale-up and a scale-down.
start_kube_controller_manager() {
  local config=$state/pki/kube-controller-manager.kubeconfig
  start "$1" kube-controller-manager --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
    --service-account-private-key-file="$state/pki/sa.key" --root-ca-file="$state/pki/ca.crt" --use-service-account-credentials \
    --leader-elect=false --bind-address=127.0.0.1 --cluster-cidr="$pods" --service-cluster-ip-range="$services" \
    --horizontal-pod-autoscaler-sync-period=5s --horizontal-pod-autoscaler-initial-readiness-delay=5s \
    --horizontal-pod-autoscaler-cpu-initialization-period=10s --horizontal-pod-autoscaler-downscale-stabilization=30s
}

start_kube_scheduler() {
  local config=$state/pki/kube-scheduler.kubeconfig
  start "$1" kube-scheduler --kubeconfig="$config" --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
    --leader-elect=false --bind-address=127.0.0.1
}

# ptp, not bridge: conntrack does not see frames between two ports of a bridge, and replies of a Service would get lost.
start_containerd() {
  local folder=$state/$1
  cat > "$folder/cni/10-ptp.conflist" << CONFIG
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(pods_of "$1")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONFIG
  cat > "$folder/containerd.toml" << CONFIG
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  # Where root lacks CAP_SYS_RESOURCE, runc may not lower a score, and every pod would fail.
  restrict_oom_score_adj = true
  # A profile would be loaded into the kernel of the machine and stay there.
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$folder/cni"
CONFIG
  start "$1" containerd --config "$folder/containerd.toml"
}

# Room on the disk is said in bytes: a share of a large disk that others fill would evict every pod.
start_kubelet() {
  local folder=$state/$1
  : > "$folder/resolv.conf"
  cat > "$folder/kubelet.yaml" << CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $state/pki/$1.crt
tlsPrivateKeyFile: $state/pki/$1.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup/$1
failCgroupV1: false
failSwapOn: false
clusterDNS: [$dns_service]
clusterDomain: cluster.local
resolvConf: $folder/resolv.conf
enforceNodeAllocatable: []
evictionHard: {memory.available: 100Mi, nodefs.available: 500Mi, imagefs.available: 500Mi}
imageGCHighThresholdPercent: 100
CONFIG
  start "$1" kubelet --config="$folder/kubelet.yaml" --kubeconfig="$state/pki/$1.kubeconfig" --hostname-override="$1" \
    --node-ip="$(address_of "$1")"
}

# It may not set the machine's conntrack limits from within a network namespace: 0 leaves them.
start_kube_proxy() {
  start "$1" kube-proxy --kubeconfig="$state/pki/kube-proxy.kubeconfig" --hostname-override="$1" --proxy-mode=nftables \
    --cluster-cidr="$pods" --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
    --conntrack-tcp-timeout-close-wait=0 --metrics-bind-address=127.0.0.1:10249
}
