//! How a connection or an exchange ended: whose doing it was, as data. Modules say which [`Ended`]
//! their errors mean; label, log level and whether the caller is reset are decided here alone.

/// What a deadline was waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The TLS handshake with the caller.
    Handshake,
    /// A TCP connection to the app.
    AppConnect,
    /// A request head that arrives too slowly.
    Head,
    /// The workstation's answer to a dial.
    Dial,
}

/// Whose doing an ending was, and what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Both sides finished.
    Clean,
    /// The caller closed before its exchange was over.
    CallerLeft,
    /// The caller reset the connection.
    CallerReset,
    /// Nothing listens at the app's port.
    AppRefused,
    /// The app closed or reset in the middle of an exchange.
    AppReset,
    /// The tunnel broke after something had been sent into it.
    TunnelLost,
    /// A deadline passed.
    TimedOut(Stage),
    /// The TLS handshake failed.
    Handshake,
    /// The caller's bytes were unclear where nobody but the agent could have judged them.
    Malformed,
    /// A limit of ours was hit.
    Limit,
    /// The drain's deadline cut it.
    Drained,
    /// A panic of ours, caught.
    Bug,
}

impl Ended {
    /// The metric label and log word.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::CallerLeft => "caller_left",
            Self::CallerReset => "caller_reset",
            Self::AppRefused => "app_refused",
            Self::AppReset => "app_reset",
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

    /// Whether the caller has to see a reset, because a quiet close would look like a proper end.
    #[must_use]
    pub fn resets_caller(self) -> bool {
        !matches!(self, Self::Clean | Self::CallerLeft | Self::CallerReset)
    }
}
