//! Reviews of intercepts on their way to the manager: each is sent until it is taken, is no longer the
//! last of its intercept, or the session is over.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use prost::Message as _;
use tonic::Code;
use traffic_proto::manager::{
    InterceptDispositionType as Disposition, ReviewInterceptRequest, SessionInfo,
};
use traffic_proto::sidecar::MountPolicy;
use traffic_proto::sync::lock;
use traffic_proto::tunnel::GRPC_LIMIT;

use crate::control::answers::{ANSWER_TIMEOUT, status_text, with_timeout};
use crate::control::context::SessionContext;
use crate::control::intercepts::translate::{Review, Snapshot, Verdict};
use crate::control::manager_token::Manager;
use crate::telemetry::metrics::ControlLimit;

/// Delay before a review that was lost is sent again: the first, and the longest.
const REVIEW_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Size of a review that a manager takes: the limit of its messages less some room.
pub(crate) const MAX_REVIEW: usize = GRPC_LIMIT - 64 * 1024;
/// Length of a text in a review that had to be cut.
const MAX_TEXT: usize = 4096;
/// Reviews that are sent at once; each takes buffers of its own.
pub(crate) const MAX_REVIEWS_UNDER_WAY: usize = 32;

/// The last review of each intercept, until the manager has taken it.
#[derive(Default)]
pub(crate) struct Reviews {
    current: Mutex<HashMap<String, Arc<()>>>,
    queue: Mutex<ReviewQueue>,
}

/// Reviews that are to be sent, and how many tasks do so.
#[derive(Default)]
struct ReviewQueue {
    waiting: VecDeque<(ReviewTicket, Review)>,
    senders: usize,
}

/// A review's right to be sent: lost to a later one, or with the session.
pub(crate) struct ReviewTicket(Weak<()>);

impl Reviews {
    /// Queues a review; returns true if one more task is to send.
    pub(crate) fn add(&self, review: Review) -> bool {
        let current = Arc::new(());
        let ticket = ReviewTicket(Arc::downgrade(&current));
        lock(&self.current).insert(review.id.clone(), current);
        let mut queue = lock(&self.queue);
        queue.waiting.push_back((ticket, review));
        let is_needed = queue.senders < MAX_REVIEWS_UNDER_WAY;
        queue.senders += usize::from(is_needed);
        is_needed
    }

    /// Returns the next review that is to be sent; after the last one the task has ended.
    pub(crate) fn next(&self) -> Option<(ReviewTicket, Review)> {
        let mut queue = lock(&self.queue);
        loop {
            match queue.waiting.pop_front() {
                Some(next) if next.0.is_current() => return Some(next),
                Some(_) => {}
                None => {
                    queue.senders -= 1;
                    return None;
                }
            }
        }
    }

    /// Ends the reviews of intercepts that the manager does not show any more.
    pub(crate) fn forget_others(&self, snapshot: &Snapshot) {
        lock(&self.current).retain(|id, _| snapshot.contains_key(id));
    }
}

impl ReviewTicket {
    fn is_current(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// A task that sends reviews, each made when its turn comes: what is shared with the owner can be
/// large.
pub(crate) struct ReviewSender {
    pub(crate) client: Manager,
    pub(crate) session: SessionInfo,
    pub(crate) context: Arc<SessionContext>,
}

impl ReviewSender {
    /// Sends a review until it is taken, until the session is over, or until a later review of the
    /// same intercept takes its place.
    pub(crate) async fn send(&self, ticket: &ReviewTicket, review: Review) {
        let request = self.fitting(self.reviewed(review));
        let mut client = self.client.clone();
        let mut pause = REVIEW_BACKOFF.0;
        while ticket.is_current() {
            match with_timeout(ANSWER_TIMEOUT, client.review_intercept(request.clone())).await {
                Ok(_) => return,
                // The owner has removed the intercept meanwhile.
                Err(status) if status.code() == Code::NotFound => return,
                Err(status) => {
                    let text = format!(
                        "the traffic-manager did not take the review of {}: {}",
                        request.id,
                        status_text(&status)
                    );
                    self.context.log_once.warn("review", &text);
                }
            }
            tokio::time::sleep(pause).await;
            if ticket.is_current() {
                self.context.metrics.reviews_again.inc();
            }
            pause = (pause * 2).min(REVIEW_BACKOFF.1);
        }
    }

    /// Cuts a review that the manager could not take to what must be there: an intercept without
    /// the environment is better than one that waits for ever.
    fn fitting(&self, mut request: ReviewInterceptRequest) -> ReviewInterceptRequest {
        let size = request.encoded_len();
        if size <= MAX_REVIEW {
            return request;
        }
        self.context
            .metrics
            .limits
            .at(ControlLimit::MessageSize)
            .inc();
        let text = format!(
            "review of {} cut: it has {size} bytes and the traffic-manager takes {MAX_REVIEW}; \
            the environment is left out, exclude large variables to have the rest",
            request.id
        );
        self.context.log_once.warn("review size", &text);
        request.environment.clear();
        if request.message.is_empty() {
            request.message = "the app's environment is too large to be sent; exclude large \
                variables to have the rest"
                .to_owned();
        }
        if request.encoded_len() > MAX_REVIEW {
            request.mounts.clear();
            request.headers.clear();
        }
        cut(&mut request.message);
        cut(&mut request.mechanism_args_desc);
        request
    }

    fn reviewed(&self, review: Review) -> ReviewInterceptRequest {
        let identity = &self.context.identity;
        let mut request = ReviewInterceptRequest {
            ends: review.ends,
            session: Some(self.session.clone()),
            id: review.id,
            mechanism_args_desc: review.description,
            ..ReviewInterceptRequest::default()
        };
        match review.verdict {
            Verdict::Accept {
                container,
                headers,
                metadata,
                reads_only,
            } => {
                tracing::debug!(id = request.id, "intercept accepted");
                request.set_disposition(Disposition::Active);
                request.pod_ip.clone_from(&identity.pod_ip);
                request.headers = headers;
                request.metadata = metadata;
                if let Some(shared) = identity.containers.iter().find(|c| c.name == container) {
                    request.mount_point.clone_from(&shared.mount_point);
                    if !shared.mount_point.is_empty() {
                        request.sftp_port = i32::from(identity.sftp_port);
                        request.ftp_port = i32::from(identity.ftp_port);
                    }
                    request.environment.clone_from(&shared.environment);
                    request.mounts.clone_from(&shared.mounts);
                    if reads_only {
                        only_readable(&mut request.mounts);
                    }
                }
            }
            Verdict::Refuse { bad_args, message } => {
                tracing::debug!(id = request.id, message, "intercept refused");
                // BadArgs tells the client that the user must change the command, AgentError that
                // another pod may accept it.
                request.set_disposition(if bad_args {
                    Disposition::BadArgs
                } else {
                    Disposition::AgentError
                });
                request.message = message;
            }
        }
        request
    }
}

/// Takes the leave to write out of the mount policies by path.
fn only_readable(mounts: &mut BTreeMap<String, i32>) {
    for policy in mounts.values_mut() {
        if *policy == MountPolicy::Remote.number() {
            *policy = MountPolicy::RemoteReadonly.number();
        }
    }
}

/// Cuts a text for people to a length that fits into any message.
fn cut(text: &mut String) {
    if text.len() > MAX_TEXT {
        let end = text.floor_char_boundary(MAX_TEXT);
        text.truncate(end);
        text.push('…');
    }
}
