# shellcheck shell=bash
# Image archives into the nodes.

# load_images ARCHIVE...: into every node. What a node already has is left out: comparing names costs a hundredth of an import.
load_images() {
  local archive node jobs=() job
  for archive; do [[ -f $archive ]] || fail "there is no image archive $archive"; done
  for node in $(nodes); do
    (for archive; do load_image "$node" "$archive"; done) &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || fail "loading images failed; containerd's message is above"; done
}

load_image() { # NODE ARCHIVE
  local node=$1 archive=$2 began=$SECONDS
  if has_images "$node" "$archive"; then
    say "$node has all of ${archive##*/}"
    return
  fi
  ctr_on "$node" images import --no-unpack=false - < "$archive" > /dev/null
  say "loaded ${archive##*/} into $node ($((SECONDS - began)) s)"
}

# containerd knows an image twice, by its tag and by the digest of its configuration (the image ID), both with one target. The
# archive has just these two. An archive that cannot be read like this is simply imported.
has_images() { # NODE ARCHIVE
  local wanted present
  wanted=$(tar -xOf "$2" --occurrence=1 manifest.json 2> /dev/null |
    jq -er '.[] | (.Config | capture("(?<id>[0-9a-f]{64})").id) as $id | .RepoTags[] | "\(.) \($id)"' 2> /dev/null) || return 1
  present=$(ctr_on "$1" images ls | awk 'NR > 1 {target[$1] = $(3)} END {for (name in target) print name, target[name]}')
  awk 'NR == FNR {target[$1] = $2; next} {t = target[$1]; if (t == "" || t != target["sha256:" $2]) exit 1}' \
    <(echo "$present") <(echo "$wanted")
}

copy_images() { # FROM TO
  local names
  names=$(ctr_on "$1" images ls -q | grep -v '^sha256:')
  # Names have no spaces.
  # shellcheck disable=SC2086
  ctr_on "$1" images export - $names | ctr_on "$2" images import - > /dev/null
}
