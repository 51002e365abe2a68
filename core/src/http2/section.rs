//! Header sections: one HEADERS or PUSH_PROMISE frame and the CONTINUATION frames behind it (RFC
//! 9113 section 4.3), taken apart and put together.

use crate::http2::frames::{END_HEADERS, FRAME_SIZE, FrameHeader, HEAD, PADDED, PRIORITY, kind};

/// Bytes of the frames of one header section that are waited for; what is longer is not understood.
pub const MAX_SECTION: usize = 1 << 20;

/// State of a header section's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The section is these bytes.
    Whole(usize),
    /// More has to come.
    More,
    /// Another frame stands where CONTINUATION must.
    Broken,
    /// It is longer than [`MAX_SECTION`].
    TooLong,
}

/// Measures the header section whose first frame is at the front of `bytes`.
#[must_use]
pub fn extent(bytes: &[u8]) -> Extent {
    extent_from(bytes, &mut 0)
}

/// Measures like [`extent`] bytes that grow at their end: `at` is the length of the frames that
/// were measured before, 0 at first, so that many small ones cost no more than a large one.
#[must_use]
pub fn extent_from(bytes: &[u8], at: &mut usize) -> Extent {
    let mut first = FrameHeader::peek(bytes).filter(|_| *at > 0);
    loop {
        let rest = bytes.get(*at..).unwrap_or_default();
        let Some(head) = FrameHeader::peek(rest) else {
            return Extent::More;
        };
        if first.is_some_and(|f| head.kind != kind::CONTINUATION || head.stream != f.stream) {
            return Extent::Broken;
        }
        first.get_or_insert(head);
        let end = *at + head.size();
        if end > MAX_SECTION {
            return Extent::TooLong;
        }
        if head.flags & END_HEADERS != 0 {
            return if end <= bytes.len() {
                Extent::Whole(end)
            } else {
                Extent::More
            };
        }
        if end > bytes.len() {
            return Extent::More;
        }
        *at = end;
    }
}

/// Content of a header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'s> {
    /// The header of its first frame.
    pub head: FrameHeader,
    /// Exclusive flag, dependency and weight, where they were given.
    pub priority: Option<[u8; 5]>,
    /// The stream that a PUSH_PROMISE promises.
    pub promised: Option<[u8; 4]>,
    /// The compressed fields.
    pub block: &'s [u8],
}

/// Reads a whole header section; a block that came in pieces is joined in `joined`. `None` where
/// its padding or its fixed fields are longer than the frame.
#[must_use]
pub fn read<'s>(frames: &'s [u8], joined: &'s mut Vec<u8>) -> Option<Section<'s>> {
    let head = FrameHeader::parse(*frames.first_chunk()?);
    let (payload, mut rest) = frames.get(HEAD..)?.split_at_checked(head.length as usize)?;
    let mut section = Section {
        head,
        priority: None,
        promised: None,
        block: unpadded(head, payload)?,
    };
    if head.kind == kind::PUSH_PROMISE {
        let (promised, block) = section.block.split_first_chunk()?;
        (section.promised, section.block) = (Some(*promised), block);
    } else if head.flags & PRIORITY != 0 {
        let (priority, block) = section.block.split_first_chunk()?;
        (section.priority, section.block) = (Some(*priority), block);
    }
    if rest.is_empty() {
        return Some(section);
    }
    joined.clear();
    joined.extend_from_slice(section.block);
    while let Some(next) = FrameHeader::peek(rest) {
        let (fragment, after) = rest.get(HEAD..)?.split_at_checked(next.length as usize)?;
        joined.extend_from_slice(fragment);
        rest = after;
    }
    section.block = joined;
    Some(section)
}

/// A payload without its padding; `None` where that is longer than the payload.
#[must_use]
pub fn unpadded(head: FrameHeader, payload: &[u8]) -> Option<&[u8]> {
    if head.flags & PADDED == 0 {
        return Some(payload);
    }
    let (pad, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(*pad))?)
}

/// Writes a block as HEADERS and as many CONTINUATION as it takes.
pub fn write(stream: u32, end_stream: bool, block: &[u8], out: &mut Vec<u8>) {
    let head = FrameHeader {
        length: 0,
        kind: kind::HEADERS,
        flags: u8::from(end_stream),
        stream,
    };
    write_frames(head, &[], block, out);
}

/// Writes a request's section, with a priority where there is one.
pub fn write_request(
    stream: u32,
    end_stream: bool,
    priority: Option<[u8; 5]>,
    block: &[u8],
    out: &mut Vec<u8>,
) {
    let head = FrameHeader {
        length: 0,
        kind: kind::HEADERS,
        flags: u8::from(end_stream) | if priority.is_some() { PRIORITY } else { 0 },
        stream,
    };
    write_frames(head, priority.as_ref().map_or(&[], |p| p), block, out);
}

