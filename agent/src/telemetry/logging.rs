//! Log output: text or JSON on standard error, with levels that admin and manager change at run
//! time.
//!
//! Lines go through a bounded queue to a separate thread, so that a reader that stalls costs lines,
//! which are counted, but never a connection. Whatever a name contains, an event is one line.
//!
//! One filter combines the agent's level, the data path's level (`envoy.logLevel`) for the modules
//! that carry traffic, and levels of single modules set by an operator. Only the filter is
//! reloaded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};
use traffic_proto::log_level::LogLevel;
use traffic_proto::log_queue::{LogEvent, LogQueue};
use traffic_proto::printable::Notation;

/// Logger names of the data path; `envoy.logLevel` applies to them.
pub const DATA_PATH: [&str; 10] = [
    "port", "detect", "tls", "http1", "http2", "opaque", "udp", "relay", "upstream", "access",
];

/// Logger names of the control side.
pub const CONTROL: [&str; 5] = ["session", "admin", "app", "settings", "share"];

/// Returns the modules of a logger, below the crate.
fn modules_of(logger: &str) -> &[&str] {
    match logger {
        "port" => &[
            "proxy::listener",
            "proxy::connection",
            "proxy::protocol_probe",
        ],
        "detect" => &["proxy::detect"],
        "tls" => &["tls"],
        "http1" => &["proxy::http1"],
        "http2" => &["proxy::http2"],
        "opaque" => &["proxy::opaque"],
        "udp" => &["proxy::udp"],
        "relay" => &["io"],
        "upstream" => &["upstream"],
        "access" => &["telemetry::access_log"],
        "session" => &["control"],
        "settings" => &["app::settings"],
        "share" => &["control::container_env"],
        "admin" => &["admin"],
        "app" => &["app"],
        _ => &[],
    }
}

const CRATE: &str = "traffic_agent";

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Time, level, module, message and fields.
    #[default]
    Text,
    /// JSON, one object per line.
    Json,
}

/// Log levels in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Level of the agent.
    pub agent: LogLevel,
    /// Level of the data path; `None` follows the agent's.
    pub data: Option<LogLevel>,
    /// Levels of single modules, by name as in [`DATA_PATH`] and [`CONTROL`].
    pub modules: BTreeMap<String, LogLevel>,
    /// Level set by the manager; overrides the agent's level while present.
    pub level_override: Option<LogLevel>,
}

impl Levels {
    /// Creates levels without overrides by the manager or an operator.
    #[must_use]
    pub fn new(agent: LogLevel, data: Option<LogLevel>) -> Self {
        Self {
            agent,
            data,
            modules: BTreeMap::new(),
            level_override: None,
        }
    }

    /// Effective level of the agent.
    fn of_agent(&self) -> LogLevel {
        self.level_override.unwrap_or(self.agent)
    }

    /// Effective level of the data path.
    fn of_data(&self) -> LogLevel {
        self.data.unwrap_or_else(|| self.of_agent())
    }
}

/// A change of levels that is known to be possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LevelChange {
    /// Of every module.
    All(LogLevel),
    /// Of one module.
    Module(String, LogLevel),
}

impl LevelChange {
    /// Returns the change of every module.
    ///
    /// # Errors
    /// The level is unknown.
    pub fn all(level: &str) -> Result<Self, LevelError> {
        Ok(Self::All(parse_level(level)?))
    }

    /// Returns the change of one module.
    ///
    /// # Errors
    /// The module does not exist, or the level is unknown.
    pub fn of_module(module: &str, level: &str) -> Result<Self, LevelError> {
        if !DATA_PATH.contains(&module) && !CONTROL.contains(&module) {
            return Err(LevelError::Module(module.to_owned()));
        }
        Ok(Self::Module(module.to_owned(), parse_level(level)?))
    }
}

/// Changes levels at run time; cheap to clone.
#[derive(Clone, Debug)]
pub struct LogControl {
    configured: Arc<Levels>,
    current: Arc<Mutex<Levels>>,
    filter: Option<reload::Handle<Targets, Registry>>,
    lines: Option<Arc<LogQueue>>,
}

/// An unknown module or level.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LevelError {
    /// Unknown level name.
    #[error("unknown logger level {0:?}: use trace, debug, info, warning, error, critical or off")]
    Level(String),
    /// Unknown module name.
    #[error("unknown logger {0:?}: see the list that POST /logging prints")]
    Module(String),
}

