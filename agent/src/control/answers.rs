//! Answers of the manager: in time, and as a text.

use std::time::Duration;

use tonic::Status;

/// Time for one response of the manager.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Awaits a response within `limit`.
pub(crate) async fn with_timeout<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "no answer within {limit:?}"
            )))
        })
}

/// Formats code and message, with the transport's own reason if there is one.
pub(crate) fn status_text(status: &Status) -> String {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        text.push_str(": ");
        text.push_str(status.message());
    }
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
