use super::*;
use proptest::prelude::*;

#[test]
fn commands_are_read_with_their_arguments() {
    for (line, command) in [
        (&b"USER anonymous"[..], Command::User(b"anonymous")),
        (b"user x", Command::User(b"x")),
        (b"PASS", Command::Pass),
        (b"RETR  leading space", Command::Retr(b" leading space")),
        (b"STOR a\xff b", Command::Stor(b"a\xff b")),
        (b"CDUP", Command::Cwd(b"..")),
        (b"TYPE I", Command::Representation(true)),
        (b"TYPE a n", Command::Representation(true)),
        (b"TYPE E", Command::Representation(false)),
        (b"MODE Z", Command::Representation(false)),
        (b"OPTS UTF8 ON", Command::Opts),
        (b"EPSV", Command::Epsv(Family::Same)),
        (b"EPSV 1", Command::Epsv(Family::V4)),
        (b"EPSV all", Command::Epsv(Family::All)),
        (b"EPSV |1|10.0.0.1|80|", Command::Epsv(Family::Other)),
        (b"REST 9223372036854775807", Command::Rest(i64::MAX as u64)),
        (b"MLSD", Command::Mlsd(None)),
        (b"MLST /a", Command::Mlst(Some(b"/a"))),
        (b"LIST -la", Command::List(None)),
        (b"NLST -a dir", Command::Nlst(Some(b"dir"))),
        (b"\xff\xf4\xff\xf2ABOR", Command::Abor),
    ] {
        assert_eq!(parse(line), Ok(command), "{}", line.escape_ascii());
    }
}

#[test]
fn commands_that_name_a_host_or_a_program_are_unknown() {
    for line in [
        "PORT 10,0,0,1,0,22",
        "EPRT |1|10.0.0.1|22|",
        "SITE CHMOD 777 a",
        "SITE EXEC id",
    ] {
        assert_eq!(parse(line.as_bytes()), Ok(Command::Unknown), "{line}");
    }
}

#[test]
fn lines_that_are_no_commands_are_refused() {
    for line in [
        &b""[..],
        b" RETR a",
        b"RE",
        b"RETRY a",
        b"R\0TR a",
        b"\xff\xf4",
    ] {
        assert_eq!(
            parse(line),
            Err(BadCommand::NoVerb),
            "{}",
            line.escape_ascii()
        );
    }
    for line in [
        &b"RETR"[..],
        b"RETR ",
        b"REST",
        b"REST -1",
        b"REST +1",
        b"OPTS HASH MD5",
    ] {
        assert_eq!(
            parse(line),
            Err(BadCommand::Argument),
            "{}",
            line.escape_ascii()
        );
    }
    assert_eq!(
        parse(b"REST 9223372036854775808"),
        Err(BadCommand::Argument)
    );
    for line in [&b"RETR a\0b"[..], b"RETR a\rb", b"NOOP \r"] {
        assert_eq!(parse(line), Err(BadCommand::ControlCharacter));
    }
}

#[test]
fn a_line_longer_than_any_command_is_refused() {
    let mut lines = Lines::default();
    lines.push(&vec![b'a'; MAX_LINE - 1]);
    assert_eq!(lines.next_line(), Ok(None));
    lines.push(b"\n");
    assert_eq!(
        lines.next_line().map(|line| line.map(<[u8]>::len)),
        Ok(Some(MAX_LINE - 1))
    );
    lines.push(&vec![b'a'; MAX_LINE]);
    assert_eq!(lines.next_line(), Err(LineTooLong));
}

proptest! {
    #[test]
    fn any_line_is_parsed_without_a_panic(line in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse(&line);
    }

    #[test]
    fn every_name_without_control_characters_arrives_as_it_was_sent(
        name in proptest::collection::vec(any::<u8>(), 1..64),
        verb in "RETR|Stor|mkd|DeLE",
    ) {
        let line = [verb.as_bytes(), b" ", &name].concat();
        match parse(&line) {
            Ok(Command::Retr(path) | Command::Stor(path) | Command::Mkd(path)
                | Command::Dele(path)) => prop_assert_eq!(path, &name[..]),
            other => {
                prop_assert_eq!(other, Err(BadCommand::ControlCharacter));
                prop_assert!(name.iter().any(|b| [0, 10, 13].contains(b)));
            }
        }
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive(
        text in proptest::collection::vec(
            prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
        cuts in proptest::collection::vec(1_usize..20, 0..50),
    ) {
        let mut whole = Lines::default();
        whole.push(&text);
        let mut expected = Vec::new();
        while let Ok(Some(line)) = whole.next_line() {
            expected.push(line.to_vec());
        }
        let (mut lines, mut seen, mut rest) = (Lines::default(), Vec::new(), &text[..]);
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            lines.push(now);
            rest = later;
            while let Ok(Some(line)) = lines.next_line() {
                seen.push(line.to_vec());
            }
        }
        prop_assert_eq!(seen, expected);
    }
}
