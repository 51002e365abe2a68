//! The manager's page: who intercepts what, with what success; agents, clients, and in a cluster what
//! the webhook was asked. All of it is read at once, and only shown.

use std::time::{Duration, SystemTime};

use tracing::Level;
use traffic_proto::build_info;
use traffic_proto::html::{Column, Html, Site, Table, escape, facts, span};
use traffic_proto::manager::{
    AgentInfo, ClientInfo, InterceptDispositionType as Disposition, InterceptInfo, InterceptSpec,
};

use crate::cluster::{Cluster, Figures, Review};
use crate::intercepts::{owner, spec_of};
use crate::registry::{Registry, Shared};
use crate::sessions::Party;
use crate::settings::Settings;

/// Seconds after which the page is loaded anew.
const REFRESH_INTERVAL: u32 = 5;
/// Most rows of a table.
const MAX_ROWS: usize = 500;

const SITE: Site = Site {
    program: "traffic-manager",
    pages: &[
        ("#intercepts", "intercepts"),
        ("#agents", "agents"),
        ("#clients", "clients"),
        ("/metrics", "metrics"),
    ],
};

/// Contents of the page, copied from the state at one moment.
pub(crate) struct View {
    intercepts: Listed<InterceptInfo>,
    agents: Listed<Agent>,
    clients: Listed<Client>,
    /// In a cluster.
    cluster: Option<(Figures, Vec<Review>)>,
    is_ready: bool,
}

/// The first rows of a table, and how many there are.
struct Listed<T> {
    rows: Vec<T>,
    total: usize,
}

impl<T> Listed<T> {
    fn of(all: impl Iterator<Item = T>) -> Self {
        let (mut rows, mut total) = (Vec::new(), 0);
        for one in all {
            total += 1;
            if rows.len() < MAX_ROWS {
                rows.push(one);
            }
        }
        Self { rows, total }
    }

    /// A sentence on what is left out.
    fn rest(&self) -> String {
        match self.total - self.rows.len() {
            0 => String::new(),
            more => format!("<p class='dim'>and {more} more</p>\n"),
        }
    }
}

struct Agent {
    info: AgentInfo,
    intercepts: usize,
    seen: Duration,
}

struct Client {
    info: ClientInfo,
    intercepts: usize,
    seen: Duration,
    is_absent: bool,
}

/// Returns true if the manager is ready to serve.
pub(crate) fn is_ready(cluster: Option<&Cluster>) -> bool {
    cluster.is_none_or(Cluster::is_ready)
}

impl View {
    /// Reads the state.
    pub(crate) fn read(shared: &Shared, cluster: Option<&Cluster>) -> Self {
        // One look at the state, so that the lists agree with each other.
        let (intercepts, agents, clients) = shared.read(|registry| {
            let shown = registry.intercepts.shown_of("").map(|info| InterceptInfo {
                // Variables are often secrets, and do not appear.
                environment: Default::default(),
                ..info.value().clone()
            });
            let intercepts = Listed::of(shown);
            (intercepts, agents(registry), clients(registry))
        });
        Self {
            intercepts,
            agents,
            clients,
            cluster: cluster.map(|it| (it.figures(), it.reviews())),
            is_ready: is_ready(cluster),
        }
    }
}

fn agents(registry: &Registry) -> Listed<Agent> {
    let of = |(_, session): (&str, &crate::sessions::Session)| match &session.party {
        Party::Agent(info) => Some(Agent {
            intercepts: registry
                .intercepts
                .iter()
                .filter(|it| crate::intercepts::is_workload(spec_of(it), info))
                .count(),
            // Its environment may be large, and does not appear.
            info: AgentInfo {
                name: info.name.clone(),
                namespace: info.namespace.clone(),
                pod_name: info.pod_name.clone(),
                version: info.version.clone(),
                ..AgentInfo::default()
            },
            seen: session.seen.elapsed(),
        }),
        Party::Client(_) => None,
    };
    Listed::of(registry.sessions.iter().filter_map(of))
}

