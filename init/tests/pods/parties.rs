//! Parties in and around a pod: an app, an agent that carries its callers to the app, a mesh's
//! proxy, and callers. Each says in its answer who it is, so that an answer tells the way a
//! connection went.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use agent_init::rule::Transport;
use socket2::{Domain, SockRef, Socket, Type};

use crate::space::{As, Net, Space};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Limit of visits in one answer; more mean that a connection went in circles.
const MAX_VISITS: usize = 10;

/// Listener for as long as the test runs.
pub(crate) struct Party<'a> {
    pub(crate) space: &'a Space,
    pub(crate) who: As,
}

impl Party<'_> {
    /// Answers every TCP connection and every datagram to `port` at `addresses` with `name`,
    /// followed by what `ask` says the next one said. `ask` runs as this party too, and is told
    /// where the caller was going.
    pub(crate) fn serve(
        &self,
        transport: Transport,
        addresses: &[IpAddr],
        port: u16,
        name: &str,
        ask: impl Fn(SocketAddr) -> String + Send + Clone + 'static,
    ) {
        for address in addresses {
            let (at, name, ask) = (
                SocketAddr::new(*address, port),
                name.to_owned(),
                ask.clone(),
            );
            // Bound before this returns, so that whoever calls next is heard.
            self.space.run(self.who, move || match transport {
                Transport::Tcp => serve_tcp(TcpListener::bind(at).unwrap(), name, ask),
                Transport::Udp => serve_udp(UdpSocket::bind(at).unwrap(), name, ask),
            });
        }
    }
}

fn serve_tcp(
    listener: TcpListener,
    name: String,
    ask: impl Fn(SocketAddr) -> String + Send + Clone + 'static,
) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (name, ask) = (name.clone(), ask.clone());
            std::thread::spawn(move || {
                let Ok(mut stream) = stream else { return };
                let socket = SockRef::from(&stream);
                let redirected = socket
                    .original_dst_v4()
                    .or_else(|_| socket.original_dst_v6());
                let at = redirected
                    .ok()
                    .and_then(|it| it.as_socket())
                    .unwrap_or(stream.local_addr().unwrap());
                let _ = stream.write_all(format!("{name}{}", ask(at)).as_bytes());
            });
        }
    });
}

fn serve_udp(
    socket: UdpSocket,
    name: String,
    ask: impl Fn(SocketAddr) -> String + Send + Clone + 'static,
) {
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, caller)) = socket.recv_from(&mut buffer) {
            let (name, ask, socket) = (name.clone(), ask.clone(), socket.try_clone().unwrap());
            std::thread::spawn(move || {
                let at = socket.local_addr().unwrap();
                let _ = socket.send_to(format!("{name}{}", ask(at)).as_bytes(), caller);
            });
        }
    });
}

/// Last party of the way: asks no other.
pub(crate) fn end_of_the_way(_: SocketAddr) -> String {
    String::new()
}

/// Answer of `to`, or the reason why there is none; to be called inside a namespace.
pub(crate) fn answer(transport: Transport, to: SocketAddr) -> String {
    let answer = match transport {
        Transport::Tcp => tcp_answer(None, to),
        Transport::Udp => udp_answer(to),
    };
    or_why_not(answer)
}

/// Answer of `to` over TCP to a connection from `source`.
pub(crate) fn answer_to(source: Option<IpAddr>, to: SocketAddr) -> String {
    or_why_not(tcp_answer(source, to))
}

fn or_why_not(answer: std::io::Result<String>) -> String {
    answer.unwrap_or_else(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        kind => format!("{kind:?}"),
    })
}

fn tcp_answer(source: Option<IpAddr>, to: SocketAddr) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&to.into(), ANSWER_TIMEOUT)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn udp_answer(to: SocketAddr) -> std::io::Result<String> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
        .parse()
        .unwrap();
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.send(b"who is there?")?;
    let mut buffer = [0; 2048];
    let got = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..got]).into_owned())
}

/// Answer that a process in `space` gets from `address` and `port`.
pub(crate) fn asked(
    space: &Space,
    who: As,
    transport: Transport,
    address: &str,
    port: u16,
) -> String {
    let to = SocketAddr::new(address.parse().unwrap(), port);
    space.run(who, || answer(transport, to))
}

/// Addresses that a process in the pod can listen at.
pub(crate) fn pod_addresses(net: &Net) -> Vec<IpAddr> {
    let texts = net.families.pod().into_iter().chain(["127.0.0.1", "::1"]);
    texts.map(|it| it.parse().unwrap()).collect()
}

/// Starts an app at `port` of the pod.
pub(crate) fn app(net: &Net, who: As, transport: Transport, port: u16) {
    let addresses = pod_addresses(net);
    Party {
        space: &net.pod,
        who,
    }
    .serve(
        transport,
        &addresses,
        port,
        &format!("app{port}"),
        end_of_the_way,
    );
}

/// Starts an agent at `port` of the pod, which carries on to the app by way of its proxy port.
pub(crate) fn agent(net: &Net, who: As, transport: Transport, port: u16, proxy_port: u16) {
    let pod: Vec<IpAddr> = net
        .families
        .pod()
        .iter()
        .map(|it| it.parse().unwrap())
        .collect();
    let carry_on = move |at: SocketAddr| {
        let to = pod
            .iter()
            .find(|it| it.is_ipv4() == at.is_ipv4())
            .unwrap_or(&pod[0]);
        let answer = answer(transport, SocketAddr::new(*to, proxy_port));
        if answer.matches("agent").count() > MAX_VISITS {
            "going in circles".to_owned()
        } else {
            answer
        }
    };
    let addresses = pod_addresses(net);
    Party {
        space: &net.pod,
        who,
    }
    .serve(
        transport,
        &addresses,
        port,
        &format!("agent{port}>"),
        carry_on,
    );
}

/// Listener outside the pod.
pub(crate) fn outsider(net: &Net, transport: Transport, port: u16) {
    let addresses: Vec<IpAddr> = net
        .families
        .outside()
        .iter()
        .map(|it| it.parse().unwrap())
        .collect();
    let who = As { uid: 0, gid: 0 };
    Party {
        space: &net.outside,
        who,
    }
    .serve(transport, &addresses, port, "outside", end_of_the_way);
}
