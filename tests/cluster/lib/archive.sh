# shellcheck shell=bash
# Image archives without a registry or a daemon, and the images that every cluster starts with.

# add_image FOLDER NAME ENTRYPOINT ROOT: one layer of what lies in ROOT. close_images FOLDER ARCHIVE ends the archive.
add_image() {
  local folder=$1 name=$2 entrypoint=$3 root=$4 layer config
  mkdir -p "$root/tmp"
  chmod 1777 "$root/tmp"
  # Owners, order and times are fixed, so that the same files always are the same image.
  tar -C "$root" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -cf "$folder/layer" .
  layer=$(sha256sum < "$folder/layer" | cut -d' ' -f1)
  mv "$folder/layer" "$folder/$layer.tar"
  jq -n --arg layer "sha256:$layer" --arg run "$entrypoint" --arg arch "$(go_arch)" '{architecture: $arch, os: "linux",
    config: {Env: ["PATH=/bin"], Entrypoint: [$run]}, rootfs: {type: "layers", diff_ids: [$layer]}}' > "$folder/config"
  config=$(sha256sum < "$folder/config" | cut -d' ' -f1)
  mv "$folder/config" "$folder/$config.json"
  jq -n --arg name "$name" --arg config "$config.json" --arg layer "$layer.tar" \
    '{Config: $config, RepoTags: [$name], Layers: [$layer]}' >> "$folder/images"
  rm -rf "$root"
}

close_images() {
  jq -s . "$1/images" > "$1/manifest.json"
  rm "$1/images"
  # The manifest comes first: a reader finds what is in the archive without going through all of it.
  (cd "$1" && tar -cf archive manifest.json [0-9a-f]*.json [0-9a-f]*.tar)
  mv "$1/archive" "$2"
}

# The pause program and the archive of what pods of the cluster itself need, made once beside the tools.
make_images() {
  local work name applet
  [[ -f $cache/images.tar ]] && return
  lock "$cache.lock" "another build of the same images"
  if [[ ! -f $cache/images.tar ]]; then
    work=$cache/.images
    rm -rf "$work"
    mkdir -p "$work/root/bin"
    gcc -O2 -static -s -o "$work/pause" "$here/pause.c" || fail "compiling pause.c failed; it needs gcc and libc6-dev"
    cp "$work/pause" "$bin/.pause" && mv "$bin/.pause" "$bin/pause"
    mv "$work/pause" "$work/root/pause"
    add_image "$work" localhost/pause:1 /pause "$work/root"

    mkdir -p "$work/root/bin"
    cp "$(type -P busybox)" "$work/root/bin/busybox"
    for applet in $(busybox --list); do
      [[ $applet == busybox ]] || ln -s busybox "$work/root/bin/$applet"
    done
    add_image "$work" localhost/busybox:1 sh "$work/root"

    for name in coredns metrics-server local-path-provisioner; do
      install -D "$bin/$name" "$work/root/bin/$name"
      add_image "$work" "localhost/$name:1" "$name" "$work/root"
    done
    close_images "$work" "$cache/images.tar"
    rm -rf "$work"
  fi
  unlock "$cache.lock"
}