fn clients(registry: &Registry) -> Listed<Client> {
    let of = |(id, session): (&str, &crate::sessions::Session)| match &session.party {
        Party::Client(info) => Some(Client {
            intercepts: registry
                .intercepts
                .iter()
                .filter(|it| owner(it) == id)
                .count(),
            info: info.clone(),
            seen: session.seen.elapsed(),
            is_absent: registry.sessions.is_absent(id),
        }),
        Party::Agent(_) => None,
    };
    Listed::of(registry.sessions.iter().filter_map(of))
}

/// Renders the page.
pub(crate) fn render(view: &View, settings: &Settings, level: Level, up: Duration) -> String {
    let now = SystemTime::now();
    let state = if view.is_ready { "ready" } else { "starting" };
    let mut body = facts([
        ("version", Html::text(build_info::LONG)),
        (
            "feature level",
            Html::text(&format!("{} {}", settings.name, settings.version)),
        ),
        ("namespace", Html::text(&settings.namespace)),
        ("state", Html::verdict(view.is_ready, state)),
        ("up for", Html(span(up.as_secs()))),
        ("log level", Html::text(&level.to_string().to_lowercase())),
    ]);
    body.push_str(&heading("intercepts", "Intercepts", view.intercepts.total));
    body.push_str(&intercepts_table(&view.intercepts.rows, now));
    body.push_str(&view.intercepts.rest());
    body.push_str(&heading("agents", "Agents", view.agents.total));
    body.push_str(&agents_table(&view.agents.rows));
    body.push_str(&view.agents.rest());
    body.push_str(&heading("clients", "Clients", view.clients.total));
    body.push_str(&clients_table(&view.clients.rows));
    body.push_str(&view.clients.rest());
    if let Some((figures, reviews)) = &view.cluster {
        body.push_str(&cluster_part(figures, reviews, now));
    }
    SITE.page("Traffic manager", Some(REFRESH_INTERVAL), &body)
}

fn heading(id: &str, name: &str, total: usize) -> String {
    format!("<h2 id='{id}'>{name} <small>({total})</small></h2>\n")
}

fn intercepts_table(intercepts: &[InterceptInfo], now: SystemTime) -> String {
    let mut rows = Table::new([
        Column::Text("Name"),
        Column::Text("Whose"),
        Column::Text("Workload"),
        Column::Text("Takes"),
        Column::Text("Goes to"),
        Column::Text("State"),
        Column::Text("Pod"),
        Column::Number("To the workstation"),
        Column::Number("To the app"),
        Column::Text("Note"),
    ]);
    for info in intercepts {
        let spec = spec_of(info);
        let port = match spec.port_identifier.as_str() {
            "" => String::new(),
            port => format!(", port {port}"),
        };
        let target = format!("{}:{}", spec.target_host, spec.target_port);
        let further = spec.pod_ports.iter();
        let further = further.map(|port| Html::text(&format!("and port {port}")));
        let targets: Vec<_> = [Html::text(&target)].into_iter().chain(further).collect();
        rows.row([
            Html::text(&spec.name),
            Html::text(&spec.client),
            Html::text(&format!("{}.{}{port}", spec.agent, spec.namespace)),
            takes(info, spec),
            Html::lines(&targets),
            state(info, now),
            Html::text(&info.pod_name),
            Html::from(info.hits),
            Html::from(info.failed_open),
            Html::text(&info.message),
        ]);
    }
    rows.or("Nobody intercepts anything: all requests go to the apps.")
}

/// Traffic that is taken, as the agent describes it, else as it was asked for.
fn takes(info: &InterceptInfo, spec: &InterceptSpec) -> Html {
    let taken = taken(info, spec);
    match spec.wiretap {
        true => Html::lines(&[Html::text("copies of"), taken]),
        false => taken,
    }
}

