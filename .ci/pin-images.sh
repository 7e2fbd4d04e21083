#!/bin/sh
# Prints the container images of the Dockerfile and compose.yaml with the digests that their tags have now, as lines for `.env`.
# A build and Compose then use these images instead of those that are pinned in the two files.
#
# Needs docker with buildx, and the network. Other registries: PYTHON_IMAGE=registry.example/python:3.13-slim and so on.
set -eu
cd "$(dirname "$0")/.."

pin() {
    pinned=$(sed -n "s/.*\${$1:-\([^}]*\)}.*/\1/p" compose.yaml)
    eval "image=\${$1:-$pinned}" # the environment may name another one
    image=${image%@*}
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image") && [ -n "$digest" ] || {
        printf 'The digest of %s could not be read, for the reason above.\n' "$image" >&2
        exit 1
    }
    printf '%s=%s@%s\n' "$1" "$image" "$digest"
}

command -v docker >/dev/null 2>&1 || {
    printf 'docker is not on PATH. Run this on a machine that builds images.\n' >&2
    exit 1
}
for name in PYTHON_IMAGE POSTGRES_IMAGE VALKEY_IMAGE CADDY_IMAGE; do
    pin "$name"
done
