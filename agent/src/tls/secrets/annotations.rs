//! Pod annotations to the TLS plan of each port: secrets, CAs, checks. Pure: no file is opened.
//! Newer annotations name their port in a suffix; the older `inject-…-tls-secret` ones name none
//! and apply to every TCP port that is not declared clear text and has no newer one.

mod key;
mod plan;
mod protocol;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::DnsName;
use traffic_proto::duration::GoDuration;
use traffic_proto::fault::Fault;

use self::key::AnnotationKey;
pub use self::plan::{AppPort, CallerAuth, Plans, PortPlan, ToApp};
pub use self::protocol::{is_clear_text, is_tls};
use crate::tls::secrets::secret::SecretSource;

const PREFIX: &str = "telepresence.io/";
const OLDER_PREFIX: &str = "telepresence.getambassador.io/";
const OLDEST_PREFIX: &str = "getambassador.io/";
/// Directory in which the injector mounts the secrets of `…-tls-secret.<port>`, of either
/// direction.
const SECRETS_DIR: &str = "/downstream-tls";
const TERMINATING_DIR: &str = "/terminating_tls";
const ORIGINATING_DIR: &str = "/originating_tls";
/// Time for the app's answer to a TLS probe, unless an annotation sets it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the annotations. `root` is put before every directory; `agent_name` replaces
/// `$AGENT_NAME`.
#[must_use]
pub fn plans(
    annotations: &BTreeMap<String, String>,
    agent_name: &str,
    root: &Path,
    ports: &[AppPort],
) -> Plans {
    let mut reader = Reader {
        ports,
        agent_name,
        root,
        newer: BTreeMap::new(),
        out: Plans::default(),
    };
    for (key, value) in annotations {
        reader.take(key, value);
    }
    let legacy = Legacy::read(annotations, &mut reader);
    for port in ports {
        if let Some(plan) = reader.plan(port, &legacy) {
            reader.out.ports.push(plan);
        }
    }
    reader.out
}

/// Names the annotation to set so that HTTP inside the TLS of `container_port` can be intercepted.
#[must_use]
pub fn advice(container_port: u16) -> String {
    format!(
        "port {container_port} speaks TLS and the agent has no certificate for it, so requests \
        cannot be told apart: set the pod annotation {PREFIX}{}.{container_port} to the name of a \
        Secret with the server's certificate and key ({PREFIX}{} with its directory in the app's \
        container works too)",
        AnnotationKey::DownstreamSecret.name(),
        AnnotationKey::DownstreamPath.name(),
    )
}

/// An annotation as written.
#[derive(Clone, Debug)]
struct Written {
    annotation: String,
    value: String,
}

struct Reader<'a> {
    ports: &'a [AppPort],
    agent_name: &'a str,
    root: &'a Path,
    /// Container port and key → value; of two spellings the usual one.
    newer: BTreeMap<(u16, AnnotationKey), Written>,
    out: Plans,
}

