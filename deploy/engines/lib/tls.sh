# shellcheck shell=bash
# Engines that ask who is there: TLS and a password, beside the open ones. Certificates live one day more than a month;
# `wipe` and `start` make new ones.

readonly SECURE_USER=wardline
# PKCS12 wants one; the file mode is what protects the key.
readonly KEYSTORE_PASSWORD=wardline
readonly CERTIFICATE_DAYS=31

tls_configure() {
    local tls=$dir/tls
    command -v openssl >/dev/null || die "--secure needs openssl"
    mkdir -p -m 700 "$tls"
    head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$tls/password"
    {
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "$CERTIFICATE_DAYS" \
            -subj '/CN=Wardline development authority' -addext 'basicConstraints=critical,CA:TRUE' \
            -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout "$tls/ca.key" -out "$tls/ca.crt"
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=localhost' \
            -keyout "$tls/server.key" -out "$tls/server.csr"
        openssl x509 -req -in "$tls/server.csr" -CA "$tls/ca.crt" -CAkey "$tls/ca.key" -days "$CERTIFICATE_DAYS" \
            -out "$tls/server.crt" -extfile <(
            echo 'basicConstraints=critical,CA:FALSE'
            echo 'keyUsage=critical,digitalSignature'
            echo 'extendedKeyUsage=serverAuth'
            echo "subjectAltName=DNS:localhost,$(printf 'IP:127.0.0.%s,' 1 2 3)$(join IP:127.0.1.{1,2,3})"
        )
        openssl pkcs12 -export -in "$tls/server.crt" -inkey "$tls/server.key" -name server \
            -passout "pass:$KEYSTORE_PASSWORD" -out "$tls/server.p12"
    } 2>"$tls/log" || fail_with_log tls "could not be made"
    # Kafka reads key and certificate from one file.
    cat "$tls/server.key" "$tls/server.crt" >"$tls/server.pem"
    chmod 600 "$tls"/*
    rm "$tls/ca.key" "$tls/server.csr"
}
