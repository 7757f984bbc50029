//! Another client as the judge.