/// Starts logging to standard error. A second call in one process (tests) changes nothing but
/// returns a working handle on its own state.
///
/// # Errors
/// The writer's thread cannot be started.
pub fn start(levels: Levels, format: LogFormat) -> std::io::Result<LogControl> {
    let notation = match format {
        LogFormat::Text => Notation::Text,
        LogFormat::Json => Notation::Json,
    };
    let lines = LogQueue::start("log", std::io::stderr(), Some(notation), said)?;
    let lines = Arc::new(lines);
    let (filter, handle) = reload::Layer::new(targets(&levels));
    let registry = tracing_subscriber::registry();
    let started = match format {
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .with_writer(Arc::clone(&lines))
                    .with_ansi(false)
                    .with_filter(filter),
            )
            .try_init(),
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_writer(Arc::clone(&lines))
                    .with_filter(filter),
            )
            .try_init(),
    };
    if started.is_ok() {
        // The standard library's own hook would wait for a reader that stalls.
        std::panic::set_hook(Box::new(|panic| tracing::error!("bug: {panic}")));
    }
    let handle = started.ok().map(|()| handle);
    let lines = handle.is_some().then_some(lines);
    Ok(LogControl::new(levels, handle, lines))
}

fn said(event: LogEvent<'_>) {
    // While lines are dropped there is nobody to tell but the metric.
    if let LogEvent::Resumed(dropped) = event {
        tracing::warn!(
            dropped,
            "log: lines were dropped because the reader of standard error stalled"
        );
    }
}

impl LogControl {
    fn new(
        levels: Levels,
        filter: Option<reload::Handle<Targets, Registry>>,
        lines: Option<Arc<LogQueue>>,
    ) -> Self {
        Self {
            configured: Arc::new(levels.clone()),
            current: Arc::new(Mutex::new(levels)),
            filter,
            lines,
        }
    }

    /// Creates a control that changes nothing, for compositions without logging.
    #[must_use]
    pub fn detached() -> Self {
        Self::new(Levels::new(LogLevel::Info, None), None, None)
    }

