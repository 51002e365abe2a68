//! FTP commands: any bytes are cut into lines and parsed without a panic, however they arrive, and a
//! path that is parsed holds nothing by which it could become two lines or two paths.
#![no_main]
use libfuzzer_sys::fuzz_target;
use traffic_core::ftp::{Command, Lines, MAX_LINE, parse};

fuzz_target!(|input: (usize, &[u8])| {
    let (cut, bytes) = input;
    let (first, second) = bytes.split_at(cut % (bytes.len() + 1));
    let mut whole = Lines::default();
    whole.push(bytes);
    let mut parts = Lines::default();
    parts.push(first);
    for more in [Some(second), None] {
        loop {
            match parts.next_line() {
                Ok(Some(line)) => {
                    assert_eq!(whole.next_line(), Ok(Some(line)));
                    check(line);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        if let Some(more) = more {
            parts.push(more);
        }
    }
});

fn check(line: &[u8]) {
    assert!(line.len() < MAX_LINE && !line.contains(&b'\n'));
    let path = match parse(line) {
        Ok(
            Command::Cwd(path)
            | Command::Retr(path)
            | Command::Stor(path)
            | Command::Appe(path)
            | Command::Size(path)
            | Command::Mdtm(path)
            | Command::Mkd(path)
            | Command::Rmd(path)
            | Command::Dele(path)
            | Command::Rnfr(path)
            | Command::Rnto(path)
            | Command::Mlst(Some(path))
            | Command::Mlsd(Some(path))
            | Command::List(Some(path))
            | Command::Nlst(Some(path)),
        ) => path,
        _ => return,
    };
    assert!(!path.is_empty() && !path.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')));
}
