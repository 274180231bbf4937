//! The protocol: generated code, the one table of error reasons, and the conversions between wire and domain.
//!
//! Conversions from the wire parse: what they let through is valid by itself. Deliberately absent: any decision that needs
//! more than the message at hand.

pub mod convert;
pub mod reason;

/// The public API.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("wardline.v1");
}

/// What is inside the ciphertext.
pub mod content {
    /// Version 1.
    #[allow(missing_debug_implementations, unreachable_pub, clippy::all, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("wardline.content.v1");
    }
}

/// Log records and the presence link.
pub mod internal {
    /// Version 1.
    #[allow(missing_debug_implementations, unreachable_pub, clippy::all, missing_docs)]
    pub mod v1 {
        tonic::include_proto!("wardline.internal.v1");
    }
}

/// The descriptor set of the public packages, for reflection.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public.binpb"));

/// The descriptor set of all packages, for tests.
pub const ALL_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/all.binpb"));
