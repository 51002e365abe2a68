use super::*;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{MX, SRV};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use tokio::net::UdpSocket;

/// A name server on loopback with a few names; records its queries.
struct Server {
    dns: SystemDns,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn server(records: &[(&str, RData)]) -> Server {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut zone: HashMap<String, Vec<RData>> = HashMap::new();
    for (name, data) in records {
        zone.entry((*name).to_owned())
            .or_default()
            .push(data.clone());
    }
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut packet = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut packet).await {
            let question = Message::from_vec(&packet[..n]).unwrap();
            let query = question.queries[0].clone();
            let name = query.name().to_ascii().to_ascii_lowercase();
            log.lock()
                .unwrap()
                .push(format!("{name} {}", query.query_type()));
            let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
            match zone.get(&name) {
                Some(_) if name.starts_with("broken") => {
                    answer.metadata.response_code = ResponseCode::ServFail
                }
                Some(found) => {
                    for data in found
                        .iter()
                        .filter(|d| d.record_type() == query.query_type())
                    {
                        answer.add_answer(Record::from_rdata(
                            query.name().clone(),
                            300,
                            data.clone(),
                        ));
                    }
                }
                None => answer.metadata.response_code = ResponseCode::NXDomain,
            }
            answer.queries.push(query);
            socket
                .send_to(&answer.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    let times = LookupTimes {
        question: Duration::from_secs(5),
        name: Duration::from_secs(20),
    };
    let dns = at(port, times);
    Server { dns, asked }
}

/// A pod's resolver that asks a port of loopback.
fn at(port: u16, times: LookupTimes) -> SystemDns {
    let mut udp = ConnectionConfig::udp();
    udp.port = port;
    let names = NameServerConfig::new([127, 0, 0, 1].into(), true, vec![udp]);
    let search =
        ["shop.svc.cluster.local.", "svc.cluster.local."].map(|n| Name::from_ascii(n).unwrap());
    let config = ResolverConfig::from_parts(None, search.to_vec(), vec![names]);
    let mut options = ResolverOpts::default();
    options.ndots = 5;
    let servers = NameServers::new(&config, options, times.question).unwrap();
    let servers = OnceCell::new_with(Some(servers));
    SystemDns { times, servers }
}

fn a(ip: [u8; 4]) -> RData {
    RData::from(IpAddr::from(ip))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn number(record_type: RecordType) -> u32 {
    u32::from(u16::from(record_type))
}

fn decoded(answer: &DnsAnswer) -> Vec<Record> {
    use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
    let mut decoder = BinDecoder::new(&answer.rrs);
    let mut records = Vec::new();
    while !decoder.is_empty() {
        records.push(Record::read(&mut decoder).unwrap());
    }
    records
}

#[tokio::test]
async fn an_address_comes_back_as_an_uncompressed_record_of_the_name_asked_for() {
    let server = server(&[("web.shop.svc.cluster.local.", a([10, 1, 2, 3]))]).await;
    let answer = server
        .dns
        .answer("web.", number(RecordType::A))
        .await
        .unwrap();
    let wire = b"\x03web\x00\x00\x01\x00\x01\x00\x00\x00\x04\x00\x04\x0a\x01\x02\x03";
    assert_eq!(
        answer,
        DnsAnswer {
            r_code: 0,
            rrs: wire.to_vec()
        }
    );
    let other_family = server
        .dns
        .answer("web.", number(RecordType::AAAA))
        .await
        .unwrap();
    assert_eq!(
        other_family,
        DnsAnswer {
            r_code: 0,
            rrs: Vec::new()
        },
        "it exists, in the other family"
    );
}

#[tokio::test]
async fn the_number_of_dots_decides_about_the_search_path() {
    let server = server(&[
        ("web.shop.svc.cluster.local.", a([10, 0, 0, 1])),
        ("web.other.svc.cluster.local.", a([10, 0, 0, 2])),
        ("example.com.", a([10, 0, 0, 3])),
        ("a.b.c.d.e.", a([10, 0, 0, 4])),
    ])
    .await;
    for (asked, ip) in [
        ("web.", 1),
        ("web.other.", 2),
        ("example.com.", 3),
        ("a.b.c.d.e.", 4),
    ] {
        let answer = server
            .dns
            .answer(asked, number(RecordType::A))
            .await
            .unwrap();
        assert_eq!(decoded(&answer)[0].data, a([10, 0, 0, ip]), "{asked}");
    }
    let asked = server.asked.lock().unwrap();
    assert!(
        asked.iter().all(|q| !q.starts_with("a.b.c.d.e.shop")),
        "a complete name is asked as it is: {asked:?}"
    );
}

#[tokio::test]
async fn what_does_not_exist_is_said_and_what_went_wrong_is_not() {
    let server = server(&[("broken.x.y.z.a.", a([10, 0, 0, 1]))]).await;
    let of = async |name, record_type| server.dns.answer(name, record_type).await;
    let missing = of("nope.a.b.c.d.", number(RecordType::A)).await.unwrap();
    assert_eq!((missing.r_code, missing.rrs), (3, Vec::new()));
    let broken = of("broken.x.y.z.a.", number(RecordType::A)).await;
    assert!(matches!(broken, Err(LookupError::Failed(_))), "{broken:?}");
    for no_type_we_answer in [number(RecordType::NAPTR), 70_000] {
        let answer = of("web.", no_type_we_answer).await;
        assert!(
            matches!(answer, Err(LookupError::Unsupported(_))),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn every_record_type_is_answered() {
    let text = |t: &[&str]| RData::TXT(TXT::new(t.iter().map(|t| (*t).to_owned()).collect()));
    let target = name("web-0.web.shop.svc.cluster.local.");
    let service = RData::SRV(SRV::new(0, 100, 8080, target));
    let server = server(&[
        (
            "mail.shop.svc.cluster.local.",
            RData::MX(MX::new(10, name("mx.example."))),
        ),
        ("txt.example.", text(&["one"])),
        ("txt.example.", text(&["two"])),
        (
            "4.3.2.10.in-addr.arpa.",
            RData::PTR(hickory_proto::rr::rdata::PTR(name("host.example."))),
        ),
        (
            "alias.a.b.c.d.",
            RData::CNAME(hickory_proto::rr::rdata::CNAME(name("real.example."))),
        ),
        ("_http._tcp.web.shop.svc.cluster.local.", service.clone()),
        ("web.shop.svc.cluster.local.", a([10, 0, 0, 1])),
    ])
    .await;
    let rows = [
        (
            "mail.",
            RecordType::MX,
            RData::MX(MX::new(10, name("mx.example."))),
        ),
        ("txt.example.", RecordType::TXT, text(&["one", "two"])),
        (
            "4.3.2.10.in-addr.arpa.",
            RecordType::PTR,
            RData::PTR(hickory_proto::rr::rdata::PTR(name("host.example."))),
        ),
        (
            "10.2.3.4",
            RecordType::PTR,
            RData::PTR(hickory_proto::rr::rdata::PTR(name("host.example."))),
        ),
        (
            "alias.a.b.c.d.",
            RecordType::CNAME,
            RData::CNAME(hickory_proto::rr::rdata::CNAME(name("real.example."))),
        ),
        ("_http._tcp.web.", RecordType::SRV, service),
    ];
    for (asked, record_type, want) in rows {
        let answer = server
            .dns
            .answer(asked, number(record_type))
            .await
            .unwrap_or_else(|error| panic!("{asked}: {error}"));
        let records = decoded(&answer);
        assert_eq!(records.len(), 1, "{asked} {record_type}");
        assert_eq!(
            (&records[0].data, records[0].ttl),
            (&want, 4),
            "{asked} {record_type}"
        );
    }
}

/// A server that keeps silent costs the time for a name, whatever its search list.
#[tokio::test(start_paused = true)]
async fn a_name_takes_no_longer_than_its_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let times = LookupTimes {
        question: Duration::from_millis(450),
        name: Duration::from_secs(1),
    };
    let dns = at(port, times);
    for name in ["web.", "web.other.", "web.other.svc.cluster.local."] {
        let begin = tokio::time::Instant::now();
        let answer = dns.answer(name, number(RecordType::A)).await;
        assert!(matches!(answer, Err(LookupError::Timeout)), "{answer:?}");
        let took = begin.elapsed();
        assert!(took <= Duration::from_millis(1_001), "{name}: {took:?}");
        assert!(took >= Duration::from_millis(900), "{name}: {took:?}");
    }
}
