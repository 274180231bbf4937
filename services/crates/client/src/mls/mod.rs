//! MLS (RFC 9420) through openmls, over the transaction of the step at hand.

pub(crate) mod attachment;
pub(crate) mod config;
pub(crate) mod external;
pub(crate) mod group;
pub(crate) mod group_data;
pub(crate) mod join;
pub(crate) mod key_packages;
pub(crate) mod provider;
