# shellcheck shell=bash
# Apache Cassandra, which stands in for ScyllaDB: the same protocol, drivers and statements. Node N of a ring listens on
# 127.0.0.N, all on the same port, because drivers learn the addresses of a ring from a table that has no ports.

cql_port() { echo $((port_base + 16)); }
cql_storage_port() { echo $((port_base + 17)); }
cql_secure_port() { echo $((port_base + 18)); }
cql_secure_storage_port() { echo $((port_base + 19)); }

cql_address() { echo "127.0.0.$1"; }

# Where clients are told to find node $1.
cql_advertised_address() { echo "127.0.$((${#proxies} > 0)).$1"; }

# An even ring, known from the start: nothing is negotiated, so that three nodes may start at once.
readonly RING_TOKENS=(-9223372036854775808 -3074457345618258603 3074457345618258602)

cql_configure() {
    local n seeds=()
    for ((n = 1; n <= cql_nodes; n++)); do
        seeds+=("$(cql_address "$n"):$(cql_storage_port)")
    done
    for ((n = 1; n <= cql_nodes; n++)); do
        mkdir -p "$dir/cql-$n"
        cql_settings "cql-$n" "$(cql_address "$n")" "$(cql_port)" "$(cql_storage_port)" "$(join "${seeds[@]}")" \
            "${RING_TOKENS[n - 1]}" >"$dir/cql-$n/cassandra.yaml"
        cat >>"$dir/cql-$n/cassandra.yaml" <<Y
broadcast_rpc_address: $(cql_advertised_address "$n")
authenticator: AllowAllAuthenticator
authorizer: AllowAllAuthorizer
Y
        cql_run "cql-$n"
    done
    [ -z "$secure" ] || cql_configure_secure
}

# A node of its own: who may log in is decided for a whole node, not for a port of it.
cql_configure_secure() {
    local address=127.0.0.1
    mkdir -p "$dir/cql-secure"
    cql_settings cql-secure "$address" "$(cql_secure_port)" "$(cql_secure_storage_port)" \
        "$address:$(cql_secure_storage_port)" "${RING_TOKENS[0]}" >"$dir/cql-secure/cassandra.yaml"
    cat >>"$dir/cql-secure/cassandra.yaml" <<Y
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
client_encryption_options:
  enabled: true
  optional: false
  keystore: $dir/tls/server.p12
  keystore_password: $KEYSTORE_PASSWORD
  store_type: PKCS12
  accepted_protocols: [TLSv1.2, TLSv1.3]
Y
    cql_run cql-secure
}

# cql_settings UNIT ADDRESS PORT STORAGE_PORT SEEDS TOKEN
cql_settings() {
    local home=$dir/$1 address=$2 port=$3 storage_port=$4 seeds=$5 token=$6
    cat <<Y
cluster_name: wardline
num_tokens: 1
initial_token: $token
auto_bootstrap: false
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "$seeds"
listen_address: $address
storage_port: $storage_port
rpc_address: $address
start_native_transport: true
native_transport_port: $port
role_manager: CassandraRoleManager
data_file_directories: [ $home/data ]
commitlog_directory: $home/commitlog
saved_caches_directory: $home/saved_caches
hints_directory: $home/hints
cdc_raw_directory: $home/cdc_raw

# A row is acknowledged when it is on the disk. With periodic, a node that is killed forgets acknowledged rows. Each writer
# waits for its sync, so there have to be many.
commitlog_sync: batch
concurrent_writes: 128
commitlog_segment_size: 16MiB
commitlog_total_space: 512MiB
commitlog_disk_access_mode: legacy
disk_failure_policy: stop
commit_failure_policy: stop
trickle_fsync: true

# Small: two cores carry everything.
memtable_allocation_type: offheap_objects
concurrent_reads: 16
concurrent_compactors: 1
hinted_handoff_enabled: true
hints_flush_period: 1000ms
auto_snapshot: false
internode_compression: none
batch_size_warn_threshold: 128KiB
batch_size_fail_threshold: 1024KiB

read_request_timeout: 5000ms
range_request_timeout: 10000ms
write_request_timeout: 2000ms
cas_contention_timeout: 1800ms
request_timeout: 10000ms
storage_compatibility_mode: NONE
Y
}

