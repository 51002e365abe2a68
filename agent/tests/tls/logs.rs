//! Collects the logs of this process at trace level, for tests of their content.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use tracing::Level;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts collecting, once for all tests of the process.
fn sink() -> &'static Sink {
    static SINK: OnceLock<Sink> = OnceLock::new();
    SINK.get_or_init(|| {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_ansi(false);
        tracing::subscriber::set_global_default(
            subscriber.with_writer(move || writer.clone()).finish(),
        )
        .unwrap();
        sink
    })
}

/// Makes sure that lines are collected from here on.
pub fn collect() {
    sink();
}

/// Returns all lines so far.
pub fn text() -> String {
    String::from_utf8_lossy(&sink().0.lock().unwrap()).into_owned()
}

/// The lines that hold all of `parts`.
pub fn lines(parts: &[&str]) -> Vec<String> {
    text()
        .lines()
        .filter(|line| parts.iter().all(|part| line.contains(part)))
        .map(str::to_owned)
        .collect()
}
