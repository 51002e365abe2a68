//! Golden bytes worked out by hand from the protocol, malformed payloads, and properties.

use super::*;
use crate::port::Transport;
use proptest::prelude::*;

fn conn_id() -> ConnId {
    ConnId::new(
        Transport::Tcp,
        "10.1.2.3:50000".parse().unwrap(),
        "192.168.0.1:8080".parse().unwrap(),
    )
}

/// The connection id above: 0a010203 c350 c0a80001 1f90 06.
const CONN_ID: [u8; 13] = [
    0x0a, 0x01, 0x02, 0x03, 0xc3, 0x50, 0xc0, 0xa8, 0x00, 0x01, 0x1f, 0x90, 0x06,
];

fn check(message: Message, payload: &[u8]) {
    assert_eq!(message.encode(), payload, "{message:?}");
    assert_eq!(message.code(), payload[0]);
    assert_eq!(
        Message::decode(Bytes::copy_from_slice(payload)),
        Ok(message)
    );
}

fn check_stream_info(info: StreamInfo, parts: &[&[u8]]) {
    check(Message::StreamInfo(info), &parts.concat());
}

#[test]
fn messages_without_a_body_are_their_code() {
    check(Message::CloseSend, &[3]);
    check(Message::DialOk, &[4]);
    check(Message::DialReject, &[5]);
    check(Message::Disconnect, &[6]);
    check(Message::KeepAlive, &[7]);
}

#[test]
fn data_follows_its_code() {
    check(Message::Normal(Bytes::from_static(b"hi")), b"\x00hi");
    check(Message::Normal(Bytes::new()), b"\x00");
    assert_eq!(normal_from(b"hi"), &b"\x00hi"[..]);
}

#[test]
fn data_read_behind_the_code_is_a_payload() {
    let mut buf = BytesMut::new();
    begin_normal(&mut buf);
    buf.put_slice(b"hi");
    assert_eq!(buf.split().freeze(), normal_from(b"hi"));
}

#[test]
fn stream_ok_is_02_and_the_version() {
    check(Message::StreamOk(STREAM_VERSION), &[2, 2]);
    // 300 = 0b10_0101100: low seven bits 2c with the top bit set, then 02.
    check(Message::StreamOk(300), &[2, 0xac, 0x02]);
    // 2^64-1 is nine times seven ones and one more.
    check(
        Message::StreamOk(u64::MAX),
        &[
            2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ],
    );
}

#[test]
fn a_session_is_its_text() {
    check(Message::Session("s-é".to_owned()), b"\x08s-\xc3\xa9");
}

#[test]
fn unknown_codes_keep_their_body() {
    check(Message::Unknown(9, Bytes::new()), &[9]);
    check(
        Message::Unknown(255, Bytes::from_static(b"\x00\x01")),
        &[255, 0, 1],
    );
}

#[test]
fn stream_info_is_version_latency_timeout_id_and_session() {
    // 4 s = 4_000_000_000 ns = 0xee6b2800. Sevens from the low end: 00 | 50 | 2c | 73 | 0e, so
    // 80 d0 ac f3 0e. 3 s = 3_000_000_000 = 0xb2d05e00: 00 | 3c | 41 | 16 | 0b, so 80 bc c1 96 0b.
    let info = StreamInfo::new(
        conn_id(),
        "abc",
        Duration::from_secs(4),
        Duration::from_secs(3),
    );
    check_stream_info(
        info,
        &[
            &[0x01, 0x02],
            &[0x80, 0xd0, 0xac, 0xf3, 0x0e],
            &[0x80, 0xbc, 0xc1, 0x96, 0x0b],
            &[13],
            &CONN_ID,
            b"\x03abc",
        ],
    );
}

#[test]
fn stream_info_holds_zero_and_the_longest_durations() {
    let info = StreamInfo::new(conn_id(), "", Duration::ZERO, MAX_STREAM_TIMEOUT);
    // 2^56-1 is eight times seven ones: the most eight bytes can hold.
    let longest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    check_stream_info(
        info,
        &[&[0x01, 0x02, 0x00], &longest, &[13], &CONN_ID, &[0x00]],
    );
}

#[test]
fn durations_beyond_the_longest_are_sent_as_the_longest() {
    for long in [
        MAX_STREAM_TIMEOUT + Duration::from_nanos(1),
        Duration::from_nanos(u64::MAX),
        Duration::MAX,
    ] {
        let sent = StreamInfo::new(conn_id(), "s", long, long);
        let kept = StreamInfo::new(conn_id(), "s", MAX_STREAM_TIMEOUT, MAX_STREAM_TIMEOUT);
        assert_eq!(
            Message::StreamInfo(sent).encode(),
            Message::StreamInfo(kept).encode()
        );
        assert_eq!(nanos_from_duration(long), (1 << 56) - 1);
    }
}

#[test]
fn negative_nanoseconds_are_none() {
    assert_eq!(duration_from_nanos(-1), Duration::ZERO);
    assert_eq!(duration_from_nanos(i64::MIN), Duration::ZERO);
    assert_eq!(
        duration_from_nanos(i64::MAX),
        Duration::from_nanos(i64::MAX as u64)
    );
    assert_eq!(nanos_from_duration(Duration::from_secs(3)), 3_000_000_000);
}

