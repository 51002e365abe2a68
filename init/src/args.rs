//! Command line of the program. Parsing by hand keeps the program small: `clap` would add 250 kB to
//! a static build of 1.4 MB, whose budget is 1.6 MB.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::Error;
use crate::family::Family;

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
  --netns PATH       work in this network namespace, such as /proc/123/ns/net
  --families LIST    ipv4, ipv6 or ipv4,ipv6: redirect these and no other
  --allow-host-network
                     work in a network namespace that is the node's own
  --exclude-inbound-ports LIST
                     container ports whose callers do not meet the agent: 8080,9000-9010,53/udp
  --exclude-inbound-cidrs LIST
                     subnets whose callers do not meet the agent
  --exclude-uids LIST, --exclude-gids LIST
                     processes of the pod that do not meet the agent
  --mesh-dial-subnets LIST
                     subnets that the agent dials through the mesh
  --dry-run[=FORM]   print the rules as iptables, nft (default) or json; change nothing
  --check            say whether the rules are in force, by comparing and by connecting:
                     exit code 0, or 1 when they are not
  --validate         after the rules are in force, connect to see that they work
  --remove           take every rule of ours away
  -h, --help         this text
  -V, --version      the version

Called by a container runtime as a CNI plugin (CNI_COMMAND is set), it takes its configuration from
standard input; agent-init cni-install puts it on a node (cni-install --help).

Environment: POD_IPS or POD_IP (the pod's addresses), AGENT_GID or AGENT_UID (who the agent is),
AGENT_CONFIG, LOG_LEVEL, AGENT_LOG_FORMAT (text or json), and for the lists above
AGENT_EXCLUDE_INBOUND_PORTS, AGENT_EXCLUDE_INBOUND_CIDRS, AGENT_EXCLUDE_UIDS, AGENT_EXCLUDE_GIDS,
AGENT_MESH_DIAL_SUBNETS.

Exit codes: 0 done; 64 bad usage, configuration or environment; 69 the kernel has no usable backend
or refused a rule; 74 the kernel did not answer a question; 77 a right is missing; 70 a bug;
128 and its number for a signal.
";

/// Backend as asked for on the command line.
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

/// List of exceptions that a flag or a variable of the environment gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// Container ports.
    Ports,
    /// Subnets of callers.
    Sources,
    /// Users of processes in the pod.
    Uids,
    /// Groups of processes in the pod.
    Gids,
    /// Subnets that the agent dials through the mesh.
    MeshSubnets,
}

impl List {
    /// Lists with their flags and variables.
    pub const ALL: [(Self, &'static str, &'static str); 5] = [
        (
            Self::Ports,
            "--exclude-inbound-ports",
            "AGENT_EXCLUDE_INBOUND_PORTS",
        ),
        (
            Self::Sources,
            "--exclude-inbound-cidrs",
            "AGENT_EXCLUDE_INBOUND_CIDRS",
        ),
        (Self::Uids, "--exclude-uids", "AGENT_EXCLUDE_UIDS"),
        (Self::Gids, "--exclude-gids", "AGENT_EXCLUDE_GIDS"),
        (
            Self::MeshSubnets,
            "--mesh-dial-subnets",
            "AGENT_MESH_DIAL_SUBNETS",
        ),
    ];
}

/// Command line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// Task of this run.
    pub mode: Mode,
    /// Backend to use.
    pub backend: BackendChoice,
    /// File of the configuration, when named.
    pub config: Option<PathBuf>,
    /// Directory put before every path, when given.
    pub root: Option<PathBuf>,
    /// Network namespace to work in, when it is not our own.
    pub netns: Option<PathBuf>,
    /// Families to redirect, when they are chosen.
    pub families: Option<Vec<Family>>,
    /// True when the namespace may be the node's own.
    pub allow_host_network: bool,
    /// True when a connection has to show that the rules work.
    pub validate: bool,
    /// Lists of exceptions, as they were written.
    pub lists: Vec<(List, String)>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            mode: Mode::Apply,
            backend: BackendChoice::Auto,
            config: None,
            root: None,
            netns: None,
            families: None,
            allow_host_network: false,
            validate: false,
            lists: Vec::new(),
        }
    }
}

/// Words of the command line, and the flag that is being read.
struct Words<I: Iterator<Item = String>> {
    rest: I,
    flag: String,
    given: Option<String>,
}

impl<I: Iterator<Item = String>> Words<I> {
    /// Moves on to the next flag. Says whether there was one.
    fn advance(&mut self) -> bool {
        let Some(word) = self.rest.next() else {
            return false;
        };
        (self.flag, self.given) = match word.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        true
    }

    /// Refuses a value that the flag did not take.
    fn finish(&mut self) -> Result<(), Error> {
        let flag = &self.flag;
        self.given.take().map_or(Ok(()), |extra| {
            let text = format!("{flag}={extra}: this option takes no value; write {flag}");
            Err(Error::Usage(text))
        })
    }

