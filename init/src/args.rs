//! Command line of the program. Parsing by hand keeps the program small.

use std::path::PathBuf;

use crate::error::Error;

/// Text of `--help`.
pub const HELP: &str = "\
agent-init: redirects the callers of numeric target ports to the traffic agent

Usage: agent-init [agent-init] [OPTIONS]

  --backend WHICH    auto (default): nft where the kernel has nf_tables, else iptables
                     nft: by netlink, no program needed
                     iptables: the flavour the pod's tables already use
                     iptables-nft, iptables-legacy: that flavour
  --config FILE      sidecar configuration (YAML or JSON); else the environment variable
                     AGENT_CONFIG, else /etc/traffic-agent/config.yaml
  --root DIR         put before the path of the configuration
  --dry-run[=FORM]   print the rules as iptables, nft (default) or json; change nothing
  --check            say whether the rules are in force: exit code 0, or 1 when they are not
  --remove           take every rule of ours away
  -h, --help         this text
  -V, --version      the version

Environment: POD_IPS or POD_IP (the pod's addresses), AGENT_GID or AGENT_UID (who the agent is),
AGENT_CONFIG, LOG_LEVEL.

Exit codes: 0 done; 64 bad usage or configuration; 69 the kernel has no usable backend or refused
a rule; 77 NET_ADMIN is missing; 70 a bug.
";

/// BackendChoice as asked for on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendChoice {
    /// Netlink where the kernel has nf_tables, else the iptables programs.
    Auto,
    /// Netlink.
    Nft,
    /// The iptables programs, of the flavour in use.
    Iptables,
    /// The iptables programs over nf_tables.
    IptablesNft,
    /// The iptables programs over x_tables.
    IptablesLegacy,
}

/// Language of a dry run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Input of `iptables-restore`.
    Iptables,
    /// Input of `nft -f`.
    Nft,
    /// Typed fields for programs.
    Json,
}

/// Task of this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Puts the rules into force.
    Apply,
    /// Prints them.
    DryRun(Form),
    /// Compares them with what is in force.
    Check,
    /// Takes ours away.
    Remove,
    /// Prints the help.
    Help,
    /// Prints the version.
    Version,
}

/// Command line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// Task of this run.
    pub mode: Mode,
    /// BackendChoice to use.
    pub backend: BackendChoice,
    /// File of the configuration, when named.
    pub config: Option<PathBuf>,
    /// Directory put before every path, when given.
    pub root: Option<PathBuf>,
}

/// Parses `words`, the program's name left out. Errors name the word and what may stand there.
pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Args, Error> {
    let mut words = words.into_iter().peekable();
    // The image's entry point hands over the container's arguments, and those name the role.
    words.next_if(|word| word == "agent-init");
    let mut args = Args {
        mode: Mode::Apply,
        backend: BackendChoice::Auto,
        config: None,
        root: None,
    };
    let mut dry_run = None;
    let mut modes: Vec<(String, Mode)> = Vec::new();
    while let Some(word) = words.next() {
        let (flag, mut given) = match word.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (word.clone(), None),
        };
        let mut value = |what: &str| {
            given
                .take()
                .or_else(|| words.next())
                .ok_or_else(|| Error::Usage(format!("{flag}: needs {what}")))
        };
        match flag.as_str() {
            "--backend" => args.backend = backend(&value("a backend")?)?,
            "--config" => args.config = Some(value("a file")?.into()),
            "--root" => args.root = Some(value("a directory")?.into()),
            "--dry-run" => {
                dry_run = given.take();
                modes.push((flag.clone(), Mode::DryRun(Form::Nft)));
            }
            "--check" => modes.push((flag.clone(), Mode::Check)),
            "--remove" => modes.push((flag.clone(), Mode::Remove)),
            "-h" | "--help" => modes.push((flag.clone(), Mode::Help)),
            "-V" | "--version" => modes.push((flag.clone(), Mode::Version)),
            _ => return Err(Error::Usage(format!("{word}: no such option or argument"))),
        }
        if let Some(extra) = given {
            return Err(Error::Usage(format!(
                "{flag}={extra}: this option takes no value; write {flag}"
            )));
        }
    }
    if let [(first, _), .., (last, _)] = modes.as_slice()
        && first != last
    {
        return Err(Error::Usage(format!(
            "{first} and {last} exclude each other; give one of them"
        )));
    }
    if let Some((_, mode)) = modes.pop() {
        args.mode = mode;
    }
    if let Mode::DryRun(form) = &mut args.mode {
        *form = self::form(dry_run.as_deref(), args.backend)?;
    }
    Ok(args)
}

