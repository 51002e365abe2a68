use super::*;
use proptest::prelude::*;

fn packet(kind: u8, id: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(id.to_be_bytes());
    for field in fields {
        bytes.extend(*field);
    }
    bytes
}

fn text(value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap();
    [&length.to_be_bytes()[..], value].concat()
}

#[test]
fn requests_are_read_field_by_field() {
    let open = packet(
        3,
        7,
        &[
            &text(b"/a\xff"),
            &[0, 0, 0, 26],
            &[0, 0, 0, 4, 0, 0, 1, 0xa4],
        ],
    );
    let attributes = Attributes {
        mode: Some(0o644),
        ..Attributes::default()
    };
    let operation = Operation::Open {
        path: b"/a\xff",
        flags: 26,
        attributes,
    };
    assert_eq!(parse(&open), Ok(Request { id: 7, operation }));
    let read = packet(
        5,
        8,
        &[&text(b"h"), &5_u64.to_be_bytes(), &9_u32.to_be_bytes()],
    );
    let operation = Operation::Read {
        handle: b"h",
        offset: 5,
        length: 9,
    };
    assert_eq!(parse(&read), Ok(Request { id: 8, operation }));
    let link = packet(20, 9, &[&text(b"target"), &text(b"link")]);
    let operation = Operation::SymLink {
        target: b"target",
        link: b"link",
    };
    assert_eq!(parse(&link), Ok(Request { id: 9, operation }));
    let vfs = packet(200, 1, &[&text(b"statvfs@openssh.com"), &text(b"/")]);
    assert_eq!(
        parse(&vfs),
        Ok(Request {
            id: 1,
            operation: Operation::StatVfs(b"/")
        })
    );
    let other = packet(200, 1, &[&text(b"no@such")]);
    assert_eq!(
        parse(&other),
        Ok(Request {
            id: 1,
            operation: Operation::Unknown
        })
    );
    assert_eq!(
        parse(&packet(1, 3, &[])),
        Ok(Request {
            id: 0,
            operation: Operation::Init(3)
        })
    );
}

#[test]
fn extended_attributes_are_passed_over() {
    let extended = [
        &0x8000_0008_u32.to_be_bytes()[..],
        &[0, 0, 0, 1, 0, 0, 0, 2],
    ]
    .concat();
    let pairs = [&1_u32.to_be_bytes()[..], &text(b"k"), &text(b"v")].concat();
    let set = packet(9, 1, &[&text(b"/f"), &extended, &pairs]);
    let times = Attributes {
        times: Some((1, 2)),
        ..Attributes::default()
    };
    assert_eq!(
        parse(&set),
        Ok(Request {
            id: 1,
            operation: Operation::SetStat(b"/f", times)
        })
    );
}

#[test]
fn a_packet_that_ends_early_names_its_request() {
    let short = packet(13, 77, &[&[0, 0, 0, 9], b"abc"]);
    let fault = parse(&short).unwrap_err();
    assert_eq!((fault.kind, fault.id), (13, Some(77)));
    assert_eq!(parse(b"").unwrap_err().id, None);
    assert_eq!(parse(&[13, 0, 0]).unwrap_err().id, None);
}

#[test]
fn answers_have_the_layout_of_the_draft() {
    let mut out = Vec::new();
    let mut answers = Answers(&mut out);
    answers.status(1, StatusCode::NoSuchFile, "no");
    assert_eq!(
        out,
        b"\0\0\0\x15\x65\0\0\0\x01\0\0\0\x02\0\0\0\x02no\0\0\0\x02en"
    );
    let mut out = Vec::new();
    let full = Attributes {
        size: Some(3),
        owner: Some((1, 2)),
        mode: Some(0o100_644),
        times: Some((4, 5)),
    };
    Answers(&mut out).attributes(2, &full);
    let flags_and_size = [0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0, 3];
    let owner_and_mode = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0x81, 0xa4];
    let times = [0, 0, 0, 4, 0, 0, 0, 5];
    let fields = [&flags_and_size[..], &owner_and_mode, &times].concat();
    assert_eq!(out, [&b"\0\0\0\x25\x69\0\0\0\x02"[..], &fields].concat());
}

#[test]
fn data_that_could_not_be_read_leaves_no_trace() {
    let mut out = b"before".to_vec();
    let none = Answers(&mut out).data(1, 100, |_| Ok::<_, ()>(0));
    assert_eq!((none, &out[..]), (Ok(0), &b"before"[..]));
    assert_eq!(
        Answers(&mut out).data(1, 100, |_| Err::<usize, _>("io")),
        Err("io")
    );
    assert_eq!(out, b"before");
    let fill = |room: &mut [u8]| {
        room[..2].copy_from_slice(b"hi");
        Ok::<_, ()>(2)
    };
    assert_eq!(Answers(&mut out).data(9, 100, fill), Ok(2));
    assert_eq!(&out[6..], b"\0\0\0\x0b\x67\0\0\0\x09\0\0\0\x02hi");
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn every_cut_of_a_write_is_refused(data in proptest::collection::vec(any::<u8>(), 0..64), cut in any::<proptest::sample::Index>()) {
        let whole = packet(6, 5, &[&text(b"h"), &1_u64.to_be_bytes(), &text(&data)]);
        let operation = Operation::Write { handle: b"h", offset: 1, data: &data };
        prop_assert_eq!(parse(&whole), Ok(Request { id: 5, operation }));
        let at = cut.index(whole.len());
        prop_assert!(parse(&whole[..at]).is_err());
    }
}
