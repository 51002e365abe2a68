//! One transaction of nf_tables: messages that the kernel takes as a whole or not at all; and
//! refusals of the kernel in words.

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use super::attribute::{BATCH_BEGIN, BATCH_END, BATCH_GENERATION};
use crate::failure::Failure;
use crate::netlink::{ACK, Attributes, REQUEST, Refusal, Socket, message};
use crate::permission::{self, Denied, Need};

/// Kernel option whose absence takes all of nf_tables away.
const NF_TABLES: &str = "CONFIG_NF_TABLES (module nf_tables)";

/// Step that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Opening the socket.
    Open,
    /// Question about what is in force.
    Question,
    /// Transaction as a whole.
    Transaction,
    /// One message of a transaction.
    Message,
}

/// Refusal of the kernel: the step, its answer, and the option it may lack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Rule, chain or table, or the socket.
    pub(crate) what: String,
    /// Answer of the kernel.
    pub(crate) errno: Errno,
    /// Kernel option whose absence would give that answer.
    pub(crate) option: Option<&'static str>,
    /// Step that was refused.
    pub(crate) step: Step,
}

impl Refused {
    /// True when the answer is the one of a kernel that lacks something.
    fn is_about_absence(&self) -> bool {
        let absent = [
            Errno::NOENT,
            Errno::OPNOTSUPP,
            Errno::AFNOSUPPORT,
            Errno::PROTONOSUPPORT,
            Errno::SOCKTNOSUPPORT,
            Errno::INVAL,
        ];
        absent.contains(&self.errno)
    }

    fn text(&self) -> String {
        let text = format!("the kernel refused {}: {}", self.what, self.errno);
        match self.option {
            Some(option) if self.is_about_absence() => format!("{text}: it may lack {option}"),
            _ => text,
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let forbidden = matches!(refused.errno, Errno::PERM | Errno::ACCESS);
        match refused.step {
            Step::Open | Step::Question | Step::Transaction if refused.is_about_absence() => {
                Self::Absent(refused.text())
            }
            // With the right, a refusal comes from a sandbox, and the rules in force stay unknown.
            Step::Question if forbidden => match permission::check(Need::NetAdmin) {
                Err(denied) => Self::NotPermitted(denied),
                Ok(()) => Self::Unanswered(refused.text()),
            },
            Step::Open | Step::Question => Self::Unanswered(refused.text()),
            Step::Transaction if forbidden => {
                Self::NotPermitted(Denied::in_spite_of(Need::NetAdmin))
            }
            Step::Transaction | Step::Message => Self::Refused(refused.text()),
        }
    }
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
        // Family none, version 0, and the subsystem nf_tables (10) in network order.
        let frame = Attributes::default().fixed(&[0, 0, 0, 10]);
        let begin = generation.map_or_else(
            || frame.clone(),
            |it| frame.clone().be32(BATCH_GENERATION, it),
        );
        let mut bytes = message(BATCH_BEGIN, REQUEST, 0, &begin);
        let mut sequence = 0;
        for (at, (kind, flags, body)) in self.messages.iter().enumerate() {
            sequence += 1;
            // One acknowledgement tells that all went well; one for each could fill the socket's
            // buffer.
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
            // Number 0 is the frame's beginning, so the first message has number 1.
            .and_then(|it| usize::try_from(it).ok()?.checked_sub(1));
        let Some((what, option)) = at.and_then(|at| self.words.get(at)) else {
            return whole("the transaction", refusal.errno, Step::Transaction);
        };
        Refused {
            what: what.clone(),
            errno: refusal.errno,
            option: *option,
            step: Step::Message,
        }
    }
}

/// Refusal that is not about one of our messages.
fn whole(what: &str, errno: Errno, step: Step) -> Refused {
    Refused {
        what: what.to_owned(),
        errno,
        option: Some(NF_TABLES),
        step,
    }
}

/// Refusal to answer a question.
pub(crate) fn unanswered(what: &str, errno: Errno) -> Refused {
    whole(what, errno, Step::Question)
}

/// Opens the netlink socket of netfilter. It takes no right.
pub(crate) fn open() -> Result<Socket, Refused> {
    Socket::open(Some(NETFILTER)).map_err(|errno| Refused {
        what: "the netlink socket of netfilter".to_owned(),
        errno,
        option: Some("CONFIG_NETFILTER_NETLINK (module nfnetlink)"),
        step: Step::Open,
    })
}

/// Fixed part in front of each message of netfilter: the family's number, 0 for all.
pub(crate) fn of(family: u8) -> Attributes {
    Attributes::default().fixed(&[family, 0, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(errno: Errno, step: Step) -> Failure {
        let what = "rule ip TEL_PREROUTING_TCP: tcp dport 8080 redirect to :9900".to_owned();
        let option = Some("CONFIG_NFT_REDIR (module nft_redir)");
        Failure::from(Refused {
            what,
            errno,
            option,
            step,
        })
    }

    #[test]
    fn what_the_kernel_lacks_is_named_with_the_rule_and_its_answer() {
        let Failure::Refused(text) = failure(Errno::NOENT, Step::Message) else {
            panic!("it is about the rule")
        };
        for words in [
            "tcp dport 8080 redirect to :9900",
            "No such file",
            "CONFIG_NFT_REDIR",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        // An answer that says nothing about options makes no guess at one.
        let Failure::Refused(text) = failure(Errno::BUSY, Step::Message) else {
            panic!("it is about the rule")
        };
        assert!(!text.contains("CONFIG"), "{text}");
    }

    #[test]
    fn a_missing_right_is_told_from_an_object_that_refuses() {
        assert!(matches!(
            failure(Errno::PERM, Step::Transaction),
            Failure::NotPermitted(_)
        ));
        assert!(matches!(
            failure(Errno::PERM, Step::Message),
            Failure::Refused(_)
        ));
    }

    #[test]
    fn a_kernel_without_nf_tables_is_told_from_one_that_does_not_answer() {
        for (errno, step) in [
            (Errno::PROTONOSUPPORT, Step::Open),
            (Errno::INVAL, Step::Question),
            (Errno::OPNOTSUPP, Step::Transaction),
        ] {
            assert!(
                matches!(failure(errno, step), Failure::Absent(_)),
                "{errno}"
            );
        }
        for (errno, step) in [
            (Errno::PERM, Step::Open),
            (Errno::IO, Step::Question),
            (Errno::AGAIN, Step::Question),
        ] {
            assert!(
                matches!(failure(errno, step), Failure::Unanswered(_)),
                "{errno}"
            );
        }
    }
}
