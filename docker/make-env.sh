#!/bin/sh
# Prints .env.example with every empty secret filled in at random:
#
#   sh docker/make-env.sh > .env
set -eu
umask 077

random() {
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

while IFS= read -r line; do
    case "$line" in
    NIF_ADMIN_KEY=) printf '%snif_%s\n' "$line" "$(random)" ;;
    [A-Z]*_PASSWORD= | [A-Z]*_KEY=) printf '%s%s\n' "$line" "$(random)" ;;
    *) printf '%s\n' "$line" ;;
    esac
done <"$(dirname "$0")/../.env.example"