    /// Value of the flag, behind an equals sign or a space.
    fn value(&mut self, what: &str) -> Result<String, Error> {
        self.given
            .take()
            .or_else(|| self.rest.next())
            .ok_or_else(|| Error::Usage(format!("{}: needs {what}", self.flag)))
    }
}

/// Parses `words`, the program's name left out. Errors name the word and what may stand there.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, Error> {
    let words: Vec<OsString> = words.into_iter().collect();
    let words = texts(&words)?;
    let mut words = words.into_iter().peekable();
    // The image's entry point hands over the container's arguments, and those name the role.
    words.next_if(|word| word == "agent-init");
    let mut words = Words {
        rest: words,
        flag: String::new(),
        given: None,
    };
    let mut args = Args::default();
    let mut dry_run = None;
    let mut modes: Vec<(String, Mode)> = Vec::new();
    while words.advance() {
        let flag = words.flag.clone();
        match flag.as_str() {
            "--backend" => args.backend = backend(&words.value("a backend")?)?,
            "--config" => args.config = Some(words.value("a file")?.into()),
            "--root" => args.root = Some(words.value("a directory")?.into()),
            "--netns" => args.netns = Some(words.value("a namespace's path")?.into()),
            "--families" => args.families = Some(families(&words.value("families")?)?),
            "--allow-host-network" => args.allow_host_network = true,
            "--validate" => args.validate = true,
            "--dry-run" => {
                dry_run = words.given.take();
                modes.push((flag, Mode::DryRun(Form::Nft)));
            }
            "--check" => modes.push((flag, Mode::Check)),
            "--remove" => modes.push((flag, Mode::Remove)),
            "-h" | "--help" => modes.push((flag, Mode::Help)),
            "-V" | "--version" => modes.push((flag, Mode::Version)),
            _ => match List::ALL.iter().find(|(_, it, _)| *it == flag) {
                Some((list, ..)) => args.lists.push((*list, words.value("a list")?)),
                None => {
                    return Err(Error::Usage(format!("{flag}: no such option or argument")));
                }
            },
        }
        words.finish()?;
    }
    args.mode = mode(modes)?;
    if let Mode::DryRun(form) = &mut args.mode {
        *form = self::form(dry_run.as_deref(), args.backend)?;
    }
    Ok(args)
}

/// Reads words as text.
pub fn texts(words: &[OsString]) -> Result<Vec<String>, Error> {
    words.iter().cloned().map(text).collect()
}

fn text(word: OsString) -> Result<String, Error> {
    word.into_string().map_err(|word| {
        Error::Usage(format!(
            "{:?}: is no UTF-8 text; write it anew",
            word.to_string_lossy()
        ))
    })
}

/// Chooses the one task that was asked for.
fn mode(mut modes: Vec<(String, Mode)>) -> Result<Mode, Error> {
    if let [(first, _), .., (last, _)] = modes.as_slice()
        && first != last
    {
        return Err(Error::Usage(format!(
            "{first} and {last} exclude each other; give one of them"
        )));
    }
    Ok(modes.pop().map_or(Mode::Apply, |(_, mode)| mode))
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
                "--backend {word}: no such backend; there are auto, nft, iptables, iptables-nft \
                 and iptables-legacy"
            )));
        }
    })
}

fn families(words: &str) -> Result<Vec<Family>, Error> {
    let mut families = Vec::new();
    for word in words.split(',').map(str::trim) {
        families.push(match word.to_ascii_lowercase().as_str() {
            "ipv4" | "v4" | "4" => Family::V4,
            "ipv6" | "v6" | "6" => Family::V6,
            _ => {
                return Err(Error::Usage(format!(
                    "--families {words}: {word:?} is no family; write ipv4, ipv6 or ipv4,ipv6"
                )));
            }
        });
    }
    families.sort_unstable();
    families.dedup();
    Ok(families)
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
        parse(line.split_whitespace().map(OsString::from))
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

    #[test]
    fn a_word_that_is_no_text_is_a_mistake_of_the_user() {
        use std::os::unix::ffi::OsStringExt as _;
        let word = OsString::from_vec(b"--config=/caf\xe9".to_vec());
        let error = parse([word]).unwrap_err();
        assert!(error.to_string().contains("no UTF-8"), "{error}");
        assert_eq!(error.exit_code(), 64);
    }

    #[test]
    fn families_and_lists_are_kept() {
        let args = parsed("--families ipv6,ipv4 --exclude-uids 5,6 --exclude-gids=7").unwrap();
        assert_eq!(args.families, Some(vec![Family::V4, Family::V6]));
        assert_eq!(
            args.lists,
            [(List::Uids, "5,6".to_owned()), (List::Gids, "7".to_owned())]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_words_are_understood_or_refused(words in proptest::collection::vec("(--[a-z=]{0,9}|--dry-run=?|--config|.{0,5})", 0..6)) {
            if let Err(error) = parse(words.into_iter().map(OsString::from)) {
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
            ("--families ipx", "ipv4,ipv6"),
            ("--exclude-uids", "needs a list"),
            ("--allow-host-network=yes", "takes no value"),
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
