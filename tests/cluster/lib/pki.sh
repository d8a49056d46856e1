# shellcheck shell=bash
# One authority for the whole cluster, and what each component shows to the others.

make_authority() {
  mkdir -p "$state/pki"
  chmod 700 "$state/pki"
  cd "$state/pki" || exit
  key ca
  openssl req -x509 -new -key ca.key -days 3650 -subj /CN=cluster-ca -out ca.crt
  openssl genrsa -out sa.key 2048 2> /dev/null
  openssl rsa -in sa.key -pubout -out sa.pub 2> /dev/null
  certificate apiserver /CN=kube-apiserver \
    "IP:127.0.0.1,IP:$(address_of node-1),IP:$api_service,DNS:kubernetes.default.svc,DNS:kubernetes.default,DNS:kubernetes"
  certificate kubelet-client /O=system:masters/CN=apiserver-kubelet
  certificate front-proxy /CN=front-proxy
  certificate admin /O=system:masters/CN=admin
  write_kubeconfig admin "$kubeconfig"
  local user
  for user in kube-controller-manager kube-scheduler kube-proxy; do
    certificate "$user" "/CN=system:$user"
    write_kubeconfig "$user" "$state/pki/$user.kubeconfig"
  done
}

make_node_certificate() { # NODE
  cd "$state/pki" || exit
  [[ -f $1.kubeconfig ]] && return
  certificate "$1" "/O=system:nodes/CN=system:node:$1" "IP:$(address_of "$1")"
  write_kubeconfig "$1" "$state/pki/$1.kubeconfig"
}

key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1.key"; }

certificate() { # NAME SUBJECT [ALTERNATIVE NAMES]
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" | openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" \
    -extfile <(printf 'extendedKeyUsage=serverAuth,clientAuth\n%s\n' "${3:+subjectAltName=$3}") 2> /dev/null
}

write_kubeconfig() { # USER FILE
  cat > "$2" << CONFIG
apiVersion: v1
kind: Config
clusters:
- name: anneal-$id
  cluster: {server: "https://$(address_of node-1):6443", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}
contexts:
- name: anneal-$id
  context: {cluster: anneal-$id, user: $1}
current-context: anneal-$id
CONFIG
  chmod 600 "$2"
}
