//! Text of `--check`: the effect of a configuration in words.

use std::fmt::Write as _;

use traffic_proto::port::Transport;
use traffic_proto::sidecar::Target;

use crate::app::ports;
use crate::app::settings::{Bind, Settings, protocol};
use crate::proxy::context;
use crate::proxy::context::AppProtocol;
use crate::tls::secrets::annotations::{CallerAuth, PortPlan, ToApp};
use crate::tls::secrets::secret::SecretSource;

/// Describes everything: a line or two for each port, warnings last.
pub(crate) fn of(settings: &Settings) -> String {
    let s = &settings.sidecar;
    let mut text = format!(
        "configuration: {}\nagent: {}.{}, manager {}\n",
        settings.source,
        s.agent_name,
        s.namespace,
        crate::app::control::manager_address(settings)
    );
    let plans = ports::read_tls_annotations(settings);
    for target in &settings.targets {
        let mut plans = plans.ports.iter();
        let plan = plans.find(|p| p.container_port == target.container_port.get());
        port(settings, target, plan, &mut text);
    }
    own(settings, &mut text);
    for warning in settings.warnings.iter().chain(&plans.notes) {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn port(settings: &Settings, target: &Target, plan: Option<&PortPlan>, text: &mut String) {
    let how = if target.is_redirected() {
        "are redirected to"
    } else {
        "arrive at"
    };
    let app = if target.replaced {
        "the container is replaced by an intercept".to_owned()
    } else {
        format!(
            "the app is dialled at {}",
            ports::app_addr(settings, target)
        )
    };
    let _ = writeln!(
        text,
        "port {}/{} of {}: callers {how} {}, {app}",
        target.container_port,
        target.transport,
        target.container,
        target.listen_port(),
    );
    if target.transport == Transport::Udp {
        let _ = writeln!(text, "    datagrams, by caller");
        return;
    }
    let (declared, source, odd) = protocol::of(
        target,
        &settings.annotations,
        settings.sidecar.app_protocol_strategy,
    );
    let _ = writeln!(
        text,
        "    protocol: {}",
        protocol_text(settings, declared, source)
    );
    if let Some(odd) = odd {
        let _ = writeln!(text, "    warning: {odd}");
    }
    let _ = writeln!(
        text,
        "    TLS: {}",
        plan.map_or_else(|| "callers' TLS is relayed, not terminated".to_owned(), tls)
    );
}

fn protocol_text(
    settings: &Settings,
    declared: AppProtocol,
    source: context::ProtocolSource,
) -> String {
    match declared {
        AppProtocol::Unknown if ports::may_ask_in_clear_text(settings) => {
            "undeclared; detected from each connection's first bytes, and the app is probed once \
            there is an intercept"
                .to_owned()
        }
        AppProtocol::Unknown => {
            "undeclared; detected from each connection's first bytes".to_owned()
        }
        AppProtocol::Opaque => {
            format!(
                "tcp by {}; relayed opaquely, intercepts take whole connections",
                source.word()
            )
        }
        AppProtocol::Http2 => format!(
            "http2 by {}; TLS or clear text is detected from each connection's first bytes",
            source.word()
        ),
        known => format!("{} by {}", known.word(), source.word()),
    }
}

fn tls(plan: &PortPlan) -> String {
    let mut text = match plan.terminating.as_slice() {
        [] => "callers' is relayed, not terminated".to_owned(),
        sources => {
            let names: Vec<_> = sources.iter().map(named).collect();
            format!("callers' is terminated with {}", names.join(", "))
        }
    };
    if let Some((ca, auth)) = &plan.caller_ca {
        let must = if *auth == CallerAuth::Required {
            "must"
        } else {
            "may"
        };
        let _ = write!(text, "; callers {must} show a certificate by {}", named(ca));
    }
    let to_app = match plan.to_app {
        ToApp::Clear => "clear text",
        ToApp::Tls => "TLS",
        ToApp::Ask => "as probed",
    };
    let _ = write!(text, "; to the app: {to_app}");
    if let Some(source) = &plan.originating {
        let _ = write!(text, ", with the client certificate {}", named(source));
    }
    text
}

/// Names a secret as its user did, and says if it is present.
fn named(source: &SecretSource) -> String {
    let there = source.dirs.iter().any(|dir| dir.exists());
    format!(
        "{}{}",
        source.value,
        if there {
            ""
        } else {
            " (missing: until it is there, the port works without it)"
        }
    )
}

/// Describes settings that belong to no single port.
fn own(settings: &Settings, text: &mut String) {
    let s = &settings.sidecar;
    let port = |number: u16| {
        if number == 0 {
            "any free port".to_owned()
        } else {
            format!("port {number}")
        }
    };
    let whom = match settings.bind {
        Bind::Pod => "loopback only",
        Bind::All => "every address",
    };
    let data = s
        .envoy
        .log_level
        .map_or_else(String::new, |level| format!(", data path {level}"));
    let headers = match settings.access_log_headers.as_slice() {
        [] => String::new(),
        names => format!(" with the values of {}", names.join(", ")),
    };
    let (lame_duck, grace) = (s.drain.lame_duck, s.drain.grace);
    let most = (lame_duck + grace).as_secs_f64().ceil() + 1.0;
    let _ = writeln!(
        text,
        "gRPC API: {}; admin: {}; on {whom}",
        port(settings.server_port),
        port(settings.admin_port)
    );
    if let Some(metrics) = settings.metrics_port {
        let _ = writeln!(
            text,
            "metrics: port {metrics}, path /metrics; on every address"
        );
    }
    let _ = writeln!(
        text,
        "log level: {}{data}; access log: {}{headers}",
        settings.log_level, settings.access_log
    );
    let _ = writeln!(
        text,
        "shutdown: accepts for {lame_duck:?} after SIGTERM, then open connections have {grace:?}; \
        the pod's terminationGracePeriodSeconds has to be at least {most}"
    );
}
