//! Counters of the data path: plain atomics in arrays indexed by closed enums, so that counting is
//! one relaxed add and a scrape does not touch the path. Names and exposition format live with the
//! admin.

mod instruments;

pub use self::instruments::{
    Counter, Gauge, GaugeGuard, LATENCY_BOUNDS_US, Label, Latency, PerLabel,
};
use crate::outcome::Ended;
use crate::telemetry::rate_limit::LogLimiter;

macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $label:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn index(self) -> usize { self as usize }
            fn label(self) -> &'static str { match self { $(Self::$variant => $label),+ } }
        }
    };
}

labels! {
    /// Protocol a connection was carried as.
    Protocol {
        /// HTTP/1.0 or 1.1, parsed message by message.
        Http1 = "http1",
        /// HTTP/2.
        Http2 = "http2",
        /// Bytes relayed without parsing.
        Opaque = "opaque",
    }
}

labels! {
    /// Route of a request or an opaque connection.
    Route {
        /// The app.
        App = "app",
        /// A workstation.
        Client = "client",
        /// None: answered with 503 because its intercept has expired.
        Expired = "expired",
    }
}

labels! {
    /// Reason a connection is carried without being parsed.
    OpaqueReason {
        /// The port is declared as not HTTP.
        Declared = "declared",
        /// The first bytes are not HTTP.
        NotHttp = "not_http",
        /// A TLS record on a port without a terminating secret.
        TlsRelayed = "tls_relayed",
        /// The app spoke first.
        ServerFirst = "server_first",
        /// Detection timed out.
        Undecided = "undecided",
        /// An HTTP/1 message that two parsers could read differently.
        Ambiguous = "ambiguous",
        /// A head larger than the limit.
        OversizedHead = "oversized_head",
        /// A 101 response or a successful CONNECT.
        Upgraded = "upgraded",
        /// Behind an exchange that one side has said to be the last.
        Closing = "closing",
        /// A TCP-mechanism intercept takes the whole connection.
        TcpIntercept = "tcp_intercept",
    }
}

labels! {
    /// Reason a matched request went to the app after all.
    FailOpen {
        /// The tunnel to the workstation could not be opened.
        NoTunnel = "no_tunnel",
        /// The workstation refused the dial.
        DialRejected = "dial_rejected",
        /// The workstation did not answer the dial in time.
        DialTimeout = "dial_timeout",
        /// TLS towards the workstation failed before anything was sent.
        Handshake = "handshake",
        /// The tunnel ended before anything was sent into it.
        Lost = "lost",
        /// Not dialled at all, because earlier dials have failed or are unanswered.
        Skipped = "skipped",
    }
}

labels! {
    /// End of a copy for a wiretap.
    CopyEnd {
        /// The workstation took all of it.
        Sent = "sent",
        /// The caller or the app broke off, so there was no more to copy.
        Broken = "broken",
        /// The workstation reads more slowly than the caller writes.
        Slow = "slow",
        /// The memory of all copies is in use.
        Memory = "memory",
        /// Too many connections for copies are open.
        Lanes = "lanes",
        /// The workstation was not reached.
        Unreachable = "unreachable",
        /// The workstation or its tunnel ended amid the copy.
        Lost = "lost",
    }
}

impl CopyEnd {
    /// Returns true if the wiretap misses something that the caller has sent.
    #[must_use]
    pub fn is_dropped(self) -> bool {
        !matches!(self, Self::Sent | Self::Broken)
    }
}

labels! {
    /// Limits of the agent that were reached.
    Limit {
        /// Maximum of open connections on a port.
        Connections = "connections",
        /// File descriptors, while accepting.
        Descriptors = "descriptors",
        /// Concurrent TLS handshakes.
        Handshakes = "handshakes",
        /// Size of a head.
        HeadBytes = "head_bytes",
        /// Time for a head.
        HeadTime = "head_time",
        /// HTTP/2 streams, resets, settings, pings, continuation frames or header lists beyond the
        /// flood budget.
        Http2Flood = "http2_flood",
        /// Concurrent UDP flows.
        UdpFlows = "udp_flows",
        /// Memory of the process.
        Memory = "memory",
    }
}

labels! {
    /// Limits and refusals of everything around the data path.
    ControlLimit {
        /// Requests to the admin under a host name that is not ours.
        AdminHost = "admin_host",
        /// Dials for workstations to a port of this agent.
        DialOwnPort = "dial_own_port",
        /// Dials for workstations to link-local and metadata addresses.
        DialLinkLocal = "dial_link_local",
        /// Dials for workstations that are under way.
        Dials = "dials",
        /// Connections dialled for workstations.
        DialledConnections = "dialled_connections",
        /// DNS questions under way.
        DnsQuestions = "dns_questions",
        /// Number or size of intercepts and their filters.
        Intercepts = "intercepts",
        /// Size of a message to the manager.
        MessageSize = "message_size",
    }
}

