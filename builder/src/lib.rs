//! rimg-builder.
