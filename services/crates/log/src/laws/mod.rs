//! The laws every engine keeps.
