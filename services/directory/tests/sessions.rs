//! Who gets a session, and what each wrong claim is answered.

#![allow(clippy::unwrap_used)]

mod harness;

use std::time::Duration;

use harness::*;
use prost::Message as _;
use serde_json::{Value, json};
use wardline_directory::Limits;
use wardline_log::{Event, FetchLimits, Group, Start, Topic};
use wardline_proto::internal::v1::AuditRecord;
use wardline_proto::v1;

#[tokio::test]
async fn each_wrong_part_of_a_proof_is_refused_by_its_name() {
    let mut world = World::new().await;
    world.user(A, "ann").await;
    let (device, other) = (Device::new(1), Device::new(2));
    let token = world.token(A, "ann", "");
    let nonce = world.nonce(&device, &token).await;
    let good = world.claims(&token, Some(&nonce));
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        device.proof(&claims)
    };
    let header = |name: &str, value: Value| {
        let mut header = device.header();
        header[name] = value;
        jwt(&header, &good, &device.key)
    };
    let mut private = public_jwk(&device.key);
    private["d"] = "AA".into();
    let now = world.seconds();
    let cases = [
        (with("htm", json!("GET")), "htm is not POST"),
        (with("htu", json!("https://x.example/other")), "htu is not this method"),
        (with("iat", json!(now - 61)), "iat is not now"),
        (with("iat", json!(now + 61)), "iat is not now"),
        (with("jti", json!("")), "jti is empty or too long"),
        (with("jti", json!("x".repeat(257))), "jti is empty or too long"),
        (with("ath", json!("AAAA")), "ath is not the access token's"),
        (header("typ", json!("JWT")), "the typ is not dpop+jwt"),
        (header("crit", json!(["x"])), "the typ is not dpop+jwt"),
        (header("alg", json!("ES256")), "the algorithm is not that of the key"),
        (header("alg", json!("none")), "the algorithm is not that of the key"),
        (header("jwk", private), "the jwk is not a public P-256 or Ed25519 key"),
        (header("jwk", public_jwk(&other.key)), "the signature does not verify"),
        (jwt(&device.header(), &good, &other.key), "the signature does not verify"),
        ("a.b".to_owned(), "the proof is not a JWT"),
        ("x".repeat(5000), "the proof is too long"),
    ];
    for (proof, expected) in cases {
        let status = world.create(&token, &proof).await.unwrap_err();
        assert_eq!((reason(&status).as_str(), detail(&status).as_str()), ("DPOP_INVALID", expected));
    }
    for stale in [json!("made up"), json!("")] {
        let status = world.create(&token, &with("nonce", stale)).await.unwrap_err();
        assert_eq!(reason(&status), "USE_DPOP_NONCE");
    }
    // With an origin before the path it is the same method.
    world.create(&token, &with("htu", json!(format!("https://wardline.example:7405{PATH}")))).await.unwrap();
}

#[tokio::test]
async fn a_proof_is_used_once_and_a_nonce_for_two_minutes_at_most() {
    let mut world = World::new().await;
    world.user(A, "ann").await;
    let device = Device::new(1);
    let token = world.token(A, "ann", "");
    let nonce = world.nonce(&device, &token).await;
    let proof = device.proof(&world.claims(&token, Some(&nonce)));
    let session = world.create(&token, &proof).await.unwrap();
    assert!(session.device_id.is_empty() && !session.user_id.is_empty());
    let status = world.create(&token, &proof).await.unwrap_err();
    assert_eq!(detail(&status), "the proof was used before");

    world.pass(120);
    let late = device.proof(&world.claims(&token, Some(&nonce)));
    assert_eq!(reason(&world.create(&token, &late).await.unwrap_err()), "USE_DPOP_NONCE");
}

