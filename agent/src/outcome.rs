//! Outcome of a connection or exchange as data: the side that caused it and the reason. Modules map
//! their errors to [`Ended`]; metric label, log level and whether the caller is reset are decided
//! only here.

/// The operation a deadline applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The TLS handshake with the caller.
    Handshake,
    /// A TCP connection to the app.
    AppConnect,
    /// A request head that arrived too slowly.
    Head,
    /// The workstation's answer to a dial.
    Dial,
}

/// Cause of an ending, named by the side responsible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Normal end: both sides finished.
    Clean,
    /// The caller closed before its exchange was complete.
    CallerLeft,
    /// The caller reset the connection.
    CallerReset,
    /// The app's port refused the connection.
    AppRefused,
    /// The app closed or reset during an exchange.
    AppReset,
    /// The app ended TLS without its closing word, which the caller sees alike.
    AppCut,
    /// The tunnel broke after something had been sent into it.
    TunnelLost,
    /// A deadline passed.
    TimedOut(Stage),
    /// The TLS handshake failed.
    Handshake,
    /// The caller's bytes were ambiguous in a place where the app could not be left to judge them.
    Malformed,
    /// A limit of the agent was reached.
    Limit,
    /// The drain deadline cut it.
    Drained,
    /// A panic in the agent, caught.
    Bug,
}

impl Ended {
    /// The metric label and log value.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::CallerLeft => "caller_left",
            Self::CallerReset => "caller_reset",
            Self::AppRefused => "app_refused",
            Self::AppReset => "app_reset",
            Self::AppCut => "app_cut",
            Self::TunnelLost => "tunnel_lost",
            Self::TimedOut(Stage::Handshake) => "handshake_timeout",
            Self::TimedOut(Stage::AppConnect) => "app_connect_timeout",
            Self::TimedOut(Stage::Head) => "head_timeout",
            Self::TimedOut(Stage::Dial) => "dial_timeout",
            Self::Handshake => "handshake_failed",
            Self::Malformed => "malformed",
            Self::Limit => "limit",
            Self::Drained => "drained",
            Self::Bug => "bug",
        }
    }

    /// Returns true if the caller has to see a reset, because a clean close would look like a
    /// complete response.
    #[must_use]
    pub fn resets_caller(self) -> bool {
        !matches!(
            self,
            Self::Clean | Self::CallerLeft | Self::CallerReset | Self::AppCut
        )
    }
}
