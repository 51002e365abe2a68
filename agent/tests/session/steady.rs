//! A caller of the app that goes on at 200 requests a second beside whatever happens to the agent.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use harness::pace::{Calls, Pace};

use crate::WAIT_TIMEOUT;
use crate::pod::Pod;

/// How much more memory the agent may have.
const MAX_GROWTH_KIB: u64 = 16 << 10;

/// Connections that the caller makes.
#[derive(Clone, Copy, Debug)]
pub enum Caller {
    /// A new one for each request.
    New,
    /// One that is kept.
    Kept,
}

/// The caller; each of its requests has to be answered by the app.
pub struct Steady(Pace);

/// The agent before anything happens to it.
pub struct Control {
    calls: Calls,
    caller: Caller,
}

impl Control {
    /// Runs a caller alone.
    pub async fn of(pod: &Pod) -> Self {
        Self::by(Caller::New, pod).await
    }

    /// The same with another caller.
    pub async fn by(caller: Caller, pod: &Pod) -> Self {
        let calls = Steady::calling(caller, pod).end().await;
        Self { calls, caller }
    }

    /// Starts the same caller beside what comes.
    pub fn beside(&self, pod: &Pod) -> Steady {
        Steady::calling(self.caller, pod)
    }
}

impl Steady {
    fn calling(caller: Caller, pod: &Pod) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], pod.agent_port));
        let mut kept = None;
        Self(Pace::start(pod.pid(), move || {
            let mut socket = match kept.take() {
                Some(socket) => socket,
                None => connect(address)?,
            };
            ask(&mut socket)?;
            kept = matches!(caller, Caller::Kept).then_some(socket);
            Ok(())
        }))
    }

    async fn end(self) -> Calls {
        tokio::task::spawn_blocking(|| self.0.end()).await.unwrap()
    }

    /// Ends it and compares with the control run: nobody has noticed anything.
    pub async fn unharmed(self, control: &Control) {
        self.unharmed_within(control, MAX_GROWTH_KIB).await;
    }

    /// The same with another bound of the memory.
    pub async fn unharmed_within(self, control: &Control, most_kib: u64) {
        let calls = self.end().await;
        calls.assert_unharmed(&control.calls, most_kib);
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let socket = TcpStream::connect_timeout(&address, WAIT_TIMEOUT).map_err(text)?;
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).map_err(text)?;
    Ok(socket)
}

fn ask(socket: &mut TcpStream) -> Result<(), String> {
    socket
        .write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
        .map_err(text)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\napp") {
        let mut chunk = [0; 256];
        match socket.read(&mut chunk).map_err(text)? {
            0 => return Err("an end amid an answer".to_owned()),
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(())
}

fn text(error: std::io::Error) -> String {
    error.to_string()
}
