//! Every byte layout that rimg reads or writes, and the content store on disk.
//!
//! | module | owns |
//! |---|---|
//! | [`digest`] | content identity: `Digest`, `DiffId`, `ChainId`, hashing and verifying streams |
//! | [`reference`] | names: `RepositoryName`, `Tag`, `Reference`, `ImageName` |
//! | [`media_type`], [`descriptor`], [`platform`] | the words that manifests are made of |
//! | [`manifest`], [`config`] | image manifests, indexes and configurations, with their exact bytes |
//! | [`layer`], [`compression`] | layer archives: written, read, indexed; what packs them |
//! | [`store`] | the content store on disk |
//! | [`transfer`] | copying images between any two ends |
//! | [`layout`], [`archive`] | OCI layout directories; archives as `docker save` and OCI tools write them |
//! | [`root_dir`] | paths on disk that strangers name |
//! | [`sparse_file`] | files with holes |
//! | [`boot`] | how long what was not synced can be believed |
//! | [`epoch`] | the one time that entries and configurations carry |

pub mod archive;
pub mod boot;
pub mod compression;
pub mod config;
pub mod descriptor;
pub mod digest;
pub mod epoch;
pub mod layer;
pub mod layout;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;
pub mod root_dir;
pub mod sparse_file;
pub mod store;
pub mod transfer;
pub mod variant;