/// Writes a block as PUSH_PROMISE of the stream `promised`.
pub fn write_promise(stream: u32, promised: [u8; 4], block: &[u8], out: &mut Vec<u8>) {
    let head = FrameHeader {
        length: 0,
        kind: kind::PUSH_PROMISE,
        flags: 0,
        stream,
    };
    write_frames(head, &promised, block, out);
}

/// Writes a section whose first frame begins with `lead`.
fn write_frames(mut head: FrameHeader, lead: &[u8], block: &[u8], out: &mut Vec<u8>) {
    let (now, mut later) = block.split_at((FRAME_SIZE - lead.len()).min(block.len()));
    if later.is_empty() {
        head.flags |= END_HEADERS;
    }
    // At most [`FRAME_SIZE`].
    head.length = (lead.len() + now.len()) as u32;
    out.extend_from_slice(&head.encode());
    out.extend_from_slice(lead);
    out.extend_from_slice(now);
    while !later.is_empty() {
        let (now, rest) = later.split_at(FRAME_SIZE.min(later.len()));
        later = rest;
        head.kind = kind::CONTINUATION;
        head.length = now.len() as u32;
        head.flags = if later.is_empty() { END_HEADERS } else { 0 };
        out.extend_from_slice(&head.encode());
        out.extend_from_slice(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::frames::MAX_STREAM;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let head = FrameHeader {
            length: payload.len() as u32,
            kind,
            flags,
            stream,
        };
        [&head.encode()[..], payload].concat()
    }

    #[test]
    fn a_section_ends_with_its_last_continuation_and_nothing_may_stand_between() {
        let open = frame(kind::HEADERS, 0, 1, b"ab");
        let more = frame(kind::CONTINUATION, 0, 1, b"");
        let last = frame(kind::CONTINUATION, END_HEADERS, 1, b"c");
        let whole = [&open[..], &more, &last].concat();
        for cut in 0..whole.len() {
            assert_eq!(extent(&whole[..cut]), Extent::More, "{cut}");
        }
        let (mut at, mut seen) = (0, Vec::new());
        for cut in 0..=whole.len() {
            seen.push(extent_from(&whole[..cut], &mut at));
        }
        assert_eq!(seen.pop(), Some(Extent::Whole(whole.len())));
        assert!(seen.iter().all(|extent| *extent == Extent::More));
        let long = [&whole[..], b"next"].concat();
        assert_eq!(extent(&long), Extent::Whole(whole.len()));
        let mut joined = Vec::new();
        assert_eq!(read(&whole, &mut joined).unwrap().block, b"abc");
        let other = frame(kind::CONTINUATION, END_HEADERS, 3, b"c");
        assert_eq!(extent(&[&open[..], &other].concat()), Extent::Broken);
        let ping = frame(kind::PING, END_HEADERS, 1, b"12345678");
        assert_eq!(extent(&[&open[..], &ping].concat()), Extent::Broken);
        let large = frame(kind::HEADERS, END_HEADERS, 1, &vec![0; MAX_SECTION]);
        assert_eq!(extent(&large), Extent::TooLong);
    }

    #[test]
    fn padding_priority_and_promised_streams_are_no_part_of_the_block() {
        let flags = END_HEADERS | PADDED | PRIORITY;
        let padded = frame(kind::HEADERS, flags, 1, b"\x02\x80\0\0\x07\x0fblock\0\0");
        let mut joined = Vec::new();
        let section = read(&padded, &mut joined).unwrap();
        assert_eq!(section.block, b"block");
        assert_eq!(section.priority, Some(*b"\x80\0\0\x07\x0f"));
        let promise = frame(
            kind::PUSH_PROMISE,
            END_HEADERS | PADDED,
            1,
            b"\x01\0\0\0\x02pp\0",
        );
        let section = read(&promise, &mut joined).unwrap();
        assert_eq!(
            (section.block, section.promised),
            (&b"pp"[..], Some([0, 0, 0, 2]))
        );
        let mut out = Vec::new();
        write_promise(1, [0, 0, 0, 2], b"pp", &mut out);
        assert_eq!(
            out,
            frame(kind::PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02pp")
        );
        for (flags, payload) in [
            (PADDED, &b"\x03ab"[..]),
            (PADDED, b""),
            (PRIORITY, b"\0\0\0\x01"),
        ] {
            let short = frame(kind::HEADERS, END_HEADERS | flags, 1, payload);
            assert_eq!(read(&short, &mut joined), None, "{payload:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            length in 0usize..50_000, end: bool, priority: Option<[u8; 5]>, stream in 1u32..=MAX_STREAM,
        ) {
            let block: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let (mut out, mut joined) = (Vec::new(), Vec::new());
            write_request(stream, end, priority, &block, &mut out);
            prop_assert_eq!(extent(&out), Extent::Whole(out.len()));
            let section = read(&out, &mut joined).unwrap();
            prop_assert_eq!((section.block, section.priority), (&block[..], priority));
            prop_assert_eq!((section.head.stream, section.head.ends_stream()), (stream, end));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = extent(&bytes);
            let _ = read(&bytes, &mut Vec::new());
        }
    }
}
