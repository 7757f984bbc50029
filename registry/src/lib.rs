//! Both ends of the OCI distribution protocol.

pub mod server;
//!
//! | module | owns |
//! |---|---|
//! | [`client`] | pulling from and pushing to any registry; credentials |

pub mod client;
