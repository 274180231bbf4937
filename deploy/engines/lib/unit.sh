# shellcheck shell=bash
# A unit is one process of an engine: broker-1, cql-3, redis. Its folder $dir/UNIT holds `run`, which starts it, its
# settings and data, its `log`, and `pid`: the process and when the kernel started it, so that a number that the system
# has given to somebody else since is never signalled. Every unit leads a session of its own; a Ctrl-C does not reach it.

# process_of PID: its state and the tick it started at; fails when there is none, or only what is left of one.
process_of() {
    local stat fields
    { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
    # The name, in brackets, may hold anything; what follows it does not.
    read -ra fields <<<"${stat##*) }"
    [[ ${fields[0]} != [ZX] ]] || return 1
    echo "${fields[0]} ${fields[19]}"
}

# state_of UNIT: the state of its process, one letter; fails when it does not run.
state_of() {
    local pid started process
    { read -r pid started <"$dir/$1/pid"; } 2>/dev/null || return 1
    process=$(process_of "$pid") || return 1
    [ "${process#* }" = "$started" ] || return 1
    echo "${process% *}"
}

alive() {
    state_of "$1" >/dev/null
}

# Alive and not paused.
running() {
    local state
    state=$(state_of "$1") && [ "$state" != T ]
}

# The unit writes its own pid, before it does anything else: whoever is interrupted here knows it all the same.
launch() {
    local home=$dir/$1
    rm -f "$home/pid"
    [ ! -f "$home/log" ] || mv "$home/log" "$home/log.before"
    setsid "$home/run" >"$home/log" 2>&1 </dev/null 9>&- &
    # The shell is not to tell of its end.
    disown $!
    until [ -s "$home/pid" ]; do
        kill -0 $! 2>/dev/null || fail_with_log "$1" "did not start"
        sleep 0.01
    done
}

# signal SIGNAL UNIT: to the unit and what it started. One that has ended is no error.
signal() {
    local pid
    alive "$2" || return 0
    read -r pid _ <"$dir/$2/pid"
    kill "-$1" -- "-$pid" 2>/dev/null || kill "-$1" "$pid" 2>/dev/null || true
}

# end SIGNAL UNIT…: sends it to all, and returns when all have ended; who has not in time is killed.
end() {
    local signal=$1 from=$SECONDS unit left
    shift
    for unit in "$@"; do
        signal "$signal" "$unit"
        # A paused process hears of it when it goes on.
        signal CONT "$unit"
    done
    while :; do
        left=()
        for unit in "$@"; do
            ! alive "$unit" || left+=("$unit")
        done
        [ "${#left[@]}" -gt 0 ] || break
        if ((SECONDS - from >= GRACE_SECONDS)); then
            say "${left[*]} did not end within $GRACE_SECONDS s of $signal: killing"
            for unit in "${left[@]}"; do
                signal KILL "$unit"
            done
            from=$SECONDS
        fi
        sleep 0.05
    done
    for unit in "$@"; do
        rm -f "$dir/$unit/pid"
    done
}

# await UNIT…: returns when all answer. Ends this program when one ends, or does not answer in time.
await() {
    local from=$EPOCHREALTIME began=$SECONDS unit left
    left=("$@")
    while [ "${#left[@]}" -gt 0 ]; do
        set -- "${left[@]}"
        left=()
        for unit in "$@"; do
            if answers "$unit"; then
                say "$unit answers after $(seconds_since "$from") s"
            else
                alive "$unit" || fail_with_log "$unit" "ended while it started"
                left+=("$unit")
            fi
        done
        [ "${#left[@]}" -gt 0 ] || break
        ((SECONDS - began < WAIT_SECONDS)) || fail_with_log "${left[0]}" "did not answer within $WAIT_SECONDS s"
        sleep 0.1
    done
}

fail_with_log() {
    say "$1 $2; the end of $dir/$1/log:"
    tail -n 30 "$dir/$1/log" >&2
    exit 1
}

answers() {
    case $1 in
        broker-*) kafka_answers "${1#broker-}" ;;
        cql-*) cql_answers "${1#cql-}" ;;
        redis*) redis_answers "$1" ;;
    esac
}

# ask ADDRESS PORT BYTES COUNT: sends the bytes (with printf's escapes) and prints the first COUNT bytes of the answer in
# hexadecimal; nothing when there is none within two seconds.
ask() {
    {
        exec 3<>"/dev/tcp/$1/$2" && printf '%b' "$3" >&3 && timeout 2 head -c "$4" <&3 | od -An -v -tx1 | tr -d ' \n'
    } 2>/dev/null || true
}

# taken ADDRESS PORT: whether somebody listens there.
taken() {
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

# write_run UNIT COMMAND…: the program that starts the unit. Standard input is more that it does first.
# shellcheck disable=SC2016
write_run() {
    local home=$dir/$1
    shift
    {
        echo '#!/usr/bin/env bash'
        echo 'set -euo pipefail'
        printf 'cd %q\n' "$home"
        # As process_of reads it.
        echo 'read -r stat </proc/self/stat'
        echo 'read -ra fields <<<"${stat##*) }"'
        echo 'echo "$$ ${fields[19]}" >pid'
        cat
        printf 'exec'
        printf ' %q' "$@"
        echo
    } >"$home/run"
    chmod 700 "$home/run"
}
