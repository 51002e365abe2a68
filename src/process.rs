//! A program as a child process: its output is kept and can be waited for, and it ends with its
//! owner.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{WAIT_TIMEOUT, until};
use traffic_proto::sync::lock;

/// A running program. Dropping it kills it, and prints its output if the test is failing.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Process {
    /// Starts a program; `name` is for messages.
    pub fn start(name: &str, command: &mut Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}: {command:?}"));
        let output = Arc::new(Output::default());
        collect(child.stdout.take().unwrap(), output.clone());
        collect(child.stderr.take().unwrap(), output.clone());
        Self {
            name: name.to_owned(),
            child: Mutex::new(child),
            output,
        }
    }

    /// Waits for a line of output that contains `text`, and returns it; earlier lines count.
    pub fn line(&self, text: &str) -> String {
        self.nth_line(text, 1)
    }

    /// Waits for the `n`th line (from 1) that contains `text`.
    pub fn nth_line(&self, text: &str, n: usize) -> String {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let mut lines = self.output.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().filter(|line| line.contains(text)).nth(n - 1) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let said = lines.join("\n  ");
                drop(lines);
                panic!(
                    "{} did not say {text:?} {n} times in {WAIT_TIMEOUT:?}; it said:\n  {said}",
                    self.name
                );
            }
            lines = self.output.grown.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Returns all lines so far that contain `text`.
    pub fn lines(&self, text: &str) -> Vec<String> {
        self.output
            .lines
            .lock()
            .unwrap()
            .iter()
            .filter(|line| line.contains(text))
            .cloned()
            .collect()
    }

    /// Returns the process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// Sends a signal. One that stops has stopped every thread on return: on a busy machine they
    /// go on for a while.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        let _ = kill_process(pid, signal);
        if signal == Signal::STOP {
            until("the process to stop", || self.is_stopped().then_some(()));
        }
    }

    /// Returns true if no thread runs; one that has ended runs no more.
    fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // Its name, which may hold anything, is in parentheses before the state.
            let state = stat.rsplit(')').next().unwrap_or_default();
            !state.starts_with(" R") && !state.starts_with(" S") && !state.starts_with(" D")
        })
    }

    /// Returns true if it has not ended.
    pub fn is_running(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_none()
    }

    /// Returns its exit status, if it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Waits for its exit.
    pub fn exit(&self) -> ExitStatus {
        until(&format!("{} to end", self.name), || self.ended())
    }

    /// Sends SIGTERM and waits for its exit.
    pub fn terminate(&self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exit()
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let lines = lock(&self.output.lines);
            let from = lines.len().saturating_sub(60);
            eprintln!("--- {} said:\n{}", self.name, lines[from..].join("\n"));
        }
    }
}

fn collect(from: impl Read + Send + 'static, into: Arc<Output>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            into.lines.lock().unwrap().push(text);
            into.grown.notify_all();
            line.clear();
        }
    });
}
