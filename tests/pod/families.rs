//! Datagrams to an app that listens in one of the pod's families, or in both with a socket for
//! each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;

/// Sockets of an app, each of which answers with its address; they end with their value.
struct Answering {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Answering {
    fn on(pod: &Space, addresses: &[&'static str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = addresses.iter().map(|address| {
            let socket = pod.run_as(APP.0, APP.1, || UdpSocket::bind((*address, 5353)).unwrap());
            let interval = Duration::from_millis(20);
            socket.set_read_timeout(Some(interval)).unwrap();
            let (stop, address) = (stop.clone(), *address);
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((_, caller)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(address.as_bytes(), caller);
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { stop, threads }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn datagrams_reach_an_app_that_listens_in_one_family_or_in_each_with_another_socket() {
    let (pod, root) = (Pod::new(), file_tree());
    let listens: [&[&str]; 4] = [&[Pod::IP], &[Pod::IP6], &[Pod::IP, Pod::IP6], &[Pod::IP]];
    let asked = |all: &[&'static str]| -> Vec<String> {
        let each = all.iter();
        each.map(|address| datagram(&pod.outside, ROOT, address))
            .collect()
    };
    for addresses in listens {
        let _app = Answering::on(&pod.inside, addresses);
        assert_eq!(asked(addresses), addresses, "without an agent");
    }
    init(&pod.inside, root.path(), "nft");
    let manager = manager(&pod.outside);
    let agent = agent(&pod.inside, root.path());
    until("the agent to arrive", || {
        root.path().join("tmp/agent/ready").exists().then_some(())
    });
    for addresses in listens {
        let _app = Answering::on(&pod.inside, addresses);
        assert_eq!(asked(addresses), addresses, "with an agent");
    }
    // A caller in the other family gets the app where it is configured to be.
    let _app = Answering::on(&pod.inside, &[Pod::IP]);
    assert_eq!(asked(&[Pod::IP6]), [Pod::IP]);
    drop((manager, agent));
}
