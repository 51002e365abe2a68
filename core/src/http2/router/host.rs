//! Questions of the router to its surroundings, and its reports to them.

use std::time::Duration;

use crate::http2::hpack::FieldList;
use crate::http2::request::RequestHead;
use crate::http2::streams::Side;

/// A connection to a workstation, as the surroundings number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(pub u32);

/// Destination of a stream.
#[derive(Debug)]
pub enum Way {
    /// To the app.
    App,
    /// Through this tunnel, which may still be opening.
    Tunnel(TunnelId),
    /// Nowhere: it is answered here.
    Answer(LocalAnswer),
}

/// An answer of the agent's own.
#[derive(Debug, Default)]
pub struct LocalAnswer {
    /// Header fields, `:status` first.
    pub fields: FieldList,
    /// The body.
    pub body: Vec<u8>,
}

/// A decision about one stream.
#[derive(Debug)]
pub struct StreamRoute {
    /// Its destination.
    pub way: Way,
    /// Its answer has to say why it went there.
    pub explains: bool,
    /// Its request's body is told by [`Host::copied`].
    pub copied: bool,
}

/// Outcome of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// Both messages are complete.
    Complete,
    /// The caller reset it.
    CallerReset,
    /// Whoever served it reset it.
    ServerReset,
    /// Whoever served it is gone.
    Lost,
    /// It was refused here.
    Refused,
}

/// The surroundings of a router.
pub trait Host {
    /// Returns true if requests have to be looked at, one by one, from now on.
    fn reads_requests(&mut self) -> bool;

    /// A request was passed on without being looked at.
    fn relayed(&mut self);

    /// Decides where a stream goes. A request that is not `sound` is the app's.
    fn route(&mut self, stream: u32, head: &RequestHead<'_>, sound: bool) -> StreamRoute;

    /// The head of a stream has been sent into its tunnel, so long after it came.
    fn forwarded(&mut self, stream: u32, after: Duration);

    /// A stream that was meant for a tunnel goes to the app, because there is none.
    fn failed_open(&mut self, stream: u32);

    /// A stream that was looked at got its final head, so long after its request. What is returned
    /// is put into that head as a field of its own, where the stream's answer has to explain.
    fn answered(&mut self, stream: u32, status: u16, after: Duration) -> Option<Explained>;

    /// Body bytes of a stream went on.
    fn moved(&mut self, stream: u32, from: Side, bytes: usize);

    /// Body bytes of a request that is copied, as they come; `ends` with the last of them.
    fn copied(&mut self, _stream: u32, _body: &[u8], _ends: bool) {}

    /// Trailers of a request that is copied, which end it.
    fn copied_trailers(&mut self, _stream: u32, _trailers: &FieldList) {}

    /// A stream that was looked at is over.
    fn ended(&mut self, stream: u32, end: StreamEnd);

    /// A limit of the router refused a stream.
    fn limited(&mut self);
}

/// A field that explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
}
