//! One stream of a terminated connection, from the request's head to the end of both directions.
//! Each stream has one owner and one end: what resets one side resets the other for the same
//! reason, and nothing is sent twice.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::HeaderValue;
use http::{Method, Request, Response, Version};

use crate::outcome::Ended;
use crate::proxy::context::ConnContext;
use crate::proxy::http2::terminate::body::{Cut, Pump};
use crate::proxy::http2::terminate::upstreams::{Held, UpstreamConn, UpstreamPool, head_size};
use crate::telemetry::access_log::record::AccessRecord;
use crate::telemetry::explain_header::HEADER;
use crate::telemetry::metrics::{Class, FailOpen, Limit, Route};
use traffic_core::routing::Intercept;

/// A request that is on its way to somebody.
pub(crate) struct Sent {
    head: ResponseFuture,
    request: Pump,
    at: Instant,
    /// It was meant for a workstation.
    failed_open: Option<FailOpen>,
}

/// How an exchange ended, as far as its connection cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The caller got a whole answer, or an answer's reset.
    Answered,
    /// The caller gave up before there was an answer.
    GivenUp,
}

/// The future that carries one stream.
pub(crate) struct Exchange {
    respond: SendResponse<Bytes>,
    stage: Stage,
    legs: Arc<UpstreamPool>,
    /// Was meant for a workstation.
    away: bool,
    /// For the access log and an explanation, where there is anything to note.
    pub(crate) notes: Option<Box<AccessRecord>>,
}

enum Stage {
    /// The way is being opened.
    Preparing(BoxFuture<'static, Result<Sent, Reason>>),
    /// The request is on its way, and the answer's head is awaited.
    Asked(Sent),
    /// Both bodies.
    Answering {
        request: Pump,
        response: Pump,
        unwanted: bool,
    },
    Over,
}

impl Exchange {
    /// For a request that has been sent.
    pub(crate) fn asked(respond: SendResponse<Bytes>, sent: Sent, legs: Arc<UpstreamPool>) -> Self {
        Self {
            respond,
            stage: Stage::Asked(sent),
            legs,
            away: false,
            notes: None,
        }
    }

    /// For a request whose connection to the app is not ready, or gone.
    pub(crate) fn to_app(
        respond: SendResponse<Bytes>,
        request: Request<RecvStream>,
        primary: Option<UpstreamConn>,
        legs: Arc<UpstreamPool>,
        held: Held,
    ) -> Self {
        let to_app = to_app(request, primary, legs.clone());
        let way = async move {
            let _held = held;
            to_app.await
        };
        Self {
            respond,
            stage: Stage::Preparing(Box::pin(way)),
            legs,
            away: false,
            notes: None,
        }
    }

    /// For a request that an intercept takes.
    pub(crate) fn to_workstation(
        respond: SendResponse<Bytes>,
        request: Request<RecvStream>,
        intercept: Arc<Intercept>,
        primary: Option<UpstreamConn>,
        legs: Arc<UpstreamPool>,
        held: Held,
    ) -> Self {
        let to_workstation = to_workstation(request, intercept, primary, legs.clone());
        let way = async move {
            let _held = held;
            to_workstation.await
        };
        Self {
            respond,
            stage: Stage::Preparing(Box::pin(way)),
            legs,
            away: true,
            notes: None,
        }
    }

    /// While nothing has been answered: whether the caller has given up. Says so upstream at once.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        match self.respond.poll_reset(cx) {
            Poll::Pending => false,
            Poll::Ready(gone) => {
                if let Stage::Asked(sent) = &mut self.stage {
                    sent.request.reset(gone.unwrap_or(Reason::CANCEL));
                }
                true
            }
        }
    }

    /// Passes 1xx on and, when it comes, the answer's head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        let Stage::Asked(sent) = &mut self.stage else {
            return Poll::Ready(Ok(()));
        };
        while let Poll::Ready(Some(informational)) = sent.head.poll_informational(cx) {
            let informational = informational.map_err(|e| passed_on(&e))?;
            // A caller that is gone is noticed by its reset.
            let _ = self.respond.send_informational(informational);
        }
        let response = match Pin::new(&mut sent.head).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(response) => response.map_err(|e| passed_on(&e))?,
        };
        let (mut head, body) = response.into_parts();
        let took = sent.at.elapsed();
        let metrics = &self.legs.lane().port.metrics;
        metrics.upstream_time.observe(took);
        metrics.responses.at(Class::of(head.status.as_u16())).inc();
        if let Some(notes) = &mut self.notes {
            notes.answered(head.status.as_u16(), Some(took));
            if let Some(value) = notes
                .explained()
                .and_then(|text| HeaderValue::try_from(text).ok())
            {
                head.headers.insert(HEADER, value);
            }
        }
        let ended = body.is_end_stream();
        let down = self
            .respond
            .send_response(Response::from_parts(head, ()), ended)
            .map_err(|e| e.reason().unwrap_or(Reason::INTERNAL_ERROR))?;
        let response = if ended {
            Pump::finished(body, down)
        } else {
            Pump::new(body, down)
        };
        if let Stage::Asked(sent) = std::mem::replace(&mut self.stage, Stage::Over) {
            self.stage = Stage::Answering {
                request: sent.request,
                response,
                unwanted: false,
            };
        }
        Poll::Ready(Ok(()))
    }
}

