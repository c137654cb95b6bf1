#!/bin/sh
# Compare an image with the tuple of versions.toml: check-versions.sh NAME=WANTED...
#
# NAME is an environment variable that NVIDIA's images set; what follows WANTED in it (a build number, a suffix) does
# not matter. Exits 1 and names every one that differs.
set -eu

failed=0
for pair in "$@"; do
    name=${pair%%=*}
    wanted=${pair#*=}
    eval "found=\${$name:-}"
    # shellcheck disable=SC2154  # eval sets it
    case $found in
    "$wanted" | "$wanted".* | "$wanted"+* | "$wanted"-*) ;;
    *)
        echo "$name is '$found' in this image, versions.toml says '$wanted'" >&2
        failed=1
        ;;
    esac
done
exit $failed
