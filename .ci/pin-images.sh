#!/bin/sh
# Prints the container images of the Dockerfile and compose.yaml with the digests that their registries have now, as lines
# for `.env`. A build and Compose then use exactly these images. Run it again to upgrade them.
#
# Needs docker with buildx, and the network. Other registries: PYTHON_IMAGE=registry.example/python:3.13-slim and so on.
set -eu

pin() {
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$2") && [ -n "$digest" ] || {
        printf 'The digest of %s could not be read, for the reason above.\n' "$2" >&2
        exit 1
    }
    printf '%s=%s@%s\n' "$1" "$2" "$digest"
}

command -v docker >/dev/null 2>&1 || {
    printf 'docker is not on PATH. Run this on a machine that builds images.\n' >&2
    exit 1
}
pin PYTHON_IMAGE "${PYTHON_IMAGE:-python:3.13-slim}"
pin POSTGRES_IMAGE "${POSTGRES_IMAGE:-postgres:18}"
pin VALKEY_IMAGE "${VALKEY_IMAGE:-valkey/valkey:9}"
pin CADDY_IMAGE "${CADDY_IMAGE:-caddy:2}"