impl Future for Exchange {
    /// How it ended, and whether it was meant for a workstation.
    type Output = (Ending, bool);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(Ending, bool)> {
        let exchange = self.get_mut();
        let ending = ready!(exchange.poll_ending(cx));
        exchange.end_notes(ending);
        Poll::Ready((ending, exchange.away))
    }
}

impl Exchange {
    fn end_notes(&mut self, ending: Ending) {
        let Some(mut notes) = self.notes.take() else {
            return;
        };
        if let Stage::Answering {
            request, response, ..
        } = &self.stage
        {
            notes.moved(request.moved(), response.moved());
        }
        notes.end(match ending {
            Ending::Answered => Ended::Clean,
            Ending::GivenUp => Ended::CallerLeft,
        });
    }

    fn poll_ending(&mut self, cx: &mut Context<'_>) -> Poll<Ending> {
        loop {
            match &mut self.stage {
                Stage::Preparing(way) => match way.as_mut().poll(cx) {
                    Poll::Ready(Ok(sent)) => {
                        if let (Some(notes), Some(why)) = (&mut self.notes, sent.failed_open) {
                            notes.failed_open(why, &self.legs.lane().app_address());
                        }
                        self.stage = Stage::Asked(sent);
                    }
                    Poll::Ready(Err(reason)) => {
                        self.respond.send_reset(reason);
                        return Poll::Ready(Ending::Answered);
                    }
                    Poll::Pending => {
                        return if self.poll_given_up(cx) {
                            Poll::Ready(Ending::GivenUp)
                        } else {
                            Poll::Pending
                        };
                    }
                },
                Stage::Asked(sent) => {
                    if let Poll::Ready(Err(Cut::BySender(reason))) = sent.request.poll(cx) {
                        sent.request.reset(reason.unwrap_or(Reason::CANCEL));
                        return Poll::Ready(Ending::GivenUp);
                    }
                    // A receiver that wants no more of the request may answer it all the same.
                    match self.poll_head(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(reason)) => {
                            self.respond.send_reset(reason);
                            return Poll::Ready(Ending::Answered);
                        }
                        Poll::Pending => {
                            return if self.poll_given_up(cx) {
                                Poll::Ready(Ending::GivenUp)
                            } else {
                                Poll::Pending
                            };
                        }
                    }
                }
                Stage::Answering {
                    request,
                    response,
                    unwanted,
                } => {
                    return answer(request, response, unwanted, cx).map(|()| Ending::Answered);
                }
                Stage::Over => return Poll::Ready(Ending::Answered),
            }
        }
    }
}

