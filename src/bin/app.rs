//! An app for the demo: an HTTP server that names itself. `app NAME [ADDRESS:PORT]`

#![allow(clippy::unwrap_used)]

use std::net::TcpListener;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().expect("usage: app NAME [ADDRESS:PORT]");
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());
    let app = harness::apps::App::on(&name, TcpListener::bind(address).unwrap());
    println!("listening={}", app.address());
    loop {
        std::thread::park();
    }
}
