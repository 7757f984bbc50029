//! Both ends of the OCI distribution protocol, on rustls and tokio: the only asynchronous crate of the house.
//!
//! | module | owns |
//! |---|---|
//! | [`client`] | talking to any registry: pull, push, login |
//! | [`server`] | the HTTP face of the content store |

pub mod client;
pub mod server;