/// Moves both bodies. Ready when both have ended, or one of them broke off and the other side
/// knows.
fn answer(
    request: &mut Pump,
    response: &mut Pump,
    unwanted: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<()> {
    if !*unwanted {
        match request.poll(cx) {
            Poll::Ready(Err(Cut::BySender(reason))) => {
                request.reset(reason.unwrap_or(Reason::CANCEL));
                return Poll::Ready(());
            }
            // The answer may be complete nevertheless: the response's direction decides.
            Poll::Ready(Err(Cut::ByReceiver(_))) => *unwanted = true,
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
    }
    match response.poll(cx) {
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(Cut::BySender(reason))) => {
            response.reset(reason.unwrap_or(Reason::INTERNAL_ERROR));
            return Poll::Ready(());
        }
        Poll::Ready(Err(Cut::ByReceiver(reason))) => {
            request.reset(reason.unwrap_or(Reason::CANCEL));
            return Poll::Ready(());
        }
        Poll::Pending => return Poll::Pending,
    }
    // Where the receiver wanted no more of the request, letting go of the stream resets it with
    // NO_ERROR once the answer is out (RFC 9113 section 8.1); a reset said here would overtake the
    // answer.
    if *unwanted || request.is_done() {
        Poll::Ready(())
    } else {
        Poll::Pending
    }
}

/// Sends a request on; `way` must have said that it is ready.
pub(crate) fn send(
    way: &mut UpstreamConn,
    request: Request<RecvStream>,
    lane: &ConnContext,
    received: Instant,
) -> Result<Sent, Reason> {
    way.signs.queued.store(true, Ordering::Relaxed);
    if way.signs.blocked.load(Ordering::Relaxed) {
        way.signs
            .unsent
            .fetch_add(head_size(&request), Ordering::Relaxed);
    }
    let (mut head, body) = request.into_parts();
    let bare = head.uri.scheme().is_none() && head.method != Method::CONNECT;
    if bare {
        // A request without :authority. The library wants to be told that this is meant.
        head.version = Version::HTTP_11;
    }
    let ended = body.is_end_stream();
    let (response, up): (ResponseFuture, SendStream<Bytes>) = way
        .send
        .send_request(Request::from_parts(head, ()), ended)
        .map_err(|error| {
            tracing::debug!(%error, "request not sent");
            // Nothing of it was sent, so the caller may try again.
            Reason::REFUSED_STREAM
        })?;
    if bare && lane.hello.is_some() {
        way.signs.secure(response.stream_id().as_u32());
    }
    let at = Instant::now();
    lane.port
        .metrics
        .own_time
        .observe(at.saturating_duration_since(received));
    let request = if ended {
        Pump::finished(body, up)
    } else {
        Pump::new(body, up)
    };
    Ok(Sent {
        head: response,
        request,
        at,
        failed_open: None,
    })
}

async fn takes_another(way: &mut UpstreamConn) -> bool {
    std::future::poll_fn(|cx| way.send.poll_ready(cx))
        .await
        .is_ok()
        && !way.parts()
}

/// Over the first connection as soon as it takes another stream; over a further one when it is
/// gone.
async fn to_app(
    request: Request<RecvStream>,
    primary: Option<UpstreamConn>,
    legs: Arc<UpstreamPool>,
) -> Result<Sent, Reason> {
    let received = Instant::now();
    let metrics = &legs.lane().port.metrics;
    if let Some(mut way) = primary
        && takes_another(&mut way).await
    {
        metrics.http2_requests.at(Route::App).inc();
        return send(&mut way, request, legs.lane(), received);
    }
    for _ in 0..2 {
        let opening = legs.spare_app();
        if let Ok(mut way) = opening.clone().await
            && takes_another(&mut way).await
        {
            metrics.http2_requests.at(Route::App).inc();
            return send(&mut way, request, legs.lane(), received);
        }
        legs.forget_app(&opening);
    }
    Err(Reason::REFUSED_STREAM)
}

/// Through the intercept's tunnel, or to the app when there is none: nothing has been sent before.
async fn to_workstation(
    request: Request<RecvStream>,
    intercept: Arc<Intercept>,
    primary: Option<UpstreamConn>,
    legs: Arc<UpstreamPool>,
) -> Result<Sent, Reason> {
    let received = Instant::now();
    let metrics = &legs.lane().port.metrics;
    let workstations = legs.lane().port.workstations();
    let mut failed_open = None;
    // A connection kept from earlier streams may have ended meanwhile: then one fresh one is tried.
    for attempt in 0..2 {
        let opening = legs.workstation(&intercept);
        match opening.clone().await {
            Ok(mut way) => {
                if takes_another(&mut way).await {
                    if way.is_stuffed() {
                        metrics.limits.at(Limit::Http2Flood).inc();
                        return Err(Reason::REFUSED_STREAM);
                    }
                    metrics.http2_requests.at(Route::Client).inc();
                    return send(&mut way, request, legs.lane(), received);
                }
                legs.forget(&opening);
                if attempt == 1 {
                    workstations.fell_back(&intercept, FailOpen::Lost);
                    failed_open = Some(FailOpen::Lost);
                }
            }
            Err(why) => {
                legs.forget(&opening);
                workstations.fell_back(&intercept, why);
                failed_open = Some(why);
                break;
            }
        }
    }
    to_app(request, primary, legs.clone())
        .await
        .map(|sent| Sent {
            failed_open,
            ..sent
        })
}

/// What the caller is told when the answer's head does not come.
fn passed_on(error: &h2::Error) -> Reason {
    if error.is_go_away() && error.is_remote() {
        // The stream is above the last one that the GOAWAY says was processed: the caller may try
        // again.
        return Reason::REFUSED_STREAM;
    }
    match error.reason() {
        Some(reason) if error.is_reset() => reason,
        _ => Reason::INTERNAL_ERROR,
    }
}