#[tokio::test]
async fn each_wrong_part_of_an_access_token_is_refused_by_its_name() {
    let mut world = World::new().await;
    world.user(A, "ann").await;
    let device = Device::new(1);
    let now = world.seconds();
    let good = json!({"iss": A, "sub": "ann", "aud": ["x", "wardline"], "exp": now + 60, "nbf": now});
    let header = json!({"alg": "EdDSA", "kid": "k1"});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        jwt(&header, &claims, &issuer_key(A))
    };
    let cases = [
        (with("iss", json!("https://else.example")), "the issuer is not trusted"),
        (with("iss", json!(B)), "the signature does not verify"),
        (with("aud", json!("other")), "the token is for another audience"),
        (with("exp", json!(now - 61)), "the token has expired"),
        (with("nbf", json!(now + 61)), "the token is not valid yet"),
        (with("exp", json!("soon")), "a claim is missing"),
        (jwt(&json!({"alg": "EdDSA", "kid": "k2"}), &good, &issuer_key(A)), "the issuer has no such key"),
        (jwt(&json!({"alg": "EdDSA"}), &good, &issuer_key(A)), "the token names no key"),
        (
            jwt(&json!({"alg": "HS256", "kid": "k1"}), &good, &issuer_key(A)),
            "the algorithm is not RS256, ES256 or EdDSA",
        ),
        (jwt(&json!({"alg": "RS256", "kid": "k1"}), &good, &issuer_key(A)), "the signature does not verify"),
        ("x".to_owned(), "the token is not a JWT"),
    ];
    for (token, expected) in cases {
        let status = world.open(&device, &token).await.unwrap_err();
        assert_eq!((reason(&status).as_str(), detail(&status).as_str()), ("ACCESS_TOKEN_INVALID", expected));
    }
    let bound = with("cnf", json!({"jkt": "another"}));
    assert_eq!(detail(&world.open(&device, &bound).await.unwrap_err()), "the access token is bound to another key");
    let unknown = world.token(A, "nobody", "");
    assert_eq!(reason(&world.open(&device, &unknown).await.unwrap_err()), "USER_UNKNOWN");
    world.open(&device, &with("sub", json!("ann"))).await.unwrap();
}

#[tokio::test]
async fn a_request_for_a_session_is_short() {
    let mut world = World::new().await;
    assert_eq!(reason(&world.create(&"x".repeat(31 << 10), "").await.unwrap_err()), "ACCESS_TOKEN_INVALID");
    assert_eq!(reason(&world.create(&"x".repeat(32 << 10), "").await.unwrap_err()), "TOO_LARGE");
}

#[tokio::test]
async fn only_who_is_known_gets_an_audit_record_of_each_refusal() {
    let counted_for = Duration::from_millis(1);
    let mut world = World::with(Limits { refusals_counted_for: counted_for, ..Limits::default() }).await;
    let device = Device::new(1);
    assert_eq!(reason(&world.create("nobody", "").await.unwrap_err()), "ACCESS_TOKEN_INVALID");
    let token = world.token(A, "ann", "");
    assert_eq!(reason(&world.create(&token, "no proof").await.unwrap_err()), "DPOP_INVALID");
    assert_eq!(reason(&world.open(&device, &token).await.unwrap_err()), "USER_UNKNOWN");
    let claims = json!({
        "iss": A, "sub": "ann", "aud": "wardline", "exp": world.seconds() + 60, "cnf": {"jkt": "another"},
    });
    let bound = jwt(&json!({"alg": "EdDSA", "kid": "k1"}), &claims, &issuer_key(A));
    assert_eq!(detail(&world.open(&device, &bound).await.unwrap_err()), "the access token is bound to another key");

    let mut found = Vec::new();
    let mut subscription = world.log.subscribe(Group::Everyone, Topic::Audit, FetchLimits::default()).await.unwrap();
    while found.len() < 4 {
        match subscription.next().await.unwrap() {
            Event::Assigned(partition) => {
                subscription.start(partition, Start::Oldest).await.unwrap();
            }
            Event::Revoked(_) => {}
            Event::Records { records, .. } => {
                let records = records.into_iter().map(|record| AuditRecord::decode(record.payload).unwrap());
                found.extend(records.filter(|record| !record.allowed).map(|record| (record.reason, record.count)));
            }
        }
    }
    found.sort();
    let expected = [("ACCESS_TOKEN_INVALID", 1), ("DPOP_INVALID", 0), ("DPOP_INVALID", 1), ("USER_UNKNOWN", 0)];
    assert_eq!(found, expected.map(|(reason, count)| (reason.to_owned(), count)), "0: a record of its own");
}

#[tokio::test]
async fn a_tenant_has_one_issuer() {
    let mut world = World::new().await;
    let token = world.token(OPERATOR, "root", "operator");
    let session = world.open(&Device::new(200), &token).await.unwrap().session_token;
    let wanted = |issuers: &[&str]| v1::CreateTenantRequest {
        request_id: uuid(9),
        tenant: Some(v1::Tenant {
            id: tenant(9).to_string(),
            issuers: issuers.iter().map(|url| (*url).to_owned()).collect(),
            suites: vec![1],
            ..v1::Tenant::default()
        }),
    };
    let status = world.client.create_tenant(bearer(&session, wanted(&[A, B]))).await.unwrap_err();
    assert_eq!(reason(&status), "ARGUMENT_INVALID");
    let details = tonic_types::StatusExt::get_error_details(&status);
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "tenant.issuers");
    world.client.create_tenant(bearer(&session, wanted(&[A]))).await.unwrap();
}

