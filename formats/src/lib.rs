//! rimg-formats.
