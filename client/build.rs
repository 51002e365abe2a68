//! Puts the Helm chart into the program, so that `intercept helm` needs no checkout.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Files that make the chart and are no part of it.
const LEFT_OUT: [&str; 2] = ["generate", "README.md.in"];

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?);
    let chart = manifest.join("../chart").canonicalize()?;
    println!("cargo::rerun-if-changed={}", chart.display());
    let mut files = Vec::new();
    collect(&chart, &mut files)?;
    files.sort();
    let mut text = String::from("&[\n");
    for file in files {
        let name = file.strip_prefix(&chart).map_err(io::Error::other)?;
        if LEFT_OUT.iter().any(|left_out| name == Path::new(left_out)) {
            continue;
        }
        println!("cargo::rerun-if-changed={}", file.display());
        let _ = writeln!(text, "    ({name:?}, include_bytes!({file:?})),");
    }
    text.push(']');
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    fs::write(out.join("chart.rs"), text)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
