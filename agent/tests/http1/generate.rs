//! Random but sound HTTP/1 messages, as odd as the grammar allows.

/// A small generator of pseudo-random numbers: a failure is repeated by its seed.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) as usize) % n.max(1)
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n + 8);
        while out.len() < n {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(n);
        out
    }
}

/// One exchange: what the caller writes, and what the app answers.
pub(crate) struct Exchange {
    pub(crate) request: Vec<u8>,
    pub(crate) answer: Vec<u8>,
    /// The app closes behind the answer.
    pub(crate) last: bool,
}

pub(crate) fn exchange(rng: &mut Rng) -> Exchange {
    let method = *rng.pick(&[
        "GET",
        "GET",
        "GET",
        "POST",
        "POST",
        "PUT",
        "PATCH",
        "DELETE",
        "HEAD",
        "OPTIONS",
        "TRACE",
        "M-SEARCH",
        "get",
        "X!#$%&'*+.^_`|~9",
    ]);
    let minor = usize::from(!rng.chance(15));
    let mut keeps = minor == 1;
    let mut head = Vec::new();
    if rng.chance(3) {
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(
        format!("{method} {} HTTP/1.{minor}\r\n", target(rng, method)).as_bytes(),
    );
    let mut fields = fields(rng);
    if minor == 0 && rng.chance(70) {
        keeps = true;
        fields.push(b"connection: Keep-Alive".to_vec());
    }
    let body = match (rng.below(10), minor) {
        (0..=3, _) => Vec::new(),
        (4..=6, 1) => chunked(rng, &mut fields),
        _ => counted(rng, &mut fields),
    };
    let request = assemble(rng, head, fields, body);

    let status = *rng.pick(&[200, 200, 200, 201, 204, 206, 301, 304, 400, 404, 500, 599]);
    let reason = *rng.pick(&["OK", "", "Not  Found", "a b c", "\u{fc}mlaut"]);
    let mut head = Vec::new();
    for _ in 0..if minor == 1 { rng.below(3) } else { 0 } {
        let interim = *rng.pick(&["100 Continue", "103 Early Hints", "102 x"]);
        head.extend_from_slice(
            format!("HTTP/1.1 {interim}\r\nLink: <{}>\r\n\r\n", rng.next()).as_bytes(),
        );
    }
    let answer_minor = if minor == 0 {
        0
    } else {
        usize::from(!rng.chance(5))
    };
    head.extend_from_slice(format!("HTTP/1.{answer_minor} {status} {reason}\r\n").as_bytes());
    let mut fields = self::fields(rng);
    let mut last = !keeps;
    let bodyless = method == "HEAD" || matches!(status, 204 | 304);
    let body = match (bodyless, rng.below(10), answer_minor) {
        (true, n, _) => {
            if n < 5 && status != 204 {
                fields.push(b"Content-Length: 123456".to_vec());
            }
            Vec::new()
        }
        (_, 0..=3, 1) => chunked(rng, &mut fields),
        (_, 4, _) => {
            last = true;
            let size = size(rng);
            rng.bytes(size)
        }
        _ => counted(rng, &mut fields),
    };
    let answer = assemble(rng, head, fields, body);
    Exchange {
        request,
        answer,
        last,
    }
}

fn target(rng: &mut Rng, method: &str) -> String {
    match rng.below(8) {
        0 if method == "OPTIONS" => "*".to_owned(),
        1 => format!("http://example.test:8080/abs/{:x}?q=1", rng.next()),
        2 => format!("/{}", "long/".repeat(rng.below(400))),
        3 => "/%7Euser/\u{e4}?a=b&a=c;d#frag".to_owned(),
        _ => format!("/p/{:x}?x={}", rng.next(), rng.below(10)),
    }
}

fn fields(rng: &mut Rng) -> Vec<Vec<u8>> {
    let mut fields = Vec::new();
    for _ in 0..rng.below(12) {
        let name = match rng.below(6) {
            0 => "HOST".to_owned(),
            1 => "accept-ENCODING".to_owned(),
            2 => "X-Dev".to_owned(),
            3 => "Set-Cookie".to_owned(),
            4 => "X!#$%&'*+-.^_`|~9a".to_owned(),
            _ => format!("X-{:x}", rng.below(4000)),
        };
        let before = *rng.pick(&["", " ", "  ", "\t", " \t "]);
        let after = *rng.pick(&["", "", " ", "\t "]);
        let value = match rng.below(6) {
            0 => Vec::new(),
            1 => b"a,b;q=\"x: y\"\t,  z".to_vec(),
            2 => vec![0xe4, 0xff, b'z', 0x80],
            3 => "v".repeat(rng.below(600)).into_bytes(),
            _ => format!("{:x}", rng.next()).into_bytes(),
        };
        fields.push(
            [
                name.as_bytes(),
                b":",
                before.as_bytes(),
                &value,
                after.as_bytes(),
            ]
            .concat(),
        );
        if rng.chance(15) {
            let same = fields.last().unwrap().clone();
            fields.push(same);
        }
    }
    fields
}

/// Sizes from nothing to 4 MiB, small ones most often.
fn size(rng: &mut Rng) -> usize {
    match rng.below(100) {
        0..=9 => 0,
        10..=59 => rng.below(200),
        60..=89 => rng.below(20_000),
        90..=97 => rng.below(200_000),
        _ => rng.below(4 << 20),
    }
}

fn counted(rng: &mut Rng, fields: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let n = size(rng);
    let name = *rng.pick(&[
        "Content-Length",
        "content-length",
        "CONTENT-LENGTH",
        "conTent-lenGth",
    ]);
    let pad = *rng.pick(&["", " ", "\t", "  "]);
    let zeros = *rng.pick(&["", "", "", "000"]);
    fields.push(format!("{name}:{pad}{zeros}{n}{pad}").into_bytes());
    rng.bytes(n)
}

fn chunked(rng: &mut Rng, fields: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let name = *rng.pick(&[
        "Transfer-Encoding",
        "transfer-encoding",
        "TRANSFER-ENCODING",
    ]);
    let coding = *rng.pick(&["chunked", "Chunked", "CHUNKED"]);
    fields.push(format!("{name}: {coding}").into_bytes());
    let mut left = size(rng);
    let mut out = Vec::new();
    let extension = |rng: &mut Rng| {
        (*rng.pick(&["", "", "", ";a", ";a=b", " ;q=\"x;y\"", ";\t z = 1"])).to_owned()
    };
    while left > 0 {
        let most = 1 + rng.below(100_000);
        let n = 1 + rng.below(left.min(most));
        let zeros = "0".repeat(rng.below(3));
        let size = if rng.chance(50) {
            format!("{zeros}{n:x}")
        } else {
            format!("{zeros}{n:X}")
        };
        out.extend_from_slice(format!("{size}{}\r\n", extension(rng)).as_bytes());
        out.extend_from_slice(&rng.bytes(n));
        out.extend_from_slice(b"\r\n");
        left -= n;
    }
    out.extend_from_slice(format!("0{}\r\n", extension(rng)).as_bytes());
    for _ in 0..rng.below(3) {
        out.extend_from_slice(format!("X-Trailer: {:x} \r\n", rng.next()).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn assemble(
    rng: &mut Rng,
    mut message: Vec<u8>,
    mut fields: Vec<Vec<u8>>,
    body: Vec<u8>,
) -> Vec<u8> {
    for _ in 0..fields.len() {
        let (a, b) = (rng.below(fields.len()), rng.below(fields.len()));
        fields.swap(a, b);
    }
    for field in fields {
        message.extend_from_slice(&field);
        message.extend_from_slice(b"\r\n");
    }
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(&body);
    message
}
