//! Stages, bases, sources, scopes and precedence.
#![allow(clippy::unwrap_used)]
