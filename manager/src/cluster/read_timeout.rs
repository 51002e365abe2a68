//! Time for the API server to begin an answer to a read, a long watch among them: a server whose store is
//! away may take a minute to say so. Writes wait: other webhooks may take their time over them, and
//! one that is given up is undone.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::{Method, Request};
use kube::client::Body;
use tokio::time::timeout;
use tower::{BoxError, Service};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of the API server whose reads are answered in time or fail.
#[derive(Clone)]
pub(super) struct ReadTimeout<S>(pub(super) S);

impl<S> Service<Request<Body>> for ReadTimeout<S>
where
    S: Service<Request<Body>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_read = request.method() == Method::GET;
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = match is_read {
                true => timeout(ANSWER_TIMEOUT, answer)
                    .await
                    .map_err(|_| format!("no answer within {ANSWER_TIMEOUT:?}"))?,
                false => answer.await,
            };
            answer.map_err(Into::into)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::time::{Instant, sleep};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reads_end_in_time_and_writes_wait_for_slow_webhooks() {
        let slow = tower::service_fn(async |_: Request<Body>| {
            sleep(ANSWER_TIMEOUT * 3).await;
            Ok::<_, Infallible>(())
        });
        for (method, is_answered) in [(Method::GET, false), (Method::PATCH, true)] {
            let request = Request::builder().method(&method).body(Body::empty());
            let begin = Instant::now();
            let answer = ReadTimeout(slow).oneshot(request.unwrap()).await;
            assert_eq!(answer.is_ok(), is_answered, "{method}");
            assert_eq!(
                begin.elapsed() > ANSWER_TIMEOUT * 2,
                is_answered,
                "{method}"
            );
        }
    }
}
