//! Links the release binary with compact relocations. Measured gain: half a megabyte of 12.4 for
//! every pod to pull and to map (benches/README.md), which keeps it within the budget of 12. The C
//! library has to know them (glibc 2.36, Debian 12, or later), so a host with an older one builds the
//! usual way.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |key: &str, value: &str| env::var(key).is_ok_and(|found| found == value);
    let native = env::var("HOST").is_ok_and(|host| is("TARGET", &host));
    if is("PROFILE", "release")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && native
        && glibc().is_some_and(|v| v >= (2, 36))
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this host's C library.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let version = std::str::from_utf8(&said.stdout)
        .ok()?
        .trim()
        .strip_prefix("glibc ")?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