#[tokio::test]
async fn scopes_and_tenants_follow_from_the_issuer_alone() {
    let mut world = World::new().await;
    let ann = world.user(A, "ann").await;
    let foreign = world.admin(B).await;
    let status = world.client.get_user(bearer(&foreign, v1::GetUserRequest { user_id: ann.to_string() })).await;
    assert_eq!(reason(&status.unwrap_err()), "NOT_FOUND");
    let request = v1::GetTenantRequest { tenant_id: tenant(1).to_string() };
    assert_eq!(reason(&world.client.get_tenant(bearer(&foreign, request)).await.unwrap_err()), "NOT_FOUND");
    let request = v1::DeactivateUserRequest { user_id: ann.to_string(), etag: String::new() };
    assert_eq!(reason(&world.client.deactivate_user(bearer(&foreign, request)).await.unwrap_err()), "NOT_FOUND");

    // A tenant's issuer makes no operators, whatever its tokens say.
    let greedy = world.token(A, "it-department", "operator directory.write");
    let session = world.open(&Device::new(9), &greedy).await.unwrap().session_token;
    let request = v1::CreateTenantRequest { request_id: uuid(9), tenant: None };
    assert_eq!(reason(&world.client.create_tenant(bearer(&session, request)).await.unwrap_err()), "SCOPE_REQUIRED");
    let plain = world.token(OPERATOR, "root", "");
    assert_eq!(reason(&world.open(&Device::new(9), &plain).await.unwrap_err()), "SCOPE_REQUIRED");
}

#[tokio::test]
async fn a_session_ends_by_the_clock_and_by_deletion() {
    let mut world = World::new().await;
    let admin = world.admin(A).await;
    let read = |token: &str| bearer(token, v1::GetTenantRequest::default());
    world.client.get_tenant(read(&admin)).await.unwrap();
    world.pass(600 + 60 + 1);
    assert_eq!(reason(&world.client.get_tenant(read(&admin)).await.unwrap_err()), "SESSION_EXPIRED");

    let admin = world.admin(A).await;
    world.client.get_tenant(read(&admin)).await.unwrap();
    world.sessions.delete_session(bearer(&admin, v1::DeleteSessionRequest {})).await.unwrap();
    assert_eq!(reason(&world.client.get_tenant(read(&admin)).await.unwrap_err()), "SESSION_EXPIRED");

    let status = world.client.get_tenant(v1::GetTenantRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (tonic::Code::Unauthenticated, "TOKEN_MISSING"));
    assert_eq!(reason(&world.client.get_tenant(read("garbage")).await.unwrap_err()), "TOKEN_INVALID");
    let info = world.sessions.get_server_info(v1::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.authority_keys, vec![world.authority.verifying_key().as_bytes().to_vec()]);
}

#[tokio::test]
async fn a_repeated_creation_answers_the_same() {
    let mut world = World::new().await;
    let admin = world.admin(A).await;
    let user = v1::User { kind: 1, external_id: "ann".into(), ..v1::User::default() };
    let request = v1::CreateUserRequest { request_id: uuid(7), user: Some(user) };
    let first = world.client.create_user(bearer(&admin, request.clone())).await.unwrap().into_inner();
    let again = world.client.create_user(bearer(&admin, request.clone())).await.unwrap().into_inner();
    assert_eq!(first, again);
    let other = v1::CreateUserRequest { request_id: uuid(8), ..request };
    assert_eq!(reason(&world.client.create_user(bearer(&admin, other)).await.unwrap_err()), "ALREADY_EXISTS");
}

#[tokio::test]
async fn a_p256_key_proves_with_es256() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
    use p256::ecdsa::signature::Signer as _;

    let mut world = World::new().await;
    world.user(A, "ann").await;
    let key = p256::ecdsa::SigningKey::from_slice(&[7; 32]).unwrap();
    let point = key.verifying_key().to_encoded_point(false);
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "x": B64.encode(point.x().unwrap()), "y": B64.encode(point.y().unwrap()),
    });
    let token = world.token(A, "ann", "");
    let nonce = world.nonce(&Device::new(1), &token).await;
    let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk});
    let claims = world.claims(&token, Some(&nonce));
    let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
    let signature: p256::ecdsa::Signature = key.sign(signed.as_bytes());
    let proof = format!("{signed}.{}", B64.encode(signature.to_bytes()));
    world.create(&token, &proof).await.unwrap();
}
