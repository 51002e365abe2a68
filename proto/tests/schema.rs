//! The schema against the other side: golden bytes of messages, worked out by hand, and the calls.
//!
//! A field in protobuf is a tag, `number << 3 | kind` with kind 0 for numbers and 2 for counted
//! bytes, and its value; numbers and tags are base 128, low sevens first.
#![cfg(feature = "grpc")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use traffic_proto::manager::*;

#[track_caller]
fn golden<M: Message + Default + PartialEq + std::fmt::Debug>(message: M, parts: &[&[u8]]) {
    let bytes = parts.concat();
    assert_eq!(message.encode_to_vec(), bytes, "{message:?}");
    assert_eq!(M::decode(&bytes[..]), Ok(message));
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn session() -> SessionInfo {
    SessionInfo {
        session_id: text("s"),
        cluster_id: text("c"),
        install_id: None,
    }
}

#[test]
fn a_session_keeps_an_empty_install_id_apart_from_an_absent_one() {
    // 1 << 3 | 2 = 0a, 2 << 3 | 2 = 12, 3 << 3 | 2 = 1a.
    golden(session(), &[b"\x0a\x01s", b"\x12\x01c"]);
    golden(
        SessionInfo {
            install_id: Some(String::new()),
            ..session()
        },
        &[b"\x0a\x01s", b"\x12\x01c", b"\x1a\x00"],
    );
}

#[test]
fn an_agent_introduces_itself() {
    let mechanism = agent_info::Mechanism {
        name: text("tcp"),
        product: text("t"),
        version: text("v"),
    };
    let container = agent_info::ContainerInfo {
        environment: BTreeMap::from([(text("K"), text("V"))]),
        mount_point: text("/m"),
        mounts: BTreeMap::from([(text("/d"), 1)]),
    };
    let agent = AgentInfo {
        name: text("n"),
        pod_ip: text("1.2.3.4"),
        product: text("p"),
        version: text("v"),
        mechanisms: vec![mechanism],
        namespace: text("ns"),
        pod_name: text("pod"),
        // 300 = 0b10_0101100: ac 02.
        api_port: 300,
        sftp_port: 1,
        ftp_port: 2,
        containers: BTreeMap::from([(text("c"), container)]),
        kind: workload_info::Kind::Statefulset.into(),
        pod_uid: text("u"),
        ..Default::default()
    };
    golden(
        agent,
        &[
            b"\x0a\x01n",
            b"\x12\x071.2.3.4",
            b"\x1a\x01p",
            b"\x22\x01v",
            // Mechanism: name 1, product 2, version 3; 5 + 3 + 3 bytes.
            b"\x2a\x0b\x0a\x03tcp\x12\x01t\x1a\x01v",
            b"\x3a\x02ns",
            b"\x42\x03pod",
            b"\x48\xac\x02",
            b"\x50\x01",
            b"\x58\x02",
            // A map entry is key 1 and value 2. Container: environment 1 (8 bytes with its entry),
            // mount_point 4 (4 bytes), mounts 13 (8 bytes): 20 = 14; the entry: 3 + 2 + 20 = 25 =
            // 19.
            b"\x62\x19\x0a\x01c\x12\x14",
            b"\x0a\x06\x0a\x01K\x12\x01V",
            b"\x22\x02/m",
            b"\x6a\x06\x0a\x02/d\x10\x01",
            b"\x68\x03",
            b"\x72\x01u",
        ],
    );
}

#[test]
fn an_intercept_arrives_with_its_filters() {
    let spec = InterceptSpec {
        name: text("i"),
        mechanism: text("http"),
        target_host: text("h"),
        target_port: 80,
        port_identifier: text("p"),
        roundtrip_latency: 1,
        dial_timeout: 2,
        protocol: text("TCP"),
        replace: true,
        container_port: 8,
        wiretap: true,
        header_filters: BTreeMap::from([(text("a"), text("b"))]),
        path_filters: vec![text("/x")],
        plaintext: true,
        service_ips: vec![Bytes::from_static(&[10, 0, 0, 1])],
        ..Default::default()
    };
    // Tags from 16 on take two bytes: 16 << 3 = 128 is 80 01, 17: 88 01, 21 with 2: aa 01, 22: b0
    // 01, 23: b8 01, 26: d0 01, 27 with 2: da 01, 28 with 2: e2 01, 30: f0 01, 31 with 2: fa 01.
    let fields: &[&[u8]] = &[
        b"\x0a\x01i",
        b"\x22\x04http",
        b"\x32\x01h",
        b"\x38\x50",
        b"\x52\x01p",
        b"\x80\x01\x01",
        b"\x88\x01\x02",
        b"\xaa\x01\x03TCP",
        b"\xb0\x01\x01",
        b"\xb8\x01\x08",
        b"\xd0\x01\x01",
        b"\xda\x01\x06\x0a\x01a\x12\x01b",
        b"\xe2\x01\x02/x",
        b"\xf0\x01\x01",
        b"\xfa\x01\x04\x0a\x00\x00\x01",
    ];
    golden(spec.clone(), fields);
    let info = InterceptInfo {
        spec: Some(spec),
        disposition: InterceptDispositionType::AgentError.into(),
        id: text("s:i"),
        client_session: Some(session()),
        modified_at: Some(prost_types::Timestamp {
            seconds: 1,
            nanos: 0,
        }),
        ..Default::default()
    };
    let spec = fields.concat();
    golden(
        info,
        &[
            &[0x0a, u8::try_from(spec.len()).unwrap()],
            &spec,
            b"\x18\x07",
            b"\x2a\x03s:i",
            b"\x32\x06\x0a\x01s\x12\x01c",
            b"\xaa\x01\x02\x08\x01",
        ],
    );
}

#[test]
fn a_review_and_a_heartbeat_go_out() {
    let review = ReviewInterceptRequest {
        session: Some(session()),
        id: text("i"),
        disposition: InterceptDispositionType::Active.into(),
        message: text("m"),
        pod_ip: text("p"),
        sftp_port: 1,
        mechanism_args_desc: text("d"),
        mount_point: text("/m"),
        environment: BTreeMap::from([(text("K"), text("V"))]),
        ftp_port: 2,
        mounts: BTreeMap::from([(text("/d"), 2)]),
        ..Default::default()
    };
    golden(
        review,
        &[
            b"\x0a\x06\x0a\x01s\x12\x01c",
            b"\x12\x01i",
            b"\x18\x01",
            b"\x22\x01m",
            b"\x2a\x01p",
            b"\x30\x01",
            b"\x3a\x01d",
            b"\x52\x02/m",
            b"\x5a\x06\x0a\x01K\x12\x01V",
            b"\x60\x02",
            b"\x6a\x06\x0a\x02/d\x10\x02",
        ],
    );
    let remain = RemainRequest {
        session: Some(session()),
        last_activity: Some(prost_types::Timestamp {
            seconds: 5,
            nanos: 0,
        }),
        ..Default::default()
    };
    golden(
        remain,
        &[b"\x0a\x06\x0a\x01s\x12\x01c", b"\x1a\x02\x08\x05"],
    );
}

#[test]
fn tunnels_are_asked_for_and_carried() {
    let request = DialRequest {
        conn_id: Bytes::from_static(b"\x01\x02"),
        roundtrip_latency: 3,
        dial_timeout: 4,
        ..Default::default()
    };
    golden(request, &[b"\x0a\x02\x01\x02", b"\x10\x03", b"\x18\x04"]);
    golden(
        TunnelMessage {
            payload: Bytes::from_static(b"\x00hi"),
        },
        &[b"\x0a\x03\x00hi"],
    );
    golden(
        TunnelMetrics {
            client_session_id: text("s"),
            ingress_bytes: 1,
            egress_bytes: 2,
            ..TunnelMetrics::default()
        },
        &[b"\x0a\x01s", b"\x10\x01", b"\x18\x02"],
    );
}

#[test]
fn an_answer_with_nothing_in_it_is_an_empty_snapshot_of_agents() {
    assert_eq!(
        AgentInfoSnapshot::decode(&b""[..]),
        Ok(AgentInfoSnapshot::default())
    );
}

#[test]
fn fields_of_later_versions_are_skipped() {
    // Field 99 as a number, field 100 as bytes: 99 << 3 = 792 = 98 06, 100 << 3 | 2 = 802 = a2 06.
    let bytes = b"\x98\x06\x01\x0a\x01s\xa2\x06\x01x\x12\x01c";
    assert_eq!(SessionInfo::decode(&bytes[..]), Ok(session()));
}

/// All calls as `Service/Method request -> response`, a star before streamed ones.
const CALLS: &str = "
telepresence.agent.Agent/Lookup LookupRequest -> LookupResponse
telepresence.agent.Agent/Tunnel *TunnelMessage -> *TunnelMessage
telepresence.agent.Agent/Version Empty -> VersionInfo2
telepresence.agent.Agent/WatchDial SessionInfo -> *DialRequest
telepresence.common.Tracing/DumpTraces Empty -> Trace
telepresence.manager.Manager/AgentLookupDNSResponse DNSAgentResponse -> Empty
telepresence.manager.Manager/ArriveAsAgent AgentInfo -> SessionInfo
telepresence.manager.Manager/ArriveAsClient ClientInfo -> SessionInfo
telepresence.manager.Manager/CanConnectAmbassadorCloud Empty -> AmbassadorCloudConnection
telepresence.manager.Manager/CreateIntercept CreateInterceptRequest -> InterceptInfo
telepresence.manager.Manager/Depart SessionInfo -> Empty
telepresence.manager.Manager/EnsureAgent EnsureAgentRequest -> AgentInfoSnapshot
telepresence.manager.Manager/GetAgentImageFQN Empty -> AgentImageFQN
telepresence.manager.Manager/GetClientConfig Empty -> CLIConfig
telepresence.manager.Manager/GetCloudConfig Empty -> AmbassadorCloudConfig
telepresence.manager.Manager/GetIntercept GetInterceptRequest -> InterceptInfo
telepresence.manager.Manager/GetKnownWorkloadKinds SessionInfo -> KnownWorkloadKinds
telepresence.manager.Manager/GetLicense Empty -> License
telepresence.manager.Manager/GetLogs GetLogsRequest -> LogsResponse
telepresence.manager.Manager/GetTelepresenceAPI Empty -> TelepresenceAPIInfo
telepresence.manager.Manager/Lookup LookupRequest -> LookupResponse
telepresence.manager.Manager/LookupDNS DNSRequest -> DNSResponse
telepresence.manager.Manager/PrepareIntercept CreateInterceptRequest -> PreparedIntercept
telepresence.manager.Manager/ReconnectAgent ReconnectAgentRequest -> Empty
telepresence.manager.Manager/ReconnectClient ReconnectClientRequest -> Empty
telepresence.manager.Manager/Remain RemainRequest -> Empty
telepresence.manager.Manager/RemoveIntercept RemoveInterceptRequest2 -> Empty
telepresence.manager.Manager/ReportMetrics TunnelMetrics -> Empty
telepresence.manager.Manager/ReviewIntercept ReviewInterceptRequest -> Empty
telepresence.manager.Manager/SetLogLevel LogLevelRequest -> Empty
telepresence.manager.Manager/Tunnel *TunnelMessage -> *TunnelMessage
telepresence.manager.Manager/UninstallAgents UninstallAgentsRequest -> Empty
telepresence.manager.Manager/UpdateIntercept UpdateInterceptRequest -> InterceptInfo
telepresence.manager.Manager/Version Empty -> VersionInfo2
telepresence.manager.Manager/WatchAgentPods SessionInfo -> *AgentPodInfoSnapshot
telepresence.manager.Manager/WatchAgentPodsDelta SessionInfo -> *AgentPodInfoDelta
telepresence.manager.Manager/WatchAgents SessionInfo -> *AgentInfoSnapshot
telepresence.manager.Manager/WatchAgentsDelta SessionInfo -> *AgentInfoDelta
telepresence.manager.Manager/WatchAgentsNS AgentsRequest -> *AgentInfoSnapshot
telepresence.manager.Manager/WatchClusterInfo SessionInfo -> *ClusterInfo
telepresence.manager.Manager/WatchDial SessionInfo -> *DialRequest
telepresence.manager.Manager/WatchIntercepts SessionInfo -> *InterceptInfoSnapshot
telepresence.manager.Manager/WatchInterceptsDelta SessionInfo -> *InterceptInfoDelta
telepresence.manager.Manager/WatchLogLevel Empty -> *LogLevelRequest
telepresence.manager.Manager/WatchLookupDNS SessionInfo -> *DNSRequest
telepresence.manager.Manager/WatchWorkloads WorkloadEventsRequest -> *WorkloadEventsDelta
";

#[test]
fn the_calls_are_those_the_other_side_makes() {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let schema =
        protox::compile(["agent.proto", "common.proto"], [protos]).expect("the schema compiles");
    let mut calls = BTreeSet::new();
    for file in &schema.file {
        for service in &file.service {
            for method in &service.method {
                let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
                let star = |streamed| if streamed { "*" } else { "" };
                calls.insert(format!(
                    "{}.{}/{} {}{} -> {}{}",
                    file.package(),
                    service.name(),
                    method.name(),
                    star(method.client_streaming()),
                    last(method.input_type()),
                    star(method.server_streaming()),
                    last(method.output_type()),
                ));
            }
        }
    }
    let expected: BTreeSet<_> = CALLS.trim().lines().map(str::to_owned).collect();
    assert_eq!(calls, expected);
}
