//! Checking the whole store.
