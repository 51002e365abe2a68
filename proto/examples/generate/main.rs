//! Rewrites `src/gen/` from the `.proto` files: `cargo run -p traffic-proto --example generate`.
//!
//! The result is checked in, so nobody who builds us needs a protocol compiler or a build script.

mod compile;

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    compile::compile(&root.join("proto"), &root.join("src/gen"))
}