impl Reader<'_> {
    fn take(&mut self, annotation: &str, value: &str) {
        // Annotations of other programs are not ours to judge.
        let Some(name) = annotation
            .strip_prefix(PREFIX)
            .or_else(|| annotation.strip_prefix(OLDER_PREFIX))
        else {
            return;
        };
        // The part after the dot is a container port, a service port or a port name.
        let (name, suffix) = name.split_once('.').unwrap_or((name, ""));
        let Some(rank) = AnnotationKey::SPELLINGS
            .iter()
            .position(|(spelling, _)| *spelling == name)
        else {
            return;
        };
        let (_, key) = AnnotationKey::SPELLINGS[rank];
        if suffix.is_empty() {
            let remedy = format!("add the port: {PREFIX}{name}.<container or service port>");
            self.out
                .faults
                .push(Fault::text(annotation, value, "names no port", remedy));
            return;
        }
        let found = self.ports_of(suffix);
        if found.is_empty() {
            let remedy = format!("the agent's TCP ports are {}", self.known_ports());
            self.out.notes.push(Fault::text(
                annotation,
                value,
                format!("no TCP port {suffix}: not used"),
                remedy,
            ));
        }
        for port in found {
            let written = Written {
                annotation: annotation.to_owned(),
                value: self.expand(value),
            };
            self.note(port, key, written, value);
        }
    }

    /// Keeps what is written for a port; of two spellings the usual one, in any order.
    fn note(&mut self, port: u16, key: AnnotationKey, written: Written, value: &str) {
        match self.newer.get(&(port, key)) {
            Some(other) if other.value != written.value => {
                let annotation = written.annotation.clone();
                // `-tls-` is the usual spelling, `-cert-` an older one.
                let usual = if annotation.contains("-cert-") {
                    other.clone()
                } else {
                    written
                };
                let problem = format!(
                    "port {port} has this annotation in two spellings with different values"
                );
                let remedy = format!("{} is used; remove the other one", usual.annotation);
                self.out
                    .notes
                    .push(Fault::text(annotation, value, problem, remedy));
                self.newer.insert((port, key), usual);
            }
            Some(_) => {}
            None => {
                self.newer.insert((port, key), written);
            }
        }
    }

    /// Returns the container port of that number or name, else all ports targeted by a service port
    /// of that number or name.
    fn ports_of(&self, suffix: &str) -> Vec<u16> {
        // A container port wins over a service port of the same number.
        let number: Option<u16> = suffix.parse().ok();
        if let Some(port) = self.ports.iter().find(|p| Some(p.container_port) == number) {
            return vec![port.container_port];
        }
        let named = |p: &&AppPort| {
            number.is_some_and(|n| p.service_ports.contains(&n))
                || p.names.iter().any(|name| name == suffix)
        };
        self.ports
            .iter()
            .filter(named)
            .map(|p| p.container_port)
            .collect()
    }

    fn known_ports(&self) -> String {
        let known: Vec<String> = self
            .ports
            .iter()
            .map(|p| p.container_port.to_string())
            .collect();
        if known.is_empty() {
            "none".into()
        } else {
            known.join(", ")
        }
    }

    fn expand(&self, value: &str) -> String {
        [
            // Longer spellings first, so that none is replaced inside another.
            "${AGENT_NAME}",
            "$_TEL_AGENT_NAME",
            "${_TEL_AGENT_NAME}",
            "$AGENT_NAME",
        ]
        .iter()
        .fold(value.trim().to_owned(), |text, variable| {
            text.replace(variable, self.agent_name)
        })
    }

    fn plan(&mut self, port: &AppPort, legacy: &Legacy) -> Option<PortPlan> {
        let own_terminating = self.sources(
            port,
            AnnotationKey::DownstreamSecret,
            AnnotationKey::DownstreamPath,
        );
        let own_originating = self.sources(
            port,
            AnnotationKey::UpstreamSecret,
            AnnotationKey::UpstreamPath,
        );
        // Annotations without a port must not force TLS onto a port declared as clear text.
        let inherits = !is_clear_text(&port.app_protocol);
        let certain = !own_terminating.is_empty();
        let named = certain || !own_originating.is_empty();
        let or_legacy = |own: Vec<SecretSource>, legacy: &Option<SecretSource>| match legacy {
            Some(source) if own.is_empty() && inherits => vec![source.clone()],
            _ => own,
        };
        let terminating = or_legacy(own_terminating, &legacy.terminating);
        let originating = or_legacy(own_originating, &legacy.originating)
            .into_iter()
            .next();
        let plan = PortPlan {
            container_port: port.container_port,
            certain,
            skip_verify: self.skip_verify(port),
            server_name: self.server_name(port),
            probe_timeout: self.probe_timeout(port),
            caller_ca: self.caller_ca(port),
            identity_header: self.identity_header(port),
            to_app: protocol::to_app(&port.app_protocol, named && originating.is_some()),
            terminating,
            originating,
        };
        let unused = plan.terminating.is_empty()
            && (plan.caller_ca.is_some() || plan.identity_header.is_some());
        if unused {
            self.note_without_termination(port);
        }
        // Without any secret the port needs no TLS plan.
        (!plan.terminating.is_empty() || plan.originating.is_some()).then_some(plan)
    }

    fn get(&self, port: &AppPort, key: AnnotationKey) -> Option<Written> {
        self.newer
            .get(&(port.container_port, key))
            .filter(|w| !w.value.is_empty())
            .cloned()
    }

    /// Returns secrets first, then directories. A directory that is a named secret's mount (the
    /// injector adds such an annotation itself) is the same source, not a second one.
    fn sources(
        &mut self,
        port: &AppPort,
        secret: AnnotationKey,
        path: AnnotationKey,
    ) -> Vec<SecretSource> {
        let mut sources = Vec::new();
        if let Some(written) = self.get(port, secret) {
            for name in list(&written.value) {
                match is_secret_name(name) {
                    true => sources.push(self.source(
                        &written.annotation,
                        name,
                        vec![self.rooted(&mount_of(name))],
                    )),
                    false => self.refuse(
                        &written,
                        "is not a Secret's name",
                        "write the name alone, without a path",
                    ),
                }
            }
        }
        if let Some(written) = self.get(port, path) {
            for dir in list(&written.value) {
                let mut parts = Path::new(dir).components();
                // A path must not leave the container's file system.
                if parts.any(|part| part == Component::ParentDir) {
                    let remedy = "write the directory's full path";
                    self.refuse(&written, "must not contain ..", remedy);
                    continue;
                }
                let literal = self.rooted(Path::new(dir));
                let is_known = |source: &SecretSource| source.dirs.contains(&literal);
                // The injector adds this path itself for a named secret.
                if sources.iter().any(is_known) {
                    continue;
                }
                let in_container = self
                    .rooted(&port.mount_point)
                    .join(relative(Path::new(dir)));
                // Paths are meant inside the app's container; the agent's own file system is the
                // second choice.
                sources.push(self.source(&written.annotation, dir, vec![in_container, literal]));
            }
        }
        sources
    }

    fn source(&self, annotation: &str, value: &str, dirs: Vec<PathBuf>) -> SecretSource {
        SecretSource {
            annotation: annotation.to_owned(),
            value: value.to_owned(),
            dirs,
        }
    }

    fn rooted(&self, path: &Path) -> PathBuf {
        self.root.join(relative(path))
    }

    fn skip_verify(&mut self, port: &AppPort) -> bool {
        let Some(written) = self.get(port, AnnotationKey::SkipVerify) else {
            return false;
        };
        match written.value.as_str() {
            "enabled" => return true,
            "disabled" => {}
            _ => self.refuse(
                &written,
                "is neither enabled nor disabled",
                "write enabled or disabled",
            ),
        }
        false
    }

    fn server_name(&mut self, port: &AppPort) -> Option<String> {
        let written = self.get(port, AnnotationKey::ServerName)?;
        if DnsName::try_from(written.value.as_str()).is_err() {
            self.refuse(
                &written,
                "is not a DNS name",
                "write a name of the app's certificate",
            );
            return None;
        }
        Some(written.value)
    }

    fn probe_timeout(&mut self, port: &AppPort) -> Duration {
        let Some(written) = self.get(port, AnnotationKey::ProbeTimeout) else {
            return PROBE_TIMEOUT;
        };
        match written.value.parse::<GoDuration>().map(GoDuration::to_std) {
            Ok(Some(timeout)) => return timeout,
            Ok(None) => self.refuse(&written, "is negative", "write a duration such as 2s"),
            Err(error) => self.refuse(&written, &error.to_string(), error.remedy()),
        }
        PROBE_TIMEOUT
    }

    fn caller_ca(&mut self, port: &AppPort) -> Option<(SecretSource, CallerAuth)> {
        let auth = self.get(port, AnnotationKey::CallerAuth);
        let source = self
            .sources(
                port,
                AnnotationKey::CallerCaSecret,
                AnnotationKey::CallerCaPath,
            )
            .into_iter()
            .next();
        let required = match auth.as_ref().map(|w| w.value.as_str()) {
            None | Some("required") => CallerAuth::Required,
            Some("optional") => CallerAuth::Optional,
            Some(_) => {
                if let Some(written) = auth {
                    self.refuse(
                        &written,
                        "is neither required nor optional",
                        "write required or optional",
                    );
                }
                return None;
            }
        };
        if let (None, Some(written)) = (&source, auth) {
            let remedy = format!(
                "add {PREFIX}{}.{}",
                AnnotationKey::CallerCaSecret.name(),
                port.container_port
            );
            self.refuse(&written, "callers cannot be verified without a CA", &remedy);
        }
        source.map(|source| (source, required))
    }

    fn identity_header(&mut self, port: &AppPort) -> Option<String> {
        let written = self.get(port, AnnotationKey::IdentityHeader)?;
        let name = written.value.to_ascii_lowercase();
        let token = traffic_proto::token::is_token_text(&name);
        // Replacing one of these would change where the request ends or goes.
        const FRAMING: [&str; 8] = [
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "te",
            "upgrade",
            "trailer",
            "expect",
        ];
        if !token || FRAMING.contains(&name.as_str()) {
            self.refuse(
                &written,
                "cannot be the name of an identity header",
                "write a name such as x-caller-identity",
            );
            return None;
        }
        Some(name)
    }

    fn note_without_termination(&mut self, port: &AppPort) {
        for key in [
            AnnotationKey::CallerCaSecret,
            AnnotationKey::CallerCaPath,
            AnnotationKey::IdentityHeader,
        ] {
            if let Some(written) = self.get(port, key) {
                let remedy = advice(port.container_port);
                let problem = "has no effect where TLS is not terminated";
                self.out.notes.push(Fault::text(
                    written.annotation,
                    &written.value,
                    problem,
                    remedy,
                ));
            }
        }
    }

    fn refuse(&mut self, written: &Written, problem: &str, remedy: &str) {
        let fault = Fault::text(&written.annotation, &written.value, problem, remedy);
        // One annotation may be asked for by several ports.
        if !self.out.faults.iter().any(|known| *known == fault) {
            self.out.faults.push(fault);
        }
    }
}

