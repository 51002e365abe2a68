//! Messages that are valid, nearly valid, or nothing at all.

use bytes::{BufMut as _, Bytes, BytesMut};
use harness::random::Random;
use harness::system::{NAMESPACE, WORKLOAD};
use prost::Message as _;
use traffic_proto::conn_id::ConnId;
use traffic_proto::manager::{
    AgentInfo, AgentInfoSnapshot, ClientInfo, CreateInterceptRequest, DialRequest, DnsRequest,
    InterceptInfo, InterceptInfoDelta, InterceptInfoSnapshot, InterceptSpec, LogLevelRequest,
    LookupRequest, RemainRequest, ReviewInterceptRequest, SessionInfo, TunnelMessage, VersionInfo2,
};
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, StreamInfo};

/// Session id that hostile peers use, and that a hostile manager hands out.
pub(crate) const SESSION: &str = "6bd13328-4030-44c5-b2c4-059c230c26d9";
/// A workload that does not exist: nothing of the real one's is to be intercepted by chance.
const NOBODY: &str = "nobody";

/// Returns a body of up to a few messages with their frames.
pub(crate) fn body(random: &mut Random, valid: &dyn Fn(&mut Random) -> Vec<u8>) -> Bytes {
    let mut body = BytesMut::new();
    for _ in 0..random.below(4) {
        let message = message(random, valid);
        frame(&mut body, &message, random);
    }
    body.freeze()
}

/// Returns a message: valid, changed, cut, or random.
pub(crate) fn message(random: &mut Random, valid: &dyn Fn(&mut Random) -> Vec<u8>) -> Vec<u8> {
    let mut message = valid(random);
    match random.below(6) {
        0 => return random.bytes(300),
        1 => message.truncate(random.below(message.len() + 1)),
        2 => message.extend(random.bytes(40)),
        3 | 4 if !message.is_empty() => {
            for _ in 0..=random.below(4) {
                let at = random.below(message.len());
                message[at] = random.byte();
            }
        }
        _ => {}
    }
    message
}

/// Puts a gRPC frame around a message; now and then one whose flag or length is wrong.
pub(crate) fn frame(body: &mut BytesMut, message: &[u8], random: &mut Random) {
    let flag = if random.once_in(12) { random.byte() } else { 0 };
    let length = u32::try_from(message.len()).unwrap();
    let length = match random.below(16) {
        0 => u32::MAX,
        1 => length.saturating_add(5),
        2 => length.saturating_sub(1),
        _ => length,
    };
    body.put_u8(flag);
    body.put_u32(length);
    body.put_slice(message);
}

fn session() -> Option<SessionInfo> {
    Some(SessionInfo {
        session_id: SESSION.to_owned(),
        ..SessionInfo::default()
    })
}

/// Returns a text that somebody did not expect.
fn text(random: &mut Random) -> String {
    match random.below(6) {
        0 => String::new(),
        1 => "x".repeat(random.below(20_000)),
        2 => String::from_utf8_lossy(&random.bytes(60)).into_owned(),
        3 => "a\r\nb\u{1b}[31m\u{202e}".to_owned(),
        4 => "(((((((((((x{1000}){1000})*)*".to_owned(),
        _ => "::1".to_owned(),
    }
}

/// Returns a number from the borders of what its type holds.
fn number(random: &mut Random) -> i32 {
    *random.of(&[0, 1, -1, 80, 8080, 65_535, 65_536, i32::MAX, i32::MIN])
}

/// Returns a request that some method takes, of a party with [`SESSION`].
pub(crate) fn request(random: &mut Random) -> Vec<u8> {
    match random.below(10) {
        0 => session().unwrap().encode_to_vec(),
        1 => client(random).encode_to_vec(),
        2 => agent(random).encode_to_vec(),
        3 => CreateInterceptRequest {
            session: session(),
            intercept_spec: Some(spec(random, NOBODY)),
            ..CreateInterceptRequest::default()
        }
        .encode_to_vec(),
        4 => ReviewInterceptRequest {
            session: session(),
            id: text(random),
            disposition: number(random),
            message: text(random),
            ..ReviewInterceptRequest::default()
        }
        .encode_to_vec(),
        5 => RemainRequest {
            session: session(),
            ..RemainRequest::default()
        }
        .encode_to_vec(),
        6 => LookupRequest {
            session: session(),
            name: text(random),
        }
        .encode_to_vec(),
        7 => LogLevelRequest {
            log_level: text(random),
            ..LogLevelRequest::default()
        }
        .encode_to_vec(),
        _ => tunnel(random),
    }
}