fn taken(info: &InterceptInfo, spec: &InterceptSpec) -> Html {
    if !info.mechanism_args_desc.is_empty() {
        return Html::text(&info.mechanism_args_desc);
    }
    let headers = spec.header_filters.iter();
    let headers = headers.map(|(name, value)| Html::code(&format!("{name}: {value}")));
    let paths = spec.path_filters.iter().map(|path| Html::code(path));
    let all: Vec<_> = headers.chain(paths).collect();
    match all.is_empty() {
        true => Html::text("everything"),
        false => Html::lines(&all),
    }
}

/// The state with the time since it is so.
fn state(info: &InterceptInfo, now: SystemTime) -> Html {
    let state = info.disposition();
    let word = Html::verdict(state == Disposition::Active, state.as_str_name());
    let since = info.modified_at.as_ref();
    let since = since.and_then(|it| SystemTime::try_from(*it).ok());
    match since.and_then(|it| now.duration_since(it).ok()) {
        Some(age) => Html(format!("{} for {}", word.0, span(age.as_secs()))),
        None => word,
    }
}

fn agents_table(agents: &[Agent]) -> String {
    let mut rows = Table::new([
        Column::Text("Workload"),
        Column::Text("Pod"),
        Column::Text("Version"),
        Column::Number("Intercepts"),
        Column::Text("Last contact"),
    ]);
    for agent in agents {
        let info = &agent.info;
        rows.row([
            Html::text(&format!("{}.{}", info.name, info.namespace)),
            Html::text(&info.pod_name),
            Html::text(&info.version),
            Html::from(agent.intercepts as u64),
            ago(agent.seen),
        ]);
    }
    rows.or("No agent is connected.")
}

fn clients_table(clients: &[Client]) -> String {
    let mut rows = Table::new([
        Column::Text("Name"),
        Column::Text("Version"),
        Column::Text("Namespace"),
        Column::Number("Intercepts"),
        Column::Text("State"),
        Column::Text("Last contact"),
    ]);
    for client in clients {
        let info = &client.info;
        let state = if client.is_absent { "away" } else { "here" };
        rows.row([
            Html::text(&info.name),
            Html::text(&info.version),
            Html::text(&info.namespace),
            Html::from(client.intercepts as u64),
            Html::verdict(!client.is_absent, state),
            ago(client.seen),
        ]);
    }
    rows.or("No workstation is connected.")
}

fn ago(time: Duration) -> Html {
    Html(format!("{} ago", span(time.as_secs())))
}

fn cluster_part(figures: &Figures, reviews: &[Review], now: SystemTime) -> String {
    let certificate = match figures.certificate_seconds {
        Some(left) => match u64::try_from(left) {
            Ok(left) => Html::text(&format!("valid for {}", span(left))),
            Err(_) => Html::verdict(false, "expired"),
        },
        None => Html::verdict(false, "none"),
    };
    let counts = figures
        .reviews
        .map(|(verdict, number)| format!("{number} {verdict}"));
    let mut part = format!(
        "<h2 id='webhook'>Webhook</h2>\n{}",
        facts([
            ("certificate", certificate),
            ("pods asked about", Html(escape(&counts.join(", ")))),
            (
                "workloads with an agent",
                Html::from(figures.workloads as u64)
            ),
            (
                "workloads being rolled out",
                Html::from(figures.rolling as u64)
            ),
        ])
    );
    let mut rows = Table::new([
        Column::Text("When"),
        Column::Text("Pod"),
        Column::Text("Verdict"),
        Column::Text("Reason"),
    ]);
    for review in reviews {
        let age = now.duration_since(review.at).unwrap_or_default();
        rows.row([
            ago(age),
            Html::text(&format!("{}.{}", review.pod, review.namespace)),
            Html::verdict(review.verdict != "refused", review.verdict),
            Html::text(&review.reasons),
        ]);
    }
    part.push_str(&rows.or("The API server has not asked yet since this manager started."));
    part
}

#[cfg(test)]
mod tests;
