use super::*;
use traffic_proto::manager::InterceptSpec;

const HOSTILE: &str = "<script>alert(1)</script>'\"><b>\u{202e}";

fn view() -> View {
    let mut info = InterceptInfo {
        spec: Some(InterceptSpec {
            name: format!("mine{HOSTILE}"),
            client: HOSTILE.into(),
            agent: "shop".into(),
            namespace: "web".into(),
            port_identifier: HOSTILE.into(),
            target_host: "127.0.0.1".into(),
            target_port: 3000,
            header_filters: [(HOSTILE.to_owned(), HOSTILE.to_owned())].into(),
            path_filters: vec![HOSTILE.into()],
            ..InterceptSpec::default()
        }),
        pod_name: HOSTILE.into(),
        message: HOSTILE.into(),
        modified_at: Some((SystemTime::now() - Duration::from_secs(61)).into()),
        hits: 12,
        failed_open: 3,
        ..InterceptInfo::default()
    };
    info.set_disposition(Disposition::Active);
    let agent = Agent {
        info: AgentInfo {
            name: HOSTILE.into(),
            version: HOSTILE.into(),
            ..AgentInfo::default()
        },
        intercepts: 1,
        seen: Duration::from_secs(2),
    };
    let client = Client {
        info: ClientInfo {
            name: HOSTILE.into(),
            namespace: HOSTILE.into(),
            ..ClientInfo::default()
        },
        intercepts: 1,
        seen: Duration::ZERO,
        is_absent: true,
    };
    let figures = Figures {
        certificate_seconds: Some(90_000),
        reviews: [("injected", 4), ("skipped", 2), ("refused", 1)],
        workloads: 3,
        rolling: 0,
    };
    let review = Review {
        at: SystemTime::now(),
        namespace: HOSTILE.into(),
        pod: "shop-".into(),
        verdict: "refused",
        reasons: HOSTILE.into(),
    };
    View {
        intercepts: Listed::of([info].into_iter()),
        agents: Listed::of([agent].into_iter()),
        clients: Listed::of([client].into_iter()),
        cluster: Some((figures, vec![review])),
        is_ready: true,
    }
}

#[test]
fn the_page_says_who_takes_what_since_when_and_with_what_success() {
    let page = render(
        &view(),
        &Settings::default(),
        Level::INFO,
        Duration::from_secs(9),
    );
    for expected in [
        "<meta http-equiv='refresh' content='5'>",
        "<dt>state</dt><dd><span class='yes'>ready</span></dd>",
        "<dt>up for</dt><dd>9 s</dd>",
        "title='Goes to'>127.0.0.1:3000<",
        "<span class='yes'>ACTIVE</span> for 1 min 1 s",
        "title='To the workstation'>12<",
        "title='To the app'>3<",
        "<span class='no'>away</span>",
        "4 injected, 2 skipped, 1 refused",
        "valid for 1 d 1 h",
        "<span class='no'>refused</span>",
    ] {
        assert!(page.contains(expected), "no {expected} in {page}");
    }
}

#[test]
fn nothing_that_others_write_becomes_markup() {
    let page = render(&view(), &Settings::default(), Level::INFO, Duration::ZERO);
    let body = page.split("</style>").nth(1).unwrap();
    assert!(
        !body.contains("<script") && !body.contains("<b>\u{202e}"),
        "{body}"
    );
    assert!(!body.contains('\u{202e}'), "{body}");
    // Every tag is one of ours.
    for tag in body.split('<').skip(1) {
        let name = tag.trim_start_matches('/');
        let name = name
            .split(|c: char| !c.is_ascii_alphanumeric())
            .next()
            .unwrap();
        let ours = [
            "head", "body", "html", "nav", "b", "a", "h1", "h2", "main", "dl", "dt", "dd", "span",
            "small", "table", "tr", "th", "td", "code", "br", "p",
        ];
        assert!(ours.contains(&name), "<{tag}");
    }
}

#[test]
fn what_is_too_much_for_a_page_is_counted() {
    let listed = Listed::of(0..MAX_ROWS + 7);
    assert_eq!(listed.rows.len(), MAX_ROWS);
    assert_eq!(listed.rest(), "<p class='dim'>and 7 more</p>\n");
}