labels! {
    /// Response classes.
    Class {
        /// 1xx.
        C1xx = "1xx",
        /// 2xx.
        C2xx = "2xx",
        /// 3xx.
        C3xx = "3xx",
        /// 4xx.
        C4xx = "4xx",
        /// 5xx.
        C5xx = "5xx",
    }
}

impl Class {
    /// Returns the class of a status code; codes outside 100–599 count as 5xx.
    #[must_use]
    pub fn of(status: u16) -> Self {
        match status {
            100..=199 => Self::C1xx,
            200..=299 => Self::C2xx,
            300..=399 => Self::C3xx,
            400..=499 => Self::C4xx,
            _ => Self::C5xx,
        }
    }
}

labels! {
    /// Cause of a failed TLS handshake with a caller.
    TlsFailure {
        /// The caller did not speak TLS.
        NotTls = "not_tls",
        /// Protocol version: none in common.
        Version = "version",
        /// Cipher suite or key exchange: none in common.
        Cipher = "cipher",
        /// Certificate: none for the requested name, or the client's was missing or bad.
        Certificate = "certificate",
        /// Timeout of the handshake.
        Timeout = "timeout",
        /// The caller closed the connection.
        Closed = "closed",
        /// A ClientHello beyond the size limit, or malformed.
        Malformed = "malformed",
        /// Other causes.
        Other = "other",
    }
}

/// Metrics of one listening port.
#[derive(Debug, Default)]
pub struct PortMetrics {
    /// Accepted connections.
    pub connections: Counter,
    /// Open connections.
    pub active: Gauge,
    /// Connections by protocol.
    pub carried: PerLabel<Protocol>,
    /// Connections carried without being parsed, by reason.
    pub opaque: PerLabel<OpaqueReason>,
    /// HTTP/1 requests by route.
    pub http1_requests: PerLabel<Route>,
    /// HTTP/2 requests by route, where streams are routed one by one.
    pub http2_requests: PerLabel<Route>,
    /// HTTP/2 requests relayed as frames.
    pub http2_relayed: Counter,
    /// HTTP/2 callers asked to come again for a rule to hold, because their header compression
    /// could not be followed.
    pub http2_goaways: Counter,
    /// Responses by class.
    pub responses: PerLabel<Class>,
    /// Bytes from callers.
    pub bytes_in: Counter,
    /// Bytes to callers.
    pub bytes_out: Counter,
    /// Bytes of either direction that were spliced by the kernel.
    pub bytes_spliced: Counter,
    /// Time from the request head forwarded to the first byte of the response (the upstream's
    /// share).
    pub upstream_time: Latency,
    /// Time from the request head read to it forwarded (the agent's share, opening a tunnel
    /// included).
    pub own_time: Latency,
    /// Failed connections to the app.
    pub app_connect_failures: Counter,
    /// Tunnels opened.
    pub tunnels: Counter,
    /// Open tunnels.
    pub tunnels_active: Gauge,
    /// Tunnels that could not be opened or were lost.
    pub tunnel_failures: Counter,
    /// Matched requests that went to the app, by reason.
    pub fail_open: PerLabel<FailOpen>,
    /// Copies for wiretaps, by end.
    pub copies: PerLabel<CopyEnd>,
    /// TLS handshakes completed.
    pub tls_handshakes: Counter,
    /// TLS handshakes failed, by cause.
    pub tls_failures: PerLabel<TlsFailure>,
    /// TLS handshakes with the app that failed, by cause.
    pub app_tls_failures: PerLabel<TlsFailure>,
    /// Times a limit was reached.
    pub limits: PerLabel<Limit>,
    /// Connections that came from the agent itself (a redirect loop); stays 0.
    pub self_connections: Counter,
    /// Connections by outcome.
    pub ended: PerLabel<Ended>,
    /// Datagrams from callers.
    pub datagrams_in: Counter,
    /// Datagrams to callers.
    pub datagrams_out: Counter,
    /// Live UDP flows.
    pub udp_flows: Gauge,
    /// Rate limiters of the port's log lines.
    pub lines: Lines,
}

/// Rate limiters for log lines that would repeat for every connection while a problem lasts.
#[derive(Debug, Default)]
pub struct Lines {
    /// A TLS handshake with the app failed.
    pub app_tls: LogLimiter,
    /// The app refuses connections.
    pub app: LogLimiter,
    /// A request meant for a workstation went to the app.
    pub fail_open: LogLimiter,
    /// A copy for a wiretap was dropped.
    pub copies: LogLimiter,
    /// A tunnel was lost during use.
    pub tunnel: LogLimiter,
    /// A TLS handshake failed.
    pub handshake: LogLimiter,
    /// A connection could not be accepted, or was cut by a limit.
    pub refused: LogLimiter,
}

