# shellcheck shell=bash
# What builds and holds container images on this machine: docker, podman or buildah. Sourced by scripts/images and
# scripts/base-images, which set `engine` to what find_engine prints.
# shellcheck disable=SC2154 # engine
# shellcheck source=scripts/environment
. scripts/environment

# The names by which scripts/base-images knows both: a changed word there is another recipe, and makes all images anew.
cache_dir() { echo "$ANNEAL_CACHE"; }
install_packages() { packages "$1=$1"; }

# Prints docker, podman or buildah. ANNEAL_ENGINE decides where several are there. A docker client without a daemon or without
# BuildKit is common and no use; buildah needs neither, so it is what gets installed where nothing is.
find_engine() {
    if [ -n "${ANNEAL_ENGINE:-}" ]; then
        echo "$ANNEAL_ENGINE"
    elif command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; then
        echo docker
    elif command -v buildah >/dev/null; then
        echo buildah
    elif command -v podman >/dev/null; then
        echo podman
    else
        packages buildah=buildah
        echo buildah
    fi
}

# The image's id, or nothing where there is no such image. Ids are content: the digest of the image's configuration.
image_id() {
    case "$engine" in
    docker) docker image inspect --format '{{.Id}}' "$1" 2>/dev/null | sed 's/^sha256://' ;;
    podman) podman image inspect --format '{{.Id}}' "$1" 2>/dev/null ;;
    buildah) buildah inspect --type image --format '{{.FromImageID}}' "$1" 2>/dev/null ;;
    esac || true
}

# image_label IMAGE LABEL
image_label() {
    case "$engine" in
    docker) docker image inspect --format "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null ;;
    podman) podman image inspect --format "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null ;;
    buildah) buildah inspect --type image --format "{{index .OCIv1.Config.Labels \"$2\"}}" "$1" 2>/dev/null ;;
    esac || true
}

image_bytes() {
    case "$engine" in
    docker | podman) "$engine" image inspect --format '{{.Size}}' "$1" ;;
    buildah) buildah images --json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["size"])' ;;
    esac
}
