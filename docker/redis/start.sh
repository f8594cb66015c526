#!/bin/sh
# Starts Redis with redis.conf beside this file and the password of REDIS_PASSWORD, which thereby
# is in no list of processes. Further arguments go to redis-server.
set -eu
: "${REDIS_PASSWORD:?is not set}"
umask 077
conf="${TMPDIR:-/tmp}/redis.conf"
{
    cat "$(dirname "$0")/redis.conf"
    printf 'requirepass "%s"\n' "$REDIS_PASSWORD"
} >"$conf"
unset REDIS_PASSWORD
exec redis-server "$conf" "$@"