impl PortMetrics {
    /// Sets every counter and histogram to zero; gauges stay.
    pub fn reset(&self) {
        for counter in [
            &self.connections,
            &self.http2_relayed,
            &self.http2_goaways,
            &self.bytes_in,
            &self.bytes_out,
            &self.bytes_spliced,
            &self.app_connect_failures,
            &self.tunnels,
            &self.tunnel_failures,
            &self.tls_handshakes,
            &self.self_connections,
            &self.datagrams_in,
            &self.datagrams_out,
        ] {
            counter.reset();
        }
        self.carried.reset();
        self.opaque.reset();
        self.http1_requests.reset();
        self.http2_requests.reset();
        self.responses.reset();
        self.fail_open.reset();
        self.copies.reset();
        self.tls_failures.reset();
        self.app_tls_failures.reset();
        self.limits.reset();
        self.ended.reset();
        self.own_time.reset();
        self.upstream_time.reset();
    }
}

/// Metrics of the control side.
#[derive(Debug, Default)]
pub struct ControlMetrics {
    /// 1 while a session with the manager is alive.
    pub connected: Gauge,
    /// Sessions started.
    pub arrivals: Counter,
    /// Sessions lost, or attempts that failed.
    pub failures: Counter,
    /// Snapshots (or deltas) of intercepts received.
    pub snapshots: Counter,
    /// Intercepts in the last snapshot.
    pub intercepts: Gauge,
    /// Reviews sent.
    pub reviews: Counter,
    /// Times a review was sent again, because the manager had not taken it.
    pub reviews_again: Counter,
    /// Workstations that watch for dials on the agent's own API.
    pub workstations: Gauge,
    /// Connections dialled on behalf of workstations.
    pub dials: Counter,
    /// DNS questions answered for the manager.
    pub lookups: Counter,
    /// Calls of the agent's own API refused, because the manager does not know their session or it
    /// is somebody else's.
    pub denied: Counter,
    /// Times a limit around the data path was reached.
    pub limits: PerLabel<ControlLimit>,
    /// Rate limiters of the lines that say so.
    pub lines: ControlLines,
}

/// Rate limiters for log lines that a hostile peer could repeat at will.
#[derive(Debug, Default)]
pub struct ControlLines {
    /// A request of the admin was refused.
    pub admin: LogLimiter,
    /// A dial for a workstation was refused.
    pub dials: LogLimiter,
    /// A DNS question was dropped.
    pub dns: LogLimiter,
    /// An intercept was refused because of a bound.
    pub intercepts: LogLimiter,
}

impl ControlMetrics {
    /// Sets every counter to zero; gauges stay.
    pub fn reset(&self) {
        let Self {
            arrivals,
            failures,
            snapshots,
            reviews,
            reviews_again,
            dials,
            lookups,
            denied,
            limits,
            lines: _,
            connected: _,
            intercepts: _,
            workstations: _,
        } = self;
        for counter in [
            arrivals,
            failures,
            snapshots,
            reviews,
            reviews_again,
            dials,
            lookups,
            denied,
        ] {
            counter.reset();
        }
        limits.reset();
    }
}

impl Label for Ended {
    const ALL: &'static [Self] = {
        use crate::outcome::Stage;
        &[
            Self::Clean,
            Self::CallerLeft,
            Self::CallerReset,
            Self::AppRefused,
            Self::AppReset,
            Self::AppCut,
            Self::TunnelLost,
            Self::TimedOut(Stage::Handshake),
            Self::TimedOut(Stage::AppConnect),
            Self::TimedOut(Stage::Head),
            Self::TimedOut(Stage::Dial),
            Self::Handshake,
            Self::Malformed,
            Self::Limit,
            Self::Drained,
            Self::Bug,
        ]
    };

    fn index(self) -> usize {
        // All values are in `ALL`; the first one is the fallback for a value missing there.
        Self::ALL.iter().position(|e| *e == self).unwrap_or(0)
    }

    fn label(self) -> &'static str {
        Ended::label(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_is_found_at_its_index() {
        fn check<L: Label + PartialEq + std::fmt::Debug>() {
            for (i, l) in L::ALL.iter().enumerate() {
                assert_eq!(l.index(), i, "{l:?}");
            }
        }
        check::<Protocol>();
        check::<OpaqueReason>();
        check::<Ended>();
        check::<TlsFailure>();
    }
}
