//! One transaction of nf_tables: messages that the kernel takes as a whole or not at all.

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::attribute::{BATCH_BEGIN, BATCH_END, BATCH_GENERATION};
use crate::netlink::{ACK, Attributes, REQUEST, Refusal, Socket, message};
use crate::rule::Family;

/// Refusal of the kernel in our words: the step, its answer, and the option it lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Rule, chain or table, or the socket.
    pub what: String,
    /// Answer of the kernel.
    pub errno: Errno,
    /// Kernel option whose absence would give that answer.
    pub option: Option<&'static str>,
    /// True when it is about one step only, so that it says nothing about the right to program.
    pub specific: bool,
}

/// Transaction under construction, with the words for each of its messages.
#[derive(Default)]
pub(crate) struct Batch {
    messages: Vec<(u16, u16, Attributes)>,
    words: Vec<(String, Option<&'static str>)>,
}

impl Batch {
    pub(crate) fn add(
        &mut self,
        kind: u16,
        flags: u16,
        body: Attributes,
        what: String,
        option: Option<&'static str>,
    ) {
        self.messages.push((kind, flags, body));
        self.words.push((what, option));
    }

    pub(crate) fn delete(&mut self, kind: u16, body: Attributes, what: String) {
        self.add(kind, 0, body, what, None);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Commits all or nothing; with a `generation`, only when nobody changed anything since.
    pub(crate) fn commit(self, socket: &Socket, generation: Option<u32>) -> Result<(), Refused> {
        let frame = Attributes::default().fixed(&[0, 0, 0, 10]);
        let begin = generation.map_or_else(
            || frame.clone(),
            |it| frame.clone().be32(BATCH_GENERATION, it),
        );
        let mut bytes = message(BATCH_BEGIN, REQUEST, 0, &begin);
        let mut sequence = 0;
        for (at, (kind, flags, body)) in self.messages.iter().enumerate() {
            sequence += 1;
            let ack = if at + 1 == self.messages.len() {
                ACK
            } else {
                0
            };
            bytes.extend(message(*kind, REQUEST | ack | flags, sequence, body));
        }
        bytes.extend(message(BATCH_END, REQUEST, sequence + 1, &frame));
        socket
            .transact(&bytes, sequence)
            .map_err(|refusal| self.explain(refusal))
    }

    fn explain(&self, refusal: Refusal) -> Refused {
        let at = refusal
            .sequence
            .and_then(|it| usize::try_from(it).ok()?.checked_sub(1));
        let Some((what, option)) = at.and_then(|at| self.words.get(at)) else {
            return whole("the transaction", refusal.errno);
        };
        Refused {
            what: what.clone(),
            errno: refusal.errno,
            option: *option,
            specific: true,
        }
    }
}

/// Refusal that is not about one of our messages.
pub(crate) fn whole(what: &str, errno: Errno) -> Refused {
    Refused {
        what: what.to_owned(),
        errno,
        option: Some("CONFIG_NF_TABLES (module nf_tables)"),
        specific: false,
    }
}

/// Opens the netlink socket of netfilter.
pub(crate) fn open() -> Result<Socket, Refused> {
    Socket::open(Some(NETFILTER)).map_err(|errno| Refused {
        what: "the netlink socket of netfilter".to_owned(),
        errno,
        option: Some("CONFIG_NETFILTER_NETLINK (module nfnetlink)"),
        // The socket takes no right; a sandbox that refuses it is no reason to ask for one.
        specific: true,
    })
}

/// Fixed part in front of each nf_tables message.
pub(crate) fn of(family: Family) -> Attributes {
    Attributes::default().fixed(&[family.number(), 0, 0, 0])
}