/// Returns a message of a tunnel.
pub(crate) fn tunnel(random: &mut Random) -> Vec<u8> {
    let any = "127.0.0.1:9".parse().unwrap();
    let id = ConnId::new(*random.of(&[Transport::Tcp, Transport::Udp]), any, any);
    let second = std::time::Duration::from_secs(1);
    let payload = match random.below(6) {
        0 => Message::StreamInfo(StreamInfo::new(id, SESSION, second, second)).encode(),
        1 => Message::StreamOk(2).encode(),
        2 => Message::DialOk.encode(),
        3 => Message::Normal(random.bytes(2000).into()).encode(),
        4 => Message::KeepAlive.encode(),
        _ => random.bytes(30).into(),
    };
    TunnelMessage { payload }.encode_to_vec()
}

/// Returns an answer that an agent or client may expect of this method of a manager's.
pub(crate) fn answer(random: &mut Random, method: &str) -> Vec<u8> {
    match method {
        "Version" => VersionInfo2 {
            name: "OSS Traffic Manager".to_owned(),
            version: "v2.27.5".to_owned(),
        }
        .encode_to_vec(),
        "ArriveAsAgent" | "ArriveAsClient" => session().unwrap().encode_to_vec(),
        "WatchIntercepts" => InterceptInfoSnapshot {
            intercepts: (0..random.below(5)).map(|_| intercept(random)).collect(),
        }
        .encode_to_vec(),
        "WatchInterceptsDelta" => {
            let shown = (0..random.below(5)).map(|_| intercept(random));
            InterceptInfoDelta {
                upserts: shown.map(|info| (info.id.clone(), info)).collect(),
                removals: vec![text(random)],
            }
            .encode_to_vec()
        }
        "WatchAgents" | "WatchAgentsNS" | "EnsureAgent" => AgentInfoSnapshot {
            agents: (0..random.below(5)).map(|_| agent(random)).collect(),
        }
        .encode_to_vec(),
        "WatchDial" => DialRequest {
            conn_id: random.bytes(40).into(),
            roundtrip_latency: random.number().cast_signed(),
            dial_timeout: random.number().cast_signed(),
            ..DialRequest::default()
        }
        .encode_to_vec(),
        "WatchLookupDNS" => DnsRequest {
            session: session(),
            name: text(random),
            r#type: number(random).unsigned_abs(),
        }
        .encode_to_vec(),
        "Tunnel" => tunnel(random),
        "CreateIntercept" => intercept(random).encode_to_vec(),
        _ => request(random),
    }
}

fn client(random: &mut Random) -> ClientInfo {
    ClientInfo {
        name: text(random),
        install_id: text(random),
        product: "telepresence".to_owned(),
        version: "v2.27.5".to_owned(),
        namespace: NAMESPACE.to_owned(),
        ..ClientInfo::default()
    }
}

fn agent(random: &mut Random) -> AgentInfo {
    AgentInfo {
        name: NOBODY.to_owned(),
        namespace: NAMESPACE.to_owned(),
        pod_name: text(random),
        pod_ip: random.of(&["127.0.0.1", "::1", "x", ""]).to_string(),
        api_port: number(random),
        product: "telepresence".to_owned(),
        version: text(random),
        pod_uid: text(random),
        environment: [(text(random), text(random))].into(),
        ..AgentInfo::default()
    }
}

/// Returns an intercept that takes what no caller sends.
fn intercept(random: &mut Random) -> InterceptInfo {
    let name = text(random);
    InterceptInfo {
        id: format!("{SESSION}:{name}"),
        spec: Some(spec(random, WORKLOAD)),
        disposition: number(random).rem_euclid(11),
        client_session: session(),
        message: text(random),
        pod_ip: text(random),
        api_port: number(random),
        environment: [(text(random), text(random))].into(),
        ..InterceptInfo::default()
    }
}

fn spec(random: &mut Random, workload: &str) -> InterceptSpec {
    let header = format!("x-hostile-{}", random.below(3));
    InterceptSpec {
        name: text(random),
        client: text(random),
        agent: workload.to_owned(),
        namespace: NAMESPACE.to_owned(),
        mechanism: "http".to_owned(),
        target_host: text(random),
        target_port: number(random),
        port_identifier: number(random).to_string(),
        container_port: number(random),
        roundtrip_latency: random.number().cast_signed(),
        dial_timeout: random.number().cast_signed(),
        header_filters: [(header, text(random))].into(),
        path_filters: vec![text(random)],
        metadata: [(text(random), text(random))].into(),
        wiretap: random.once_in(3),
        ..InterceptSpec::default()
    }
}
