//! `explain`: why a request would (not) come here, told by the agent of each pod.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::Failure;
use crate::cluster::Cluster;
use crate::flags::Explain;
use crate::report::{line, plain};
use crate::session::CALL_TIMEOUT;

/// Most bytes of one answer.
const MAX_ANSWER: usize = 1 << 20;

/// Asks the agents which way an imagined request would take, and prints a block for each.
///
/// # Errors
/// No agent can be asked, or one refuses the question.
pub async fn explain(flags: &Explain) -> Result<(), Failure> {
    let query = query(flags);
    if !flags.admin.is_empty() {
        for address in &flags.admin {
            let answer = ask_address(*address, &query).await?;
            show(&address.to_string(), &answer);
        }
        return Ok(());
    }
    let cluster = Cluster::open(&flags.cluster).await?;
    let namespace = flags.namespace.as_deref().unwrap_or(&cluster.namespace);
    for pod in cluster.agents(namespace, &flags.workload).await? {
        let port = cluster.pod(namespace, &pod, flags.admin_port);
        let stream = port.open().await;
        let stream = stream.map_err(|error| Failure::Failed(error.to_string()))?;
        let answer = ask(stream, &port.to_string(), &query).await?;
        show(&pod, &answer);
    }
    Ok(())
}

/// Builds the path and query of the agents' `/explain`.
fn query(flags: &Explain) -> String {
    let headers = flags.http_header.iter();
    let headers = headers.map(|(name, value)| ("header", format!("{name}: {value}")));
    let port = flags.port.iter().map(|port| ("port", port.to_string()));
    let path = [
        ("method", flags.method.clone()),
        ("path", flags.path.clone()),
    ];
    let pairs: Vec<_> = port
        .chain(path)
        .chain(headers)
        .map(|(key, value)| format!("{key}={}", percent_encoded(&value)))
        .collect();
    format!("/explain?{}", pairs.join("&"))
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

async fn ask_address(address: SocketAddr, query: &str) -> Result<Value, Failure> {
    let stream = timeout(CALL_TIMEOUT, tokio::net::TcpStream::connect(address)).await;
    let stream = stream.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let stream = stream.map_err(|error| {
        Failure::Failed(format!(
            "--admin {address}: {error}; is it the agent's admin port?"
        ))
    })?;
    ask(stream, &address.to_string(), query).await
}

/// Sends the question and reads the answer.
async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    place: &str,
    query: &str,
) -> Result<Value, Failure> {
    let failed = |why: String| Failure::Failed(format!("{place}: {why}"));
    let answer = timeout(CALL_TIMEOUT, exchange(stream, query)).await;
    let answer = answer.map_err(|_| failed(format!("no answer within {CALL_TIMEOUT:?}")))?;
    let body = answer.map_err(|error| failed(format!("{error}; is it the agent's admin port?")))?;
    let value: Value = serde_json::from_slice(&body)
        .map_err(|error| failed(format!("the answer is not JSON: {error}")))?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) => Err(failed(error.to_owned())),
        None => Ok(value),
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    query: &str,
) -> anyhow::Result<Bytes> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = hyper::Request::get(query)
        .header("host", "localhost")
        // The agent answers browsers with a page.
        .header("accept", "application/json")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
        let body = body
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
        Ok(body.to_bytes())
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end behind the answer, and before it was read whole.
        _ = &mut connection => answer.await,
    }
}

/// Prints one agent's answer.
fn show(place: &str, answer: &Value) {
    let text = |value: &Value, key: &str| {
        plain(value.get(key).and_then(Value::as_str).unwrap_or_default())
    };
    let goes_to = match answer.get("decision").and_then(Value::as_str) {
        Some("client") => "the workstation",
        Some("expired") => "nobody: it is answered with 503",
        _ => "the app",
    };
    line(format_args!(
        "{place}: goes to {goes_to}: {}",
        text(answer, "reason")
    ));
    for rule in answer
        .get("considered")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let is = |key: &str| rule.get(key).and_then(Value::as_bool).unwrap_or(false);
        let why = match (is("matched"), is("wiretap")) {
            (true, true) => "matches, and gets a copy".to_owned(),
            (true, false) => "matches".to_owned(),
            (false, _) => format!("does not match: {}", text(rule, "failed")),
        };
        line(format_args!("  {} {why}", text(rule, "name")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_escaped() {
        assert_eq!(percent_encoded("a b&c=d/é"), "a%20b%26c%3Dd/%C3%A9");
    }
}
