use std::io::{PipeReader, Read as _, pipe};
use std::sync::Mutex;
use std::time::Instant;

use super::*;

/// Limit for what takes milliseconds on an idle machine.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    fn start(&self, out: impl Write + Send + 'static, notation: Option<Notation>) -> LogQueue {
        let heard = self.0.clone();
        let said = move |event: LogEvent<'_>| heard.lock().unwrap().push(format!("{event:?}"));
        LogQueue::start("test-log", out, notation, said).unwrap()
    }

    fn until(&self, word: &str) -> Vec<String> {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let heard = self.0.lock().unwrap().clone();
            if heard.iter().any(|said| said.contains(word)) {
                return heard;
            }
            assert!(Instant::now() < deadline, "{word} was not said: {heard:?}");
            std::thread::yield_now();
        }
    }
}

/// Lines until `last` has come.
fn read_until(reader: &mut PipeReader, last: &str) -> Vec<String> {
    let mut text = String::new();
    let mut chunk = [0; 4096];
    while !text.contains(last) {
        let n = reader.read(&mut chunk).unwrap();
        text.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
    }
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_stalled_reader_costs_lines_and_never_the_one_who_logs_and_writing_resumes() {
    let (mut reader, writer) = pipe().unwrap();
    let heard = Heard::default();
    let queue = heard.start(writer, Some(Notation::Text));
    // More than pipe and queue hold; a push that waits would never come back.
    for n in 0..3 * MAX_LINES {
        queue.push(format!("line {n} {}\n", "x".repeat(100)).into_bytes());
    }
    let dropped = queue.dropped();
    assert!(dropped > 0 && queue.shared.waiting_bytes.load(Ordering::Relaxed) <= MAX_BYTES);
    let at_once = heard.until("Dropping");
    assert_eq!(at_once.len(), 1, "said once: {at_once:?}");
    let kept = u64::try_from(3 * MAX_LINES).unwrap() - dropped;
    let all = read_until(&mut reader, &format!("line {} ", kept - 1));
    assert_eq!(all.len() as u64, kept, "the first ones, whole and in order");
    heard.until(&format!("Resumed({dropped})"));
    queue.push(b"after\n".to_vec());
    assert_eq!(read_until(&mut reader, "after"), ["after"]);
}

#[test]
fn bytes_are_bounded_as_well_as_lines() {
    let (_reader, writer) = pipe().unwrap();
    let queue = Heard::default().start(writer, None);
    for _ in 0..100 {
        queue.push(vec![b'x'; 64 * 1024]);
    }
    assert!(queue.dropped() >= 100 - 32 - 3, "{}", queue.dropped());
}

#[test]
fn a_failed_write_ends_nothing() {
    /// Fails until told otherwise.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<(bool, Vec<u8>)>>);
    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let mut state = self.0.lock().unwrap();
            if !state.0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            state.1.extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sink, heard) = (Sink::default(), Heard::default());
    let queue = heard.start(sink.clone(), None);
    queue.push(b"first\n".to_vec());
    assert_eq!(heard.until("Failed").len(), 1);
    queue.push(b"second\n".to_vec());
    sink.0.lock().unwrap().0 = true;
    queue.flush(WAIT_TIMEOUT);
    assert_eq!(sink.0.lock().unwrap().1, b"first\nsecond\n");
    assert_eq!(queue.dropped(), 0);
}

#[test]
fn a_record_is_one_line_whatever_it_contains() {
    let (mut reader, writer) = pipe().unwrap();
    let queue = Heard::default().start(writer, Some(Notation::Text));
    (&queue)
        .write_all("INFO name=a\nERROR forged\u{1b}[31m Grüße\n".as_bytes())
        .unwrap();
    assert_eq!(
        read_until(&mut reader, "Grüße\n"),
        ["INFO name=a\\nERROR forged\\u{1b}[31m Grüße"]
    );
}
