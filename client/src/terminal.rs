//! Colours, on terminals only.

use std::io::IsTerminal as _;

use traffic_proto::manager::InterceptDispositionType as Disposition;

/// Decoration of text for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    is_coloured: bool,
}

impl Style {
    /// No decoration.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { is_coloured: false };

    /// Returns the style of standard output: colours on a terminal, unless `NO_COLOR` is set or
    /// the terminal is `dumb`.
    pub(crate) fn of_stdout() -> Self {
        // An empty value counts as unset, as no-color.org has it.
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            is_coloured: std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb,
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// Formats a state: green if it works, yellow while it waits, red otherwise.
    pub(crate) fn state(self, state: Disposition) -> String {
        let colour = match state {
            Disposition::Active => "32",
            Disposition::Waiting => "33",
            _ => "31",
        };
        self.with(colour, state.as_str_name())
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.is_coloured {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
