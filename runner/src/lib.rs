//! rimg-runner.