fn backend(word: &str) -> Result<BackendChoice, Error> {
    Ok(match word {
        "auto" => BackendChoice::Auto,
        "nft" => BackendChoice::Nft,
        "iptables" => BackendChoice::Iptables,
        "iptables-nft" => BackendChoice::IptablesNft,
        "iptables-legacy" => BackendChoice::IptablesLegacy,
        _ => {
            return Err(Error::Usage(format!(
                "--backend {word}: no such backend; there are auto, nft, iptables, iptables-nft and iptables-legacy"
            )));
        }
    })
}

/// Reads the language of a dry run; by default it is that of the backend.
fn form(word: Option<&str>, backend: BackendChoice) -> Result<Form, Error> {
    Ok(match (word, backend) {
        (Some("iptables"), _) => Form::Iptables,
        (Some("nft"), _) | (None, BackendChoice::Auto | BackendChoice::Nft) => Form::Nft,
        (Some("json"), _) => Form::Json,
        (None, _) => Form::Iptables,
        (Some(other), _) => {
            return Err(Error::Usage(format!(
                "--dry-run={other}: no such form; there are iptables, nft and json"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, Error> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_role_may_come_first() {
        assert_eq!(parsed("agent-init").unwrap(), parsed("").unwrap());
        assert_eq!(parsed("agent-init --remove").unwrap().mode, Mode::Remove);
        assert!(parsed("--remove agent-init").is_err());
    }

    #[test]
    fn values_stand_behind_a_space_or_an_equals_sign() {
        for line in [
            "--backend nft --config a/b --root /r",
            "--backend=nft --config=a/b --root=/r",
        ] {
            let args = parsed(line).unwrap();
            assert_eq!(
                (args.backend, args.config, args.root),
                (BackendChoice::Nft, Some("a/b".into()), Some("/r".into()))
            );
        }
    }

    #[test]
    fn a_dry_run_speaks_the_language_of_the_backend_unless_told() {
        for (line, form) in [
            ("--dry-run", Form::Nft),
            ("--dry-run --backend iptables-legacy", Form::Iptables),
            ("--backend iptables --dry-run=json", Form::Json),
            ("--dry-run=iptables", Form::Iptables),
            ("--dry-run=nft --backend iptables", Form::Nft),
        ] {
            assert_eq!(parsed(line).unwrap().mode, Mode::DryRun(form), "{line}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_words_are_understood_or_refused(words in proptest::collection::vec("(--[a-z=]{0,9}|--dry-run=?|--config|.{0,5})", 0..6)) {
            if let Err(error) = parse(words) {
                proptest::prop_assert_eq!(error.exit_code(), 64);
            }
        }
    }

    #[test]
    fn errors_name_the_word_and_what_is_possible() {
        for (line, named) in [
            ("--bakend nft", "--bakend"),
            ("--backend ipfw", "ipfw"),
            ("--backend", "needs a backend"),
            ("--dry-run=xml", "json"),
            ("--check=now", "takes no value"),
            ("--check --remove", "exclude each other"),
            ("up", "up"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(
                error.to_string().contains(named) && error.exit_code() == 64,
                "{line}: {error}"
            );
        }
    }
}
