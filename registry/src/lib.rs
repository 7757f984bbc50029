//! Both ends of the OCI distribution protocol.

pub mod server;
