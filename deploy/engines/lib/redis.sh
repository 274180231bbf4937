# shellcheck shell=bash
# One Redis that keeps nothing: the registry holds hints only, and the tests that kill it expect it empty.

redis_port() { echo $((port_base + 20)); }
redis_secure_port() { echo $((port_base + 21)); }

redis_configure() {
    redis_unit redis --port "$(redis_port)"
    [ -z "$secure" ] || redis_unit redis-secure --port 0 --tls-port "$(redis_secure_port)" \
        --tls-cert-file "$dir/tls/server.crt" --tls-key-file "$dir/tls/server.key" --tls-auth-clients no \
        --user default off --user "$SECURE_USER" on ">$(<"$dir/tls/password")" '~*' '&*' +@all
}

redis_unit() {
    local unit=$1 program libraries
    shift
    mkdir -p "$dir/$unit"
    if ! program=$(command -v redis-server); then
        program=$redis_home/usr/bin/redis-server
        libraries=$(echo "$redis_home"/usr/lib/*-linux-gnu)
    fi
    write_run "$unit" "$program" --bind 127.0.0.1 --daemonize no --save '' --appendonly no \
        --maxmemory 128mb --maxmemory-policy allkeys-lru "$@" < <(
        [ -z "${libraries:-}" ] || printf 'export LD_LIBRARY_PATH=%q\n' "$libraries"
    )
}

redis_answers() {
    if [ "$1" = redis-secure ]; then
        # It listens when it is ready.
        taken 127.0.0.1 "$(redis_secure_port)"
    else
        # "+PONG"
        [ "$(ask 127.0.0.1 "$(redis_port)" 'PING\r\n' 5)" = 2b504f4e47 ]
    fi
}
