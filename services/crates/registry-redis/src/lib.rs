//! The registry on Redis.
