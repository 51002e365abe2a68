//! Commit and date of a build, the same for the same source: the commit and its date come from git,
//! and where there is none from `SOURCE_COMMIT` and `SOURCE_DATE_EPOCH`, which win over it. Only release
//! builds ask git, because every crate would be built anew after every commit; a debug build says that
//! it is one.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of_variable = |name: &str| {
        println!("cargo::rerun-if-env-changed={name}");
        env::var(name).ok().filter(|value| !value.is_empty())
    };
    let named = of_variable("SOURCE_COMMIT");
    let epoch = of_variable("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok());
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let found = if is_release { from_git() } else { None };
    let (of_git, git_epoch) = found.unzip();
    let commit = named.or(of_git);
    let date = epoch.or(git_epoch).map(date);
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let long = match (&commit, &date) {
        _ if !is_release && commit.is_none() => format!("{version} (debug build)"),
        (Some(commit), Some(date)) => format!("{version} (commit {commit}, {date})"),
        (Some(commit), None) => format!("{version} (commit {commit})"),
        (None, Some(date)) => format!("{version} ({date})"),
        (None, None) => version,
    };
    let known = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=BUILD_COMMIT={}", known(commit));
    println!("cargo::rustc-env=BUILD_DATE={}", known(date));
    println!("cargo::rustc-env=BUILD_LONG={long}");
}

/// Commit and its time, if this source is git's.
fn from_git() -> Option<(String, u64)> {
    // A tree unpacked inside of another project's clone is not that project's.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    for changing in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", changing])?;
        // Cargo takes a file that is missing for one that has changed.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let time = git(&["log", "-1", "--format=%ct"])?;
    Some((commit, time.parse().ok()?))
}

fn git(arguments: &[&str]) -> Option<String> {
    let said = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(said.stdout).ok()?;
    said.status.success().then(|| text.trim().to_owned())
}

/// The day of a time since 1970, as year-month-day in UTC: Howard Hinnant's `civil_from_days`.
pub(crate) fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    // Years begin in March there.
    let (month, carry) = match shifted {
        0..10 => (shifted + 3, 0),
        _ => (shifted - 9, 1),
    };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + carry)
}
