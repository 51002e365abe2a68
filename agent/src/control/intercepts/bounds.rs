//! Bounds of intercepts: how many, how large, and how much memory their patterns may take. What is
//! beyond is refused with the bound named, before it is compiled where that can be told.

use traffic_core::routing::matcher::Filters;

use crate::control::intercepts::guard_rails::Rails;
use crate::control::intercepts::refusal::Refusal;
use crate::control::intercepts::shown::ShownSpec;
use crate::limits::Limits;

/// Bounds of intercepts.
#[derive(Clone, Debug)]
pub struct Bounds {
    intercepts: usize,
    per_port: usize,
    per_client: usize,
    filters: usize,
    filter_bytes: usize,
    pattern_bytes: usize,
    port_pattern_bytes: usize,
    rails: Rails,
}

/// What a port has promised already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PortLoad {
    pub(crate) intercepts: usize,
    pub(crate) of_client: usize,
    pub(crate) pattern_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self::of(&Limits::default())
    }
}

impl Bounds {
    /// Takes them from the settings.
    #[must_use]
    pub fn of(limits: &Limits) -> Self {
        Self {
            intercepts: limits.intercepts,
            per_port: limits.intercepts_per_port,
            per_client: limits.intercepts_per_client,
            filters: limits.filters,
            filter_bytes: limits.filter_bytes.0,
            pattern_bytes: limits.pattern_bytes.0,
            port_pattern_bytes: limits.port_pattern_bytes.0,
            rails: Rails::default(),
        }
    }

    /// Adds the platform team's rules.
    #[must_use]
    pub fn guarded(self, rails: Rails) -> Self {
        Self { rails, ..self }
    }

    pub(crate) fn rails(&self) -> &Rails {
        &self.rails
    }

    /// Intercepts that are looked at.
    pub(crate) fn intercepts(&self) -> usize {
        self.intercepts
    }

    /// Checks a spec before anything of it is compiled.
    pub(crate) fn check_spec(&self, spec: &ShownSpec) -> Result<(), Refusal> {
        let args = spec.mechanism_args.len();
        let count = spec.header_filters.len() + spec.path_filters.len() + args;
        within(count, self.filters, "filters", "filters")?;
        let headers = spec.header_filters.iter();
        let headers = headers.map(|(name, value)| name.len() + value.len());
        let texts = spec.path_filters.iter().chain(&spec.mechanism_args);
        let bytes = headers.chain(texts.map(String::len)).sum();
        within(bytes, self.filter_bytes, "bytes of filters", "filterBytes")
    }

    /// Checks the memory of compiled filters, and returns it.
    pub(crate) fn check_patterns(&self, filters: &Filters) -> Result<usize, Refusal> {
        let bytes = filters.memory();
        within(
            bytes,
            self.pattern_bytes,
            "bytes of compiled patterns",
            "patternBytes",
        )?;
        Ok(bytes)
    }

    /// Checks if a port can take one more intercept.
    pub(crate) fn check_port(&self, load: PortLoad, pattern_bytes: usize) -> Result<(), Refusal> {
        let refused = |what: &str, limit: usize, setting: &str| {
            Err(Refusal::of_agent(format!(
                "this port serves {limit} {what} already, the most it may ({setting}); end one that \
                is not needed"
            ))
            .by_bound())
        };
        self.rails.check_number(load.intercepts)?;
        if load.intercepts >= self.per_port {
            return refused("intercepts", self.per_port, "interceptsPerPort");
        }
        if load.of_client >= self.per_client {
            return refused(
                "intercepts of this client",
                self.per_client,
                "interceptsPerClient",
            );
        }
        if load.pattern_bytes + pattern_bytes > self.port_pattern_bytes {
            let limit = self.port_pattern_bytes;
            return refused("bytes of compiled patterns", limit, "portPatternBytes");
        }
        Ok(())
    }

    /// The refusal of one that is not even looked at.
    pub(crate) fn too_many(&self) -> Refusal {
        Refusal::of_agent(format!(
            "this agent looks at {} intercepts at most (intercepts); end one that is not needed",
            self.intercepts
        ))
        .by_bound()
    }
}

fn within(is: usize, limit: usize, what: &str, setting: &str) -> Result<(), Refusal> {
    if is <= limit {
        return Ok(());
    }
    Err(Refusal::of_spec(format!(
        "the intercept has {is} {what}; this agent takes {limit} ({setting}), use fewer"
    ))
    .by_bound())
}
