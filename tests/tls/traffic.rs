//! Matched and unmatched requests through TLS: who answers, and what they saw.

use harness::certs::Authority;

use crate::fixture::{Fixture, ORIGINATE, Setup, TERMINATE};
use crate::nginx::{Nginx, Speaks};

const DEV: [&str; 2] = ["-H", "x-dev: a"];

#[test]
fn app_and_workstation_see_the_same_client_certificate_name_and_protocol() {
    let authority = Authority::new("cluster");
    let app = Nginx::start("app", Speaks::MutualTls, true, &authority);
    let local = Nginx::start("local", Speaks::MutualTls, true, &authority);
    let fixture = Fixture::start(authority, &Setup::new(app.addr, &[TERMINATE, ORIGINATE]));
    let answer = |by: &str, alpn: &str, proto: &str| {
        Ok(format!(
            "{by} sni=app.test alpn={alpn} dn=CN=agent-client proto={proto} caller=\n"
        ))
    };
    assert_eq!(
        fixture.curl(&["--http2"]),
        answer("app", "h2", "HTTP/2.0"),
        "no intercept"
    );
    let intercept = fixture.intercept(local.addr, &[]);
    for (flag, alpn, proto) in [
        ("--http2", "h2", "HTTP/2.0"),
        ("--http1.1", "http/1.1", "HTTP/1.1"),
    ] {
        assert_eq!(fixture.curl(&[flag]), answer("app", alpn, proto), "{flag}");
        assert_eq!(
            fixture.curl(&[flag, DEV[0], DEV[1]]),
            answer("local", alpn, proto),
            "{flag}"
        );
    }
    assert!(
        app.log()
            .lines()
            .all(|line| line.contains("dn=CN=agent-client")),
        "{}",
        app.log()
    );
    assert!(
        local
            .log()
            .lines()
            .all(|line| line.contains("dn=CN=agent-client")),
        "{}",
        local.log()
    );
    drop(intercept);
}

#[test]
fn a_plaintext_intercept_gets_clear_text_while_the_app_keeps_its_tls() {
    let authority = Authority::new("cluster");
    let app = Nginx::start("app", Speaks::MutualTls, false, &authority);
    let local = Nginx::start("local", Speaks::Clear, false, &authority);
    // The oldest spelling of all.
    let annotations = [
        ("getambassador.io/inject-terminating-tls-secret", "whatever"),
        ("getambassador.io/inject-originating-tls-secret", "whatever"),
    ];
    let at_the_old_place = |secrets: &std::path::Path| {
        let root = secrets.parent().unwrap();
        for (from, to) in [("server", "terminating_tls"), ("client", "originating_tls")] {
            std::fs::rename(secrets.join(from), root.join(to)).unwrap();
        }
    };
    let fixture = Fixture::start(
        authority,
        &Setup {
            secrets: &at_the_old_place,
            ..Setup::new(app.addr, &annotations)
        },
    );
    let _intercept = fixture.intercept(local.addr, &["--http-plaintext"]);
    let unmatched = fixture.curl(&["--http1.1"]).unwrap();
    assert_eq!(
        unmatched,
        "app sni=app.test alpn=http/1.1 dn=CN=agent-client proto=HTTP/1.1 caller=\n"
    );
    let matched = fixture.curl(&["--http1.1", DEV[0], DEV[1]]).unwrap();
    assert_eq!(matched, "local sni= alpn= dn= proto=HTTP/1.1 caller=\n");
}

#[test]
fn an_app_in_clear_text_behind_terminated_tls_has_its_requests_told_apart() {
    let authority = Authority::new("cluster");
    let app = Nginx::start("app", Speaks::Clear, false, &authority);
    let local = Nginx::start("local", Speaks::Clear, false, &authority);
    let fixture = Fixture::start(
        authority,
        &Setup {
            app_protocol: "http",
            ..Setup::new(app.addr, &[TERMINATE])
        },
    );
    let _intercept = fixture.intercept(local.addr, &[]);
    assert_eq!(
        fixture.curl(&["--http2"]).unwrap(),
        "app sni= alpn= dn= proto=HTTP/1.1 caller=\n"
    );
    assert_eq!(
        fixture.curl(&["--http2", DEV[0], DEV[1]]).unwrap(),
        "local sni= alpn= dn= proto=HTTP/1.1 caller=\n"
    );
}

#[test]
fn a_verified_caller_is_named_to_app_and_workstation_and_nobody_can_name_himself() {
    let authority = Authority::new("cluster");
    let callers = Authority::new("callers");
    let app = Nginx::start("app", Speaks::Clear, true, &authority);
    let local = Nginx::start("local", Speaks::Clear, true, &authority);
    let annotations = [
        TERMINATE,
        ("telepresence.io/downstream-client-ca-secret", "callers"),
        ("telepresence.io/downstream-client-auth", "optional"),
        ("telepresence.io/forwarded-identity-header", "x-caller"),
    ];
    let write = |secrets: &std::path::Path| {
        std::fs::create_dir(secrets.join("callers")).unwrap();
        std::fs::write(secrets.join("callers/ca.crt"), callers.pem()).unwrap();
    };
    let fixture = Fixture::start(
        authority,
        &Setup {
            app_protocol: "h2c",
            secrets: &write,
            ..Setup::new(app.addr, &annotations)
        },
    );
    let signed = callers.sign(&["alice.test"]);
    let pem = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(pem.path(), format!("{}{}", signed.cert, signed.key)).unwrap();
    let forged = ["--http2", "-H", "X-Caller: root"];
    let known = [&forged[..], &["--cert", pem.path().to_str().unwrap()]].concat();
    let check = |by: &str, more: &[&str]| {
        let anonymous = fixture.curl(&[&forged[..], more].concat()).unwrap();
        assert_eq!(
            anonymous,
            format!("{by} sni= alpn= dn= proto=HTTP/2.0 caller=\n")
        );
        let named = fixture.curl(&[&known[..], more].concat()).unwrap();
        assert!(
            named.starts_with(&format!("{by} sni= alpn= dn= proto=HTTP/2.0 caller=Hash=")),
            "{named}"
        );
        assert!(
            named.ends_with(";Subject=\"CN=alice.test\";DNS=\"alice.test\"\n"),
            "{named}"
        );
    };
    check("app", &[]);
    let _intercept = fixture.intercept(local.addr, &[]);
    check("app", &[]);
    check("local", &DEV);
}

#[test]
fn a_workstation_is_reached_through_tls_while_the_app_is_away() {
    let authority = Authority::new("cluster");
    let local = Nginx::start("local", Speaks::Clear, false, &authority);
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let fixture = Fixture::start(
        authority,
        &Setup {
            app_protocol: "http",
            ..Setup::new(nobody, &[TERMINATE])
        },
    );
    let refused = fixture.curl(&["--http1.1"]).unwrap_err();
    // Where in its connect curl meets the reset is a matter of moments, and so are its words.
    let words = [
        "reset",
        "SSL_ERROR_SYSCALL",
        "not connected",
        "SSL connection",
    ];
    assert!(words.iter().any(|w| refused.contains(w)), "{refused}");
    let _intercept = fixture.intercept(local.addr, &[]);
    assert_eq!(
        fixture.curl(&["--http1.1", DEV[0], DEV[1]]).unwrap(),
        "local sni= alpn= dn= proto=HTTP/1.1 caller=\n"
    );
}
