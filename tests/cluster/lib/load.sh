# shellcheck shell=bash
# Image archives into the nodes.

# load_images ARCHIVE...: into every node, or into the one that NODE names. What a node already has is left out: comparing names costs a hundredth of an import.
load_images() {
  local archive node jobs=() job
  for archive; do [[ -f $archive ]] || fail "there is no image archive $archive"; done
  for node in ${NODE:-$(running_nodes)}; do
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
  ctr_on "$node" images import - < "$archive" > /dev/null
  say "loaded ${archive##*/} into $node ($((SECONDS - began)) s)"
}

# containerd knows an image twice, by its tag and by the digest of its configuration (the image ID), both with one target. The
# archive has just these two; its tags may lack the parts that containerd adds. One that cannot be read like this is imported.
has_images() { # NODE ARCHIVE
  local wanted present
  wanted=$(tar -xOf "$2" --occurrence=1 manifest.json 2> /dev/null |
    jq -er 'def full: if test("/") | not then "docker.io/library/" + . elif test("^(localhost|[^/]*[.:][^/]*)/") then . else "docker.io/" + . end;
      .[] | (.Config | capture("(?<id>[0-9a-f]{64})").id) as $id | .RepoTags[] | "\(full) \($id)"' 2> /dev/null) || return 1
  present=$(ctr_on "$1" images ls | awk 'NR > 1 {target[$1] = $3} END {for (name in target) print name, target[name]}')
  awk 'NR == FNR {target[$1] = $2; next} {t = target[$1]; if (t == "" || t != target["sha256:" $2]) exit 1}' \
    <(echo "$present") <(echo "$wanted")
}

# copy_images FROM TO: what the second node lacks, so that it does not matter when it came or came back.
copy_images() {
  local names
  names=$(comm -23 <(images_on "$1") <(images_on "$2") | cut -d' ' -f1)
  [[ -n $names ]] || return 0
  # Names have no spaces.
  # shellcheck disable=SC2086
  ctr_on "$1" images export - $names | ctr_on "$2" images import - > /dev/null
}
images_on() { ctr_on "$1" images ls | awk 'NR > 1 && $1 !~ /^sha256:/ {print $1, $3}' | sort; }
