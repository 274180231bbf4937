# shellcheck shell=bash
# Kafka brokers that are controllers too (KRaft). Each has three listeners: CLIENT for whoever uses it, PEER for the other
# brokers, CONTROLLER for the quorum. Only CLIENT is advertised elsewhere when a proxy stands in front of it, so that what
# the proxy does to clients never touches replication.

kafka_port() { echo $((port_base + $1)); }
kafka_peer_port() { echo $((port_base + 3 + $1)); }
kafka_controller_port() { echo $((port_base + 6 + $1)); }
kafka_secure_port() { echo $((port_base + 9 + $1)); }

# Where clients are told to find broker $1.
kafka_advertised_port() {
    local ports
    if [ -z "$proxies" ]; then
        kafka_port "$1"
    elif [ -n "$kafka_proxy_ports" ]; then
        IFS=, read -ra ports <<<"$kafka_proxy_ports"
        echo "${ports[$1 - 1]}"
    else
        echo $((port_base + 12 + $1))
    fi
}

kafka_replication() { echo "$brokers"; }
kafka_min_insync() { echo $((brokers > 1 ? 2 : 1)); }

# A random UUID as Kafka writes one. A leading dash would be read as an option.
kafka_cluster_id() {
    local id=-
    while [[ $id == -* ]]; do
        id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')
    done
    echo "$id"
}

# kafka_configure CLUSTER_ID: writes the settings of all brokers.
kafka_configure() {
    local n voters=()
    for ((n = 1; n <= brokers; n++)); do
        voters+=("$n@127.0.0.1:$(kafka_controller_port "$n")")
    done
    for ((n = 1; n <= brokers; n++)); do
        mkdir -p "$dir/broker-$n"
        kafka_settings "$n" "$(join "${voters[@]}")" >"$dir/broker-$n/server.properties"
        kafka_logging >"$dir/broker-$n/log4j2.yaml"
        kafka_run "$n" "$1"
    done
}

kafka_settings() {
    local n=$1 voters=$2
    local peer listeners advertised protocols
    peer=PEER://127.0.0.1:$(kafka_peer_port "$n")
    listeners=CLIENT://127.0.0.1:$(kafka_port "$n"),$peer
    advertised=CLIENT://127.0.0.1:$(kafka_advertised_port "$n"),$peer
    protocols=CLIENT:PLAINTEXT,PEER:PLAINTEXT,CONTROLLER:PLAINTEXT
    if [ -n "$secure" ]; then
        listeners+=,SECURE://127.0.0.1:$(kafka_secure_port "$n")
        advertised+=,SECURE://127.0.0.1:$(kafka_secure_port "$n")
        protocols+=,SECURE:SASL_SSL
    fi
    cat <<P
process.roles=broker,controller
node.id=$n
controller.quorum.voters=$voters
listeners=$listeners,CONTROLLER://127.0.0.1:$(kafka_controller_port "$n")
advertised.listeners=$advertised
listener.security.protocol.map=$protocols
controller.listener.names=CONTROLLER
inter.broker.listener.name=PEER
log.dirs=$dir/broker-$n/data

# An acknowledged record is in the memory of two brokers, and none that lacks it may lead.
default.replication.factor=$(kafka_replication)
min.insync.replicas=$(kafka_min_insync)
unclean.leader.election.enable=false
# A topic that nobody has created is a mistake.
auto.create.topics.enable=false

# How soon a dead broker is replaced, and a dead consumer.
broker.session.timeout.ms=6000
broker.heartbeat.interval.ms=1000
group.min.session.timeout.ms=$session_floor_ms
group.initial.rebalance.delay.ms=0

# Small: two cores carry everything.
offsets.topic.num.partitions=4
offsets.topic.replication.factor=$(kafka_replication)
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=$(kafka_replication)
transaction.state.log.min.isr=$(kafka_min_insync)
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=8388608
log.segment.delete.delay.ms=1000
P
    [ -z "$secure" ] || cat <<P

listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location=$dir/tls/server.pem
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
P
}

kafka_logging() {
    cat <<L
Configuration:
  Appenders:
    Console: {name: out, PatternLayout: {pattern: "%d %p %m (%c)%n"}}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: out}}
L
}

# The first start formats the data folder, which also makes the user of the secure listener known.
kafka_run() {
    local n=$1 id=$2 home=$dir/broker-$1
    local jvm=("$java" -XX:+UseSerialGC -Xshare:auto -cp "$kafka_home/lib/*" "-Dlog4j2.configurationFile=$home/log4j2.yaml")
    local format=("${jvm[@]}" -Xmx128m -XX:TieredStopAtLevel=1 kafka.tools.StorageTool format
        --cluster-id "$id" --config server.properties)
    [ -z "$secure" ] || format+=(--add-scram "SCRAM-SHA-512=[name=$SECURE_USER,password=$(<"$dir/tls/password")]")
    jvm+=(-Xms128m "-Xmx$kafka_heap")
    [ "$jit" = full ] || jvm+=(-XX:TieredStopAtLevel=1)
    write_run "broker-$n" "${jvm[@]}" kafka.Kafka server.properties < <(
        printf '[ -f data/meta.properties ] ||'
        printf ' %q' "${format[@]}"
        echo
    )
}

# Whether broker $1 answers and knows as many brokers as run: a request for metadata, version 1, of no topic. The answer
# begins with its length, our number, and the count of brokers.
kafka_answers() {
    local answer n others=0
    answer=$(ask 127.0.0.1 "$(kafka_port "$1")" '\x00\x00\x00\x0e\x00\x03\x00\x01\x00\x00\x00\x01\xff\xff\x00\x00\x00\x00' 12)
    [ "${#answer}" -eq 24 ] || return 1
    for ((n = 1; n <= brokers; n++)); do
        ! running "broker-$n" || ((++others))
    done
    ((16#${answer:16:8} >= others))
}
