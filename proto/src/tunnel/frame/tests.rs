//! Frames against the gRPC library's, in pieces of every size, and what is malformed.

use super::*;
use proptest::prelude::*;

/// A gRPC message around `message`.
fn prefixed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// Reads `wire` in pieces of `size` bytes.
fn read(reader: &mut FrameReader, wire: &[u8], size: usize) -> Result<Vec<Message>, FrameError> {
    let mut messages = Vec::new();
    for piece in wire.chunks(size) {
        let mut received = Bytes::copy_from_slice(piece);
        while let Some(message) = reader.next(&mut received)? {
            messages.push(message);
        }
        assert!(received.is_empty());
    }
    Ok(messages)
}

fn whole() -> FrameReader {
    let mut reader = FrameReader::default();
    reader.keep_borders();
    reader
}

/// The data of `messages` in a row, which are nothing else.
fn data(messages: &[Message]) -> Vec<u8> {
    let data = messages.iter().map(|message| match message {
        Message::Normal(data) => &data[..],
        other => panic!("{other:?}"),
    });
    data.collect::<Vec<_>>().concat()
}

#[cfg(feature = "grpc")]
#[test]
fn a_frame_is_what_the_grpc_library_writes() {
    use prost::Message as _;
    for length in [0, 1, 126, 127, 128, 16_383, 16_384, 1 << 20] {
        let payload = super::super::normal_from(&vec![7; length]);
        let message = crate::manager::TunnelMessage { payload };
        let frame = Frame::data(&vec![7; length]);
        assert_eq!(frame.payload(), message.payload);
        assert_eq!(frame.data_len(), length);
        assert_eq!(
            frame.into_bytes(),
            prefixed(&message.encode_to_vec()),
            "{length}"
        );
    }
    assert_eq!(Frame::from(&Message::Disconnect).data_len(), 0);
}

#[test]
fn data_are_gathered_up_to_their_length() {
    let parts = [&b"head "[..], b"", b"body", b"more"].map(IoSlice::new);
    assert_eq!(&Frame::gathered(&parts, 9).payload()[..], b"\0head body");
    assert_eq!(&Frame::gathered(&parts, 7).payload()[..], b"\0head bo");
    assert_eq!(
        &Frame::gathered(&parts, 13).payload()[..],
        b"\0head bodymore"
    );
}

#[test]
fn data_are_slices_of_what_was_received() {
    let wire = Frame::data(&[1; 1000]).into_bytes();
    let (mut first, mut rest) = (wire.slice(..600), wire.slice(600..));
    let mut reader = FrameReader::default();
    for received in [&mut first, &mut rest] {
        let there = received.as_ptr_range();
        match reader.next(received).unwrap() {
            Some(Message::Normal(data)) => assert!(there.contains(&data.as_ptr())),
            other => panic!("{other:?}"),
        }
        assert_eq!(reader.next(received), Ok(None));
    }
    assert!(reader.is_between());
}

#[test]
fn a_message_of_an_unusual_form_is_read_as_well() {
    let messages: [&[u8]; 6] = [
        // Another field before it.
        b"\x10\x05\x0a\x02\x00a",
        // Another field behind it.
        b"\x0a\x02\x00a\x1a\x03xyz",
        // Two payloads: the last counts.
        b"\x0a\x01\x05\x0a\x02\x00a",
        // A length in more bytes than it needs.
        b"\x0a\x82\x80\x80\x80\x80\x00\x00a",
        b"\x15abcd\x0a\x02\x00a",
        b"\x11abcdefgh\x0a\x02\x00a",
    ];
    for message in messages {
        for size in 1..message.len() + 5 {
            let seen = read(&mut FrameReader::default(), &prefixed(message), size);
            assert_eq!(
                data(&seen.unwrap()),
                b"a",
                "{message:?} in pieces of {size}"
            );
        }
    }
}

#[test]
fn what_is_malformed_is_an_error() {
    let cases: [(&str, Vec<u8>, FrameError); 6] = [
        ("compressed", vec![1, 0, 0, 0, 1], FrameError::Compressed),
        (
            "long",
            vec![0, 0, 0x40, 0, 1],
            FrameError::TooLarge((4 << 20) + 1),
        ),
        ("empty", prefixed(b""), TunnelError::Empty.into()),
        (
            "no payload",
            prefixed(b"\x0a\x00"),
            TunnelError::Empty.into(),
        ),
        (
            "no end",
            prefixed(b"\x0a\x05\x00a"),
            FrameError::NoTunnelMessage,
        ),
        (
            "a group",
            prefixed(b"\x0b\x05\x00a"),
            FrameError::NoTunnelMessage,
        ),
    ];
    for (what, wire, error) in cases {
        for size in 1..=wire.len() {
            let seen = read(&mut FrameReader::default(), &wire, size);
            assert_eq!(seen, Err(error.clone()), "{what} in pieces of {size}");
        }
    }
}

#[test]
fn a_length_that_is_only_announced_takes_no_memory() {
    let mut reader = whole();
    // Announces 4 MiB of a datagram, and brings one byte.
    let wire = [
        &[0, 0, 0x40, 0, 0, 0x0a, 0xfb, 0xff, 0xff, 0x01][..],
        &[0, 9],
    ]
    .concat();
    assert_eq!(read(&mut reader, &wire, wire.len()), Ok(Vec::new()));
    assert!(!reader.is_between());
    match &reader.at {
        At::Whole(collected) => assert!(collected.kept.capacity() < 100),
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn messages_arrive_however_they_are_cut(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..6),
        size in 1..400usize,
    ) {
        let mut wire = Vec::new();
        for body in &bodies {
            wire.extend_from_slice(&Frame::data(body).into_bytes());
            wire.extend_from_slice(&Frame::from(&Message::KeepAlive).into_bytes());
        }
        let mut reader = FrameReader::default();
        let seen = read(&mut reader, &wire, size).unwrap();
        prop_assert!(reader.is_between());
        let mut joined = vec![Vec::new()];
        for message in seen {
            match (message, joined.last_mut()) {
                (Message::Normal(data), Some(last)) => last.extend_from_slice(&data),
                (Message::KeepAlive, _) => joined.push(Vec::new()),
                (other, _) => panic!("{other:?}"),
            }
        }
        joined.pop();
        prop_assert_eq!(&joined, &bodies);
        let datagrams = read(&mut whole(), &wire, size).unwrap();
        let datagrams: Vec<_> = datagrams.into_iter().filter(|it| *it != Message::KeepAlive).collect();
        let sent: Vec<_> = bodies.into_iter().map(|body| Message::Normal(body.into())).collect();
        prop_assert_eq!(datagrams, sent);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(
        wire in proptest::collection::vec(any::<u8>(), 0..200),
        size in 1..50usize,
    ) {
        let _ = read(&mut FrameReader::default(), &wire, size);
        let _ = read(&mut whole(), &prefixed(&wire), size);
    }
}