/// The two annotations without a port.
#[derive(Default)]
struct Legacy {
    terminating: Option<SecretSource>,
    originating: Option<SecretSource>,
}

impl Legacy {
    fn read(annotations: &BTreeMap<String, String>, reader: &mut Reader<'_>) -> Self {
        let named = |prefix: &str, what: &str| {
            let annotation = format!("{prefix}inject-{what}-tls-secret");
            let value = annotations
                .get(&annotation)
                .filter(|value| !value.trim().is_empty())?;
            Some((annotation, value.clone()))
        };
        // The oldest prefix is used only if neither annotation has a newer one.
        let pick = |prefixes: &[&str]| {
            ["terminating", "originating"]
                .map(|what| prefixes.iter().find_map(|prefix| named(prefix, what)))
        };
        let mut picked = pick(&[PREFIX, OLDER_PREFIX]);
        if picked.iter().all(Option::is_none) {
            picked = pick(&[OLDEST_PREFIX]);
        }
        let [terminating, originating] = picked;
        let mut source = |found: Option<(String, String)>, dir: &str| {
            let (annotation, value) = found?;
            let written = Written {
                value: reader.expand(&value),
                annotation,
            };
            if !is_secret_name(&written.value) {
                reader.refuse(
                    &written,
                    "is not a Secret's name",
                    "write the name alone, without a path",
                );
                return None;
            }
            Some(reader.source(
                &written.annotation,
                &written.value,
                vec![reader.rooted(Path::new(dir))],
            ))
        };
        Self {
            terminating: source(terminating, TERMINATING_DIR),
            originating: source(originating, ORIGINATING_DIR),
        }
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// Checks an RFC 1123 subdomain, as Kubernetes requires of a Secret's name.
fn is_secret_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.bytes().all(allowed)
        && ends(name.bytes().next())
        && ends(name.bytes().last())
        // RFC 1123 forbids empty labels.
        && !name.contains("..")
}

fn mount_of(secret: &str) -> PathBuf {
    Path::new(SECRETS_DIR).join(secret)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}