cql_logging() {
    cat <<'L'
<configuration scan="false">
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{ISO8601} %-5level [%thread] %logger{1}:%line %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="out"/></root>
</configuration>
L
}

# What Cassandra asks of Java 17, as its own start script gives it.
readonly CASSANDRA_MODULES=(
    --add-exports=java.base/{java.lang.ref,jdk.internal.misc,jdk.internal.ref,sun.nio.ch}"=ALL-UNNAMED"
    --add-exports=java.management.rmi/com.sun.jmx.remote.internal.rmi=ALL-UNNAMED
    --add-exports=java.rmi/sun.rmi.{registry,server}"=ALL-UNNAMED"
    --add-exports=java.sql/java.sql=ALL-UNNAMED
    --add-exports=jdk.unsupported/sun.misc=ALL-UNNAMED
    --add-opens=java.base/java.{io,lang,lang.module,lang.reflect,nio,util,util.concurrent,util.concurrent.atomic}"=ALL-UNNAMED"
    --add-opens=java.base/jdk.internal.{loader,math,module,ref,reflect,util.jar}"=ALL-UNNAMED"
    --add-opens=java.base/sun.nio.ch=ALL-UNNAMED
    --add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED
)

cql_run() {
    local unit=$1 home=$dir/$1 command=()
    mkdir -p "$home/tmp"
    cql_logging >"$home/logback.xml"
    # Root may lock memory, and Cassandra then pins its whole heap: drop that one right.
    [ "$(id -u)" -ne 0 ] || command=(setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock)
    command+=("$java" "${CASSANDRA_MODULES[@]}" "-javaagent:$(echo "$cassandra_home"/lib/jamm-*.jar)"
        -Xms192M "-Xmx$cql_heap" -Xss256k "-XX:MaxDirectMemorySize=$cql_heap" -XX:+UseG1GC -XX:+ExitOnOutOfMemoryError
        -XX:-UsePerfData -Xshare:auto)
    [ "$jit" = full ] || command+=(-XX:TieredStopAtLevel=1)
    command+=(-Djava.net.preferIPv4Stack=true -Djava.security.manager=allow "-Djava.io.tmpdir=$home/tmp"
        -Djdk.attach.allowAttachSelf=true -Dio.netty.tryReflectionSetAccessible=true
        "-Dcassandra.config=file://$home/cassandra.yaml" "-Dlogback.configurationFile=$home/logback.xml"
        "-Dcassandra.storagedir=$home" "-Dcassandra.logdir=$home" -Dcassandra-foreground=yes
        # The ring is known, so there is nothing to wait for.
        -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=1000
        -Dcassandra.superuser_setup_delay_ms=0 -Dcassandra.shutdown_announce_in_ms=100
        -cp "$cassandra_home/lib/*" org.apache.cassandra.service.CassandraDaemon)
    write_run "$unit" "${command[@]}" <<<'ulimit -S -l 64 || true'
}

# Whether node $1 answers a request for its options (protocol 4) with what it supports, and sees the nodes that run.
cql_answers() {
    local answer n
    if [ "$1" = secure ]; then
        cql_secure_answers
        return
    fi
    answer=$(ask "$(cql_address "$1")" "$(cql_port)" '\x04\x00\x00\x00\x05\x00\x00\x00\x00' 5)
    [ "${answer:8:2}" = 06 ] || return 1
    for ((n = 1; n <= cql_nodes; n++)); do
        [ "$n" = "$1" ] || ! running "cql-$n" || [ "$(cql_sightings "$1" "$n")" -gt 0 ] || return 1
    done
}