    /// Lines dropped because the reader stalled.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lines.as_ref().map_or(0, |lines| lines.dropped())
    }

    /// Waits until all lines are written, at most for `limit`; before the process ends.
    pub fn flush(&self, limit: Duration) {
        if let Some(lines) = &self.lines {
            lines.flush(limit);
        }
    }

    /// Applies changes, all at once.
    pub fn apply(&self, changes: impl IntoIterator<Item = LevelChange>) {
        self.change(|levels| {
            for change in changes {
                match change {
                    LevelChange::All(level) => *levels = Levels::new(level, None),
                    LevelChange::Module(module, level) => {
                        levels.modules.insert(module, level);
                    }
                }
            }
        });
    }

    /// Sets the manager's override of the agent's level; levels of the data path and of single
    /// modules stay. `None` removes it: the agent's level is again the configured one, or the one
    /// an operator set meanwhile.
    pub fn level_override(&self, level: Option<LogLevel>) {
        self.change(|l| l.level_override = level);
    }

    /// Restores the configured levels.
    pub fn restore(&self) {
        self.change(|l| *l = (*self.configured).clone());
    }

    /// Configured level of the agent.
    #[must_use]
    pub fn configured(&self) -> LogLevel {
        self.configured.agent
    }

    /// Returns every module with its level, in name order.
    #[must_use]
    pub fn loggers(&self) -> BTreeMap<&'static str, LogLevel> {
        let levels = self.lock().clone();
        CONTROL
            .iter()
            .map(|m| (*m, levels.of_agent()))
            .chain(DATA_PATH.iter().map(|m| (*m, levels.of_data())))
            .map(|(m, level)| (m, levels.modules.get(m).copied().unwrap_or(level)))
            .collect()
    }

    fn change(&self, change: impl FnOnce(&mut Levels)) {
        let mut current = self.lock();
        change(&mut current);
        if let Some(filter) = &self.filter {
            // The handle fails only if the subscriber is gone, and then no lines are written.
            let _ = filter.reload(targets(&current));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Levels> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parses a level by any name users know (Envoy's and common synonyms).
///
/// # Errors
/// The name is unknown.
pub fn parse_level(name: &str) -> Result<LogLevel, LevelError> {
    name.parse().map_err(|_| LevelError::Level(name.to_owned()))
}

fn targets(levels: &Levels) -> Targets {
    // Libraries log below warnings only if the agent itself logs everything.
    let agent = levels.of_agent();
    let others = if agent == LogLevel::Trace {
        LevelFilter::DEBUG
    } else {
        filter_of(agent).min(LevelFilter::WARN)
    };
    let mut targets = Targets::new()
        .with_default(others)
        .with_target(CRATE, filter_of(agent));
    let data = DATA_PATH.iter().map(|name| (*name, levels.of_data()));
    let single = levels
        .modules
        .iter()
        .map(|(name, level)| (name.as_str(), *level));
    for (name, level) in data.chain(single) {
        for module in modules_of(name) {
            targets = targets.with_target(format!("{CRATE}::{module}"), filter_of(level));
        }
    }
    targets
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        // `tracing` has no level above errors, so critical lines are errors.
        LogLevel::Critical | LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_logger_stands_for_modules_that_exist() {
        let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for name in DATA_PATH.iter().chain(&CONTROL) {
            assert!(!modules_of(name).is_empty(), "{name}");
            for module in modules_of(name) {
                let file = src.join(module.replace("::", "/")).with_extension("rs");
                assert!(file.exists(), "{name}: no {}", file.display());
            }
        }
    }

    fn levels() -> Levels {
        Levels::new(LogLevel::Info, Some(LogLevel::Warning))
    }

    #[test]
    fn the_data_path_has_a_level_of_its_own_and_a_module_may_differ() {
        let control = LogControl::new(levels(), None, None);
        assert_eq!(control.loggers()["session"], LogLevel::Info);
        assert_eq!(control.loggers()["http1"], LogLevel::Warning);
        control.apply([LevelChange::of_module("http1", "trace").unwrap()]);
        assert_eq!(control.loggers()["http1"], LogLevel::Trace);
        control.apply([LevelChange::All(LogLevel::Error)]);
        assert!(control.loggers().values().all(|l| *l == LogLevel::Error));
        control.restore();
        assert_eq!(*control.lock(), levels());
    }

    #[test]
    fn a_wish_of_the_manager_ends_where_the_operator_has_brought_the_levels() {
        let control = LogControl::new(levels(), None, None);
        control.level_override(Some(LogLevel::Trace));
        assert_eq!(
            (control.loggers()["session"], control.loggers()["http1"]),
            (LogLevel::Trace, LogLevel::Warning)
        );
        control.level_override(None);
        assert_eq!(*control.lock(), levels());
        control.apply([LevelChange::All(LogLevel::Error)]);
        control.level_override(Some(LogLevel::Trace));
        control.level_override(None);
        assert!(
            control.loggers().values().all(|l| *l == LogLevel::Error),
            "not the configured level"
        );
        control.level_override(Some(LogLevel::Trace));
        control.apply([LevelChange::All(LogLevel::Debug)]);
        assert!(
            control.loggers().values().all(|l| *l == LogLevel::Debug),
            "who orders last is obeyed"
        );
    }

    #[test]
    fn an_unknown_module_or_level_is_named() {
        assert_eq!(
            LevelChange::of_module("nope", "info"),
            Err(LevelError::Module("nope".to_owned()))
        );
        assert!(
            parse_level("bogus")
                .unwrap_err()
                .to_string()
                .contains("bogus")
        );
    }

    #[test]
    fn the_filter_lets_through_what_the_levels_say() {
        let mut l = levels();
        l.modules.insert("udp".to_owned(), LogLevel::Off);
        let t = targets(&l);
        assert!(t.would_enable("traffic_agent::control::session", &tracing::Level::INFO));
        assert!(!t.would_enable(
            "traffic_agent::proxy::http1::exchange",
            &tracing::Level::INFO
        ));
        assert!(t.would_enable(
            "traffic_agent::proxy::http1::exchange",
            &tracing::Level::WARN
        ));
        assert!(!t.would_enable("traffic_agent::proxy::udp", &tracing::Level::ERROR));
        assert!(!t.would_enable("h2::proto", &tracing::Level::INFO));
    }
}
