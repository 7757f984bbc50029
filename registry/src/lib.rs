//! rimg-registry.
