//! Both ends of the OCI distribution protocol.
//!
//! | module | owns |
//! |---|---|
//! | [`client`] | pulling from and pushing to any registry; credentials |

pub mod client;
