//! Intercepts whose client is away, as a traffic-manager of ours shows them: waiting, with a message
//! that begins with a certain word.

/// First word of the message.
const SUSPENDED: &str = "suspended: ";

/// Returns the message of an intercept of `client`, which is away since `since`.
#[must_use]
pub fn message(client: &str, since: &str) -> String {
    format!(
        "{SUSPENDED}{client} has been away since {since}; it is resumed when the client is back, unless \
        another one has taken its place"
    )
}

/// Returns true if the message of a waiting intercept says that it is suspended.
#[must_use]
pub fn is_suspended(message: &str) -> bool {
    message.starts_with(SUSPENDED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_recognised_and_others_are_not() {
        assert!(is_suspended(&message("dev@laptop", "noon")));
        assert!(!is_suspended(""));
        assert!(!is_suspended("no agent is suspended: roll out"));
    }
}