#[test]
fn an_ipv6_stream_info_has_a_long_id_and_long_texts_a_long_count() {
    let id = ConnId::new(
        Transport::Udp,
        "[2001:db8::1]:53".parse().unwrap(),
        "[::1]:65535".parse().unwrap(),
    );
    let session = "x".repeat(200);
    let info = StreamInfo::new(id, session.clone(), Duration::ZERO, Duration::ZERO);
    let packed = [
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x00, 0x35, //
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0xff, 0xff, 0x11,
    ];
    // 200 = 0b1_1001000, so c8 01.
    check_stream_info(
        info,
        &[
            &[0x01, 0x02, 0x00, 0x00, 37],
            &packed,
            &[0xc8, 0x01],
            session.as_bytes(),
        ],
    );
}

#[test]
fn numbers_may_be_written_longer_than_needed() {
    assert_eq!(
        Message::decode(Bytes::from_static(&[2, 0x82, 0x00])),
        Ok(Message::StreamOk(2))
    );
}

#[test]
fn bytes_behind_the_last_field_are_ignored() {
    assert_eq!(
        Message::decode(Bytes::from_static(&[2, 2, 99])),
        Ok(Message::StreamOk(2))
    );
    assert_eq!(
        Message::decode(Bytes::from_static(&[4, 99])),
        Ok(Message::DialOk)
    );
}

#[test]
fn malformed_payloads_are_refused_with_the_reason() {
    use TunnelError::*;
    let good = Message::StreamInfo(StreamInfo::new(
        conn_id(),
        "abc",
        Duration::ZERO,
        Duration::ZERO,
    ))
    .encode();
    // Layout of `good`: code, version, latency, timeout at 1, 2, 3; count at 4; id at 5..18; count
    // at 18; text.
    let mut icmp = good.to_vec();
    icmp[17] = 1;
    let mut short_id = good.to_vec();
    short_id[4] = 12;
    let mut huge_id = good[..5].to_vec();
    huge_id.splice(
        4..5,
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    );
    let mut latin = good.to_vec();
    *latin.last_mut().unwrap() = 0xe9;
    let overlong = [2, 128, 128, 128, 128, 128, 128, 128, 128, 128, 2];
    let endless = [0x80; 12];
    let endless = [&[2], &endless[..]].concat();
    for (payload, reason) in [
        (&[][..], Empty),
        (&[1], Truncated("stream version")),
        (&[2], Truncated("stream version")),
        (&[2, 0x80], Truncated("stream version")),
        (&overlong, Overlong("stream version")),
        (&endless, Overlong("stream version")),
        (&good[..2], Truncated("roundtrip latency")),
        (&good[..3], Truncated("dial timeout")),
        (&good[..4], Truncated("connection id")),
        (&good[..17], Truncated("connection id")),
        (&good[..18], Truncated("session id")),
        (&good[..20], Truncated("session id")),
        (&huge_id, Truncated("connection id")),
        (&short_id, ConnId(ConnIdError::Length(12))),
        (&icmp, ConnId(ConnIdError::Protocol(1))),
        (&latin, NotUtf8("session id")),
        (b"\x08\xff", NotUtf8("session id")),
    ] {
        let refused = Message::decode(Bytes::copy_from_slice(payload));
        assert_eq!(refused, Err(reason), "{payload:02x?}");
    }
}

#[test]
fn decoded_data_is_a_slice_of_what_arrived() {
    let payload = normal_from(b"data");
    let start = payload.as_ptr();
    let Ok(Message::Normal(data)) = Message::decode(payload) else {
        panic!("data expected");
    };
    assert_eq!(data.as_ptr(), start.wrapping_add(1));
}

fn message() -> impl Strategy<Value = Message> {
    let body = || proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let nanos = || (0..1u64 << 56).prop_map(Duration::from_nanos);
    let id = (any::<[u8; 37]>(), any::<bool>(), any::<bool>()).prop_map(|(mut wire, udp, long)| {
        let length = if long { 37 } else { 13 };
        wire[length - 1] = if udp { 17 } else { 6 };
        ConnId::parse(&wire[..length]).unwrap()
    });
    let info = (any::<u64>(), nanos(), nanos(), id, any::<String>()).prop_map(
        |(version, roundtrip_latency, dial_timeout, conn_id, session_id)| {
            Message::StreamInfo(StreamInfo {
                version,
                roundtrip_latency,
                dial_timeout,
                conn_id,
                session_id,
            })
        },
    );
    prop_oneof![
        body().prop_map(Message::Normal),
        info,
        any::<u64>().prop_map(Message::StreamOk),
        Just(Message::CloseSend),
        Just(Message::DialOk),
        Just(Message::DialReject),
        Just(Message::Disconnect),
        Just(Message::KeepAlive),
        any::<String>().prop_map(Message::Session),
        (9u8.., body()).prop_map(|(code, body)| Message::Unknown(code, body)),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(message in message()) {
        prop_assert_eq!(Message::decode(message.encode()), Ok(message));
    }

    #[test]
    fn no_payload_makes_decoding_panic(code in 0u8..10, body in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = Message::decode(Bytes::from([&[code], &body[..]].concat()));
        let _ = Message::decode(Bytes::from(body));
    }

    #[test]
    fn a_stream_info_cut_anywhere_is_refused(message in message(), cut in any::<prop::sample::Index>()) {
        if let Message::StreamInfo(_) = message {
            let payload = message.encode();
            let cut = cut.index(payload.len());
            prop_assert!(Message::decode(payload.slice(..cut)).is_err());
        }
    }
}
