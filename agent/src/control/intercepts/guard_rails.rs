//! The platform team's rules on intercepts, from the chart and from the pod's annotations. An
//! intercept has to keep both; a refusal names the rule and who set it.

use std::collections::BTreeMap;
use std::time::Duration;

use traffic_core::routing::matcher::Filters;
use traffic_proto::duration::GoDuration;
use traffic_proto::guard_rails::{GuardRails, Rule, is_named};

use crate::control::intercepts::refusal::Refusal;

/// Domain of the annotations, as refusals write them.
const DOMAIN: &str = "telepresence.io/";

/// The rules in force.
#[derive(Clone, Debug, Default)]
pub struct Rails {
    chart: GuardRails,
    annotated: GuardRails,
    /// What is wrong with the annotations; nothing is served then.
    unreadable: Option<String>,
}

/// Party that set a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Chart,
    Annotation,
}

impl Source {
    fn of(self, rule: Rule) -> String {
        match self {
            Self::Chart => format!("set by the chart value {}", rule.chart_value()),
            Self::Annotation => {
                format!("set by the pod's annotation {DOMAIN}{}", rule.annotation())
            }
        }
    }
}

impl Rails {
    /// Takes the chart's rules from the configuration and the pod's from its annotations.
    #[must_use]
    pub fn of(chart: &GuardRails, annotations: &BTreeMap<String, String>) -> Self {
        let chart = chart.clone();
        match GuardRails::of_annotations(annotations) {
            Ok(annotated) => Self {
                chart,
                annotated,
                unreadable: None,
            },
            Err(faults) => Self {
                chart,
                annotated: GuardRails::default(),
                unreadable: Some(faults.to_string().replace('\n', "; ")),
            },
        }
    }

    /// What is wrong with the pod's annotations.
    #[must_use]
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    fn sources(&self) -> [(&GuardRails, Source); 2] {
        [
            (&self.chart, Source::Chart),
            (&self.annotated, Source::Annotation),
        ]
    }

    /// Checks what an intercept takes. A wiretap takes nothing away, so it may be of a whole port.
    pub(crate) fn check(&self, filters: &Filters, is_wiretap: bool) -> Result<(), Refusal> {
        // A rule that cannot be read may have been the one against this intercept.
        if let Some(problem) = &self.unreadable {
            return Err(Refusal::of_agent(format!(
                "no intercept is served while the pod's rules on intercepts cannot be read: {problem}"
            )));
        }
        for (rails, source) in self.sources() {
            if rails.forbid_global && !is_wiretap {
                check_global(filters, source)?;
            }
            for name in filters.named_headers() {
                check_header(rails, name, source)?;
            }
        }
        Ok(())
    }

    /// Checks if a port that serves so many may take one more.
    pub(crate) fn check_number(&self, served: usize) -> Result<(), Refusal> {
        for (rails, source) in self.sources() {
            if let Some(most) = rails.max_per_port.filter(|most| served >= *most) {
                return Err(Refusal::of_agent(format!(
                    "this port serves {served} intercepts already and may serve {most} ({}); end one \
                     that is not needed",
                    source.of(Rule::MaxPerPort)
                )));
            }
        }
        Ok(())
    }

    /// Returns how long an intercept may live.
    pub(crate) fn max_lifetime(&self) -> Option<Duration> {
        let both = self.sources().map(|(rails, _)| rails.max_lifetime);
        both.into_iter().flatten().min()
    }

    /// The refusal of one that has lived for this long.
    pub(crate) fn too_old(&self, lifetime: Duration) -> Refusal {
        let sources = self.sources();
        let by = sources
            .iter()
            .find(|(rails, _)| rails.max_lifetime == Some(lifetime));
        let source = by.map_or(Source::Chart, |(_, source)| *source);
        Refusal::of_agent(format!(
            "ended: it has lived for {}, as long as intercepts may ({}); create it again if it is \
             still needed",
            GoDuration::from(lifetime),
            source.of(Rule::MaxLifetime)
        ))
    }
}

fn check_global(filters: &Filters, source: Source) -> Result<(), Refusal> {
    let rule = source.of(Rule::AllowGlobal);
    if filters.is_empty() {
        return Err(Refusal::of_spec(format!(
            "intercepts of a whole port are not allowed ({rule}); add --http-header NAME=VALUE"
        )));
    }
    if filters.take_anonymous() {
        return Err(Refusal::of_spec(format!(
            "intercepts of a whole port are not allowed, and these filters take requests that carry \
             nothing of yours ({rule}); add --http-header NAME=VALUE"
        )));
    }
    Ok(())
}

fn check_header(rails: &GuardRails, name: &str, source: Source) -> Result<(), Refusal> {
    let named_by = |patterns: &[String]| patterns.iter().any(|it| is_named(it, name));
    if named_by(&rails.forbidden_headers) {
        return Err(Refusal::of_spec(format!(
            "header {name} must not be intercepted: {} are forbidden ({}); use another header",
            rails.forbidden_headers.join(", "),
            source.of(Rule::ForbiddenHeaders)
        )));
    }
    if !rails.allowed_headers.is_empty() && !named_by(&rails.allowed_headers) {
        return Err(Refusal::of_spec(format!(
            "header {name} must not be intercepted: only {} may be ({}); use one of them",
            rails.allowed_headers.join(", "),
            source.of(Rule::AllowedHeaders)
        )));
    }
    Ok(())
}
