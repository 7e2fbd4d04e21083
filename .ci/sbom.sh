#!/bin/sh
# Writes the packages that Docora runs with, and their hashes, to a file in the format CycloneDX (JSON).
#
#   .ci/sbom.sh FILE
#
# BIN   the folder of the tools, instead of .venv/bin
set -eu

cd "$(dirname "$0")/.."
bin=${BIN:-.venv/bin}
version=$("$bin/python" -c 'import docora; print(docora.__version__)')
project=$(mktemp)
trap 'rm -f "$project"' EXIT
trap 'exit 130' INT TERM
# The version of the project is in its code. The tool reads it from here.
sed "s/^dynamic = .*/version = \"$version\"/" pyproject.toml >"$project"
"$bin/python" -W ignore -m cyclonedx_py requirements --pyproject "$project" --mc-type application \
    --output-reproducible --of JSON -o "$1" requirements.txt
