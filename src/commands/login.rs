//! `rimg login` and `rimg logout`: credentials of registries.
