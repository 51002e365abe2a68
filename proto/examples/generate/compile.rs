//! From `.proto` files to Rust, in-process: shared by the generator and by the test that compares.

use std::error::Error;
use std::path::Path;

/// Compiles the schema under `protos` and writes one file for each package into `out`.
pub(crate) fn compile(protos: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let files = ["common.proto", "manager.proto", "agent.proto"];
    let descriptors = protox::compile(files, [protos])?;
    tonic_prost_build::configure()
        .out_dir(out)
        // Payloads are sliced out of what arrived, never copied.
        .bytes(".")
        // Ordered maps: equal messages have equal bytes.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}
