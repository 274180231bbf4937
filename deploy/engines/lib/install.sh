# shellcheck shell=bash
# Brings the engines' programs into $install. What is there already is left alone, so this costs nothing the second time.

readonly KAFKA_VERSION=4.3.0
readonly CASSANDRA_VERSION=5.0.9
readonly COPY_DEPENDENCIES=org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies
readonly ATTEMPTS=3

readonly kafka_home=$install/kafka-$KAFKA_VERSION
readonly cassandra_home=$install/cassandra-$CASSANDRA_VERSION
readonly redis_home=$install/redis

# Where a Java 17 is: Cassandra 5.0 runs on no later one. Fails when there is none.
find_java() {
    local candidate
    for candidate in ${JAVA_HOME:+"$JAVA_HOME/bin/java"} "$(command -v java || true)" /usr/lib/jvm/*17*/bin/java; do
        if [ -x "$candidate" ] && "$candidate" -version 2>&1 | grep -q 'version "17\.'; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Maven and Java, from Debian when we may.
install_prerequisites() {
    local missing=()
    command -v mvn >/dev/null || missing+=(maven)
    find_java >/dev/null || missing+=(openjdk-17-jre-headless)
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        die "install these first: ${missing[*]} (on Debian 12: apt-get install ${missing[*]})"
    fi
    say "installing ${missing[*]} by apt-get"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# install_from_maven NAME VERSION HOME: the jars of NAME.xml in HOME/lib. HOME appears only when it is whole.
install_from_maven() {
    local name=$1 version=$2 home=$3 from=$EPOCHREALTIME attempt=1
    [ ! -d "$home" ] || return 0
    say "installing $name $version from Maven Central"
    rm -rf "$home.part"
    mkdir -p "$home.part"
    # Strict about checksums; the pom is copied because Maven writes beside it.
    cp "$here/$name.xml" "$home.part/pom.xml"
    until mvn --batch-mode --quiet --strict-checksums --file "$home.part/pom.xml" -Dengine.version="$version" \
        "$COPY_DEPENDENCIES" -DincludeScope=runtime -DoutputDirectory="$home.part/lib" >"$home.part/log" 2>&1; do
        tail -n 5 "$home.part/log" >&2
        [ "$attempt" -lt "$ATTEMPTS" ] || die "Maven failed $ATTEMPTS times"
        sleep $((attempt++ * 3))
    done
    # Native code of other platforms is half of the size.
    find "$home.part/lib" -name '*.jar' \( -name '*osx*' -o -name '*windows*' -o -name '*kqueue*' -o -name '*riscv64*' \) \
        ! -name '*classes*' -delete
    mv "$home.part" "$home"
    say "$name $version installed in $(seconds_since "$from") s, $(du -sm "$home" | cut -f1) MiB"
}

# The Redis on PATH, else Debian's packages unpacked into a folder of ours: no root, no service that starts by itself.
install_redis() {
    local from=$EPOCHREALTIME package packages
    ! command -v redis-server >/dev/null && [ ! -d "$redis_home" ] || return 0
    command -v apt-get >/dev/null || die "no redis-server on PATH and no apt-get to fetch one: install Redis 7"
    say "unpacking Debian's redis-server"
    if [ "$(id -u)" -eq 0 ] && ! apt-cache show redis-tools >/dev/null 2>&1; then
        apt-get update -qq
    fi
    rm -rf "$redis_home.part"
    mkdir -p "$redis_home.part/packages"
    # What is missing on this machine, apt's solver tells; the two, also when they are installed where PATH does not see them.
    mapfile -t packages < <(
        {
            printf '%s\n' redis-server redis-tools
            apt-get --simulate --no-install-recommends install redis-server | awk '/^Inst / { print $2 }'
        } | sort -u
    )
    (
        cd "$redis_home.part/packages" || exit
        # Without the option, apt as root warns that its own user may not write here.
        download() { apt-get -qq -o APT::Sandbox::User="$(id -un)" download "${packages[@]}"; }
        # Lists that are too old name packages that are not there any more.
        download || { [ "$(id -u)" -eq 0 ] && apt-get update -qq && download; }
    )
    for package in "$redis_home.part/packages"/*.deb; do
        dpkg -x "$package" "$redis_home.part"
    done
    rm -r "$redis_home.part/packages"
    # Its libraries lie beside it.
    cat >"$redis_home.part/redis-server" <<'W'
#!/bin/sh
LD_LIBRARY_PATH=$(echo "${0%/*}"/usr/lib/*-linux-gnu) exec "${0%/*}/usr/bin/redis-server" "$@"
W
    chmod +x "$redis_home.part/redis-server"
    mv "$redis_home.part" "$redis_home"
    say "Redis unpacked in $(seconds_since "$from") s"
}

install_engines() {
    install_prerequisites
    mkdir -p "$install"
    # One at a time; the lock goes with this process.
    exec 8>"$install/lock"
    flock 8
    install_from_maven kafka "$KAFKA_VERSION" "$kafka_home"
    install_from_maven cassandra "$CASSANDRA_VERSION" "$cassandra_home"
    install_redis
    exec 8>&-
}
