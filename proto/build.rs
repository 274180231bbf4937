//! Compiles the protocol without protoc, and keeps the descriptor set for reflection.

use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 9] = [
    "wardline/v1/session.proto",
    "wardline/v1/directory.proto",
    "wardline/v1/message.proto",
    "wardline/v1/conversation.proto",
    "wardline/v1/delivery.proto",
    "wardline/v1/receipt.proto",
    "wardline/content/v1/content.proto",
    "wardline/internal/v1/records.proto",
    "wardline/internal/v1/link.proto",
];

/// What integrators see by reflection: the public package only.
const PUBLIC: usize = 6;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    std::fs::write(out.join("public.binpb"), protox::compile(&FILES[..PUBLIC], ["."])?.encode_to_vec())?;
    let all = protox::compile(FILES, ["."])?;
    std::fs::write(out.join("all.binpb"), all.encode_to_vec())?;
    // `bytes` fields share the buffer they came in: ciphertext is never copied.
    tonic_prost_build::configure().bytes(".").build_transport(false).compile_fds(all)?;
    Ok(())
}
