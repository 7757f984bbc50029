//! rimg, the command line.
fn main() {}