# cql_sightings N M: how often node N, since it started, has seen node M come up.
cql_sightings() {
    grep -c "$(cql_address "$2"):$(cql_storage_port) is now UP" "$dir/cql-$1/log" || true
}

# cql_remember_sightings UNIT…: keeps, for these nodes, how often each node that runs has seen them come up.
cql_remember_sightings() {
    local unit n
    declare -gA cql_seen=()
    for unit in "$@"; do
        [[ $unit == cql-[123] ]] || continue
        for ((n = 1; n <= cql_nodes; n++)); do
            ! running "cql-$n" || cql_seen[$n ${unit#cql-}]=$(cql_sightings "$n" "${unit#cql-}")
        done
    done
}

# Returns when each has seen them once more.
cql_await_sightings() {
    local pair from=$SECONDS
    for pair in "${!cql_seen[@]}"; do
        # shellcheck disable=SC2086
        until (($(cql_sightings $pair) > ${cql_seen[$pair]})); do
            ((SECONDS - from < WAIT_SECONDS)) || die "node ${pair% *} did not see node ${pair#* } come up"
            sleep 0.1
        done
    done
}

# Whether our user may log in. Until then it is created, which the node's first user may do once the node has made it.
cql_secure_answers() {
    local password
    password=$(<"$dir/tls/password")
    cql_secure_query "$SECURE_USER" "$password" 'SELECT key FROM system.local' && return
    cql_secure_query cassandra cassandra "CREATE ROLE IF NOT EXISTS $SECURE_USER WITH PASSWORD = '$password' \
AND LOGIN = true AND SUPERUSER = true" || true
    return 1
}

# cql_secure_query USER PASSWORD STATEMENT: succeeds when the node has carried it out. Speaks protocol 4 itself: STARTUP,
# AUTH_RESPONSE, QUERY; no client is needed on this machine for it.
cql_secure_query() {
    local credentials status=1 to from
    taken 127.0.0.1 "$(cql_secure_port)" || return 1
    coproc node { exec timeout 10 openssl s_client -quiet -connect "127.0.0.1:$(cql_secure_port)" 2>/dev/null; }
    # Subshells do not see a coprocess's own descriptors.
    exec {to}>&"${node[1]}" {from}<&"${node[0]}"
    # SASL PLAIN: two strings, each after a zero.
    credentials=$(cql_int $((${#1} + ${#2} + 2)))"\x00$1\x00$2"
    if [ "$(cql_exchange 01 $((2 + 2 + 11 + 2 + 5)) '\x00\x01\x00\x0bCQL_VERSION\x00\x053.0.0')" = 03 ] &&
        [ "$(cql_exchange 0f $((4 + 2 + ${#1} + ${#2})) "$credentials")" = 10 ] &&
        [ "$(cql_exchange 07 $((4 + ${#3} + 3)) "$(cql_int ${#3})$3\x00\x01\x00")" = 08 ]; then
        status=0
    fi
    exec {to}>&- {from}<&-
    kill "$node_PID" 2>/dev/null || true
    wait "$node_PID" 2>/dev/null || true
    return "$status"
}

# cql_exchange OPCODE LENGTH BODY: sends a frame into `to`; prints the opcode of the answer in `from`.
cql_exchange() {
    local header
    printf '%b' "\x04\x00\x00\x00\x$1$(cql_int "$2")$3" >&"$to" 2>/dev/null || return 0
    header=$(head -c 9 <&"$from" | od -An -v -tx1 | tr -d ' \n')
    [ "${#header}" -eq 18 ] || return 0
    head -c $((16#${header:10:8})) <&"$from" >/dev/null
    echo "${header:8:2}"
}

# A number as four bytes, escaped.
cql_int() {
    printf '\\x%02x' $(($1 >> 24 & 255)) $(($1 >> 16 & 255)) $(($1 >> 8 & 255)) $(($1 & 255))
}
