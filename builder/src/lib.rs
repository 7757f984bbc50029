//! rimg-builder: from a Buildfile to an image.
//!
//! 1. [`source`] holds the text and turns byte offsets into lines and columns.
//! 2. [`syntax`] parses it into a spanned tree of instructions, unexpanded.
//! 3. [`plan`] resolves stages, their bases and the edges between them: a pure value.
//! 4. [`plan::StageScope`] gives an instruction its final form while a stage executes, with [`expand`].
//! 5. [`ignore`] and [`glob`] decide which files of a context an instruction sees.
//!
//! Whatever is wrong with a Buildfile is a [`diagnostic::Diagnostic`] at a span.

pub mod base;
pub mod cache;
pub mod diagnostic;
pub mod engine;
pub mod events;
pub mod expand;
pub mod glob;
pub mod ignore;
pub mod output;
pub mod plan;
pub mod received;
pub mod source;
pub mod syntax;

mod add;
mod assemble;
mod context;
mod copy;
mod layer_plan;
mod layer_step;
mod layer_tree;
mod materialise;
mod memo;
mod metadata;
mod parallel;
mod run_step;
mod source_tree;
mod stat_cache;
mod suggest;
mod tree_walk;
