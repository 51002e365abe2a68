//! HPACK as a whole: examples of the standard, round trips, and a second implementation.

use proptest::prelude::*;

use super::*;

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Pairs, HpackError> {
    let mut list = FieldList::default();
    decoder.decode(block, &mut list)?;
    Ok(pairs(&list))
}

fn pairs(list: &FieldList) -> Pairs {
    list.iter()
        .map(|f| (f.name.to_vec(), f.value.to_vec()))
        .collect()
}

fn text(pairs: &[(Vec<u8>, Vec<u8>)]) -> String {
    let lines = pairs.iter().map(|(name, value)| {
        let (name, value) = (name.escape_ascii(), value.escape_ascii());
        format!("{name}={value}")
    });
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn three_requests_of_the_standard_share_a_table() {
    // RFC 7541 appendix C.4: Huffman code, and entries that are referred to.
    let mut decoder = Decoder::default();
    let blocks: [&[u8]; 3] = [
        b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
        b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
        b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
    ];
    let seen = blocks.map(|block| text(&decoded(&mut decoder, block).unwrap()));
    assert_eq!(
        seen,
        [
            ":method=GET :scheme=http :path=/ :authority=www.example.com",
            ":method=GET :scheme=http :path=/ :authority=www.example.com cache-control=no-cache",
            ":method=GET :scheme=https :path=/index.html :authority=www.example.com custom-key=custom-value",
        ]
    );
    // The third may be followed without being read, and means the same to the next.
    let mut follower = Decoder::default();
    blocks.iter().for_each(|b| follower.follow(b).unwrap());
    for decoder in [&mut decoder, &mut follower] {
        assert_eq!(
            text(&decoded(decoder, b"\xbe\xbf\xc0").unwrap()),
            "custom-key=custom-value cache-control=no-cache :authority=www.example.com"
        );
    }
}

#[test]
fn the_form_of_a_field_is_kept_and_what_must_not_be_indexed_never_is() {
    let block = b"\x82\x10\x01a\x01b\x00\x01c\x01d\x40\x01e\x01f\xbe\x1f\x08\x01g\x5f\x03a/b";
    let mut list = FieldList::default();
    Decoder::default().decode(block, &mut list).unwrap();
    let forms: Vec<_> = list.iter().map(|f| (f.form, f.known)).collect();
    assert_eq!(
        forms,
        [
            (Form::Indexed, StaticRef::Whole(2)),
            (Form::Never, StaticRef::None),
            (Form::Plain, StaticRef::None),
            (Form::Incremental, StaticRef::None),
            (Form::Indexed, StaticRef::None),
            (Form::Never, StaticRef::Name(23)),
            (Form::Incremental, StaticRef::Name(31)),
        ]
    );
    let mut out = Vec::new();
    Encoder::with_table(table::Table::new(4096)).encode(list.iter(), &mut out);
    assert_eq!(out, block, "a near reader gets the same bytes");
    let mut out = Vec::new();
    list.iter()
        .for_each(|field| encode_without_table(field, &mut out));
    let mut again = FieldList::default();
    let mut decoder = Decoder::default();
    decoder.decode(&out, &mut again).unwrap();
    assert_eq!(pairs(&again), pairs(&list));
    assert_eq!(decoder.heap(), 0, "the table stays as it was");
    let never = again.iter().filter(|f| f.form == Form::Never).count();
    assert_eq!(never, 2);
}

#[test]
fn what_cannot_be_read_is_refused_and_says_why() {
    let cases: [(&[u8], HpackError); 8] = [
        (b"\x80", HpackError::Index),
        (b"\xbe", HpackError::Index),
        (b"\x7e\x01a", HpackError::Index),
        (b"\x82\x3f", HpackError::Truncated),
        (b"\x40\x05abc", HpackError::Truncated),
        (b"\x40", HpackError::Truncated),
        (b"\x3f\xe2\xff\x03", HpackError::TableSize),
        (b"\x40\x01a\x81\x00", HpackError::Huffman),
    ];
    for (block, why) in cases {
        assert_eq!(
            decoded(&mut Decoder::default(), block),
            Err(why),
            "{block:x?}"
        );
    }
    // A size behind a field, as some senders have it and some readers take it.
    let size_behind = decoded(&mut Decoder::default(), b"\x82\x20");
    assert_eq!(size_behind, decoded(&mut Decoder::default(), b"\x82"));
    // The largest table that is followed.
    assert_eq!(
        decoded(&mut Decoder::default(), b"\x3f\xe1\xff\x03"),
        Ok(vec![])
    );
    assert_eq!(
        decoded(&mut Decoder::new(4096), b"\x3f\xe2\x1f"),
        Err(HpackError::TableSize)
    );
}

#[test]
fn a_list_that_blows_up_is_cut_and_the_table_is_followed_all_the_same() {
    let mut block = b"\x40\x01x\x7f\xa1\x1e".to_vec();
    block.extend_from_slice(&[b'v'; 4000]);
    block.extend_from_slice(&[0xbe; 10_000]);
    block.extend_from_slice(b"\x40\x01y\x01z");
    let (mut list, mut decoder) = (FieldList::default(), Decoder::default());
    decoder.decode(&block, &mut list).unwrap();
    assert!(list.has_overflowed() && list.size() <= MAX_LIST && list.len() < 300);
    assert_eq!(text(&decoded(&mut decoder, b"\xbe").unwrap()), "y=z");
    list.clear();
    assert!(list.is_empty() && !list.has_overflowed());
}

#[test]
fn changes_of_size_are_told_the_smallest_first() {
    let mut encoder = Encoder::default();
    encoder.resize(100);
    encoder.resize(0);
    encoder.allow(200);
    let mut out = Vec::new();
    encoder.encode(std::iter::empty(), &mut out);
    assert_eq!(out, b"\x20\x3f\xa9\x01");
    out.clear();
    encoder.encode(std::iter::empty(), &mut out);
    assert!(out.is_empty());
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::sample::select(vec![
            &b":path"[..], b":method", b"GET", b"cookie", b"a", b"bb", b"x-dev", b"", b"grpc-timeout",
        ]).prop_map(<[u8]>::to_vec),
        2 => "[a-z-]{1,20}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
        1 => (any::<u8>(), 0usize..5000).prop_map(|(byte, n)| vec![byte; n]),
    ]
}

fn any_form() -> impl Strategy<Value = Form> {
    proptest::sample::select(vec![
        Form::Indexed,
        Form::Incremental,
        Form::Plain,
        Form::Never,
    ])
}

type Lines = Vec<(Vec<u8>, Vec<u8>, Form)>;

fn any_list() -> impl Strategy<Value = Lines> {
    proptest::collection::vec((any_text(), any_text(), any_form()), 0..12)
}

fn fields(lines: &Lines) -> impl Iterator<Item = Field<'_>> {
    lines.iter().map(|(name, value, form)| Field {
        form: *form,
        ..Field::plain(name, value)
    })
}

fn plain(lines: &Lines) -> Pairs {
    lines
        .iter()
        .map(|(n, v, _)| (n.clone(), v.clone()))
        .collect()
}

proptest! {
    #[test]
    fn lists_read_back_as_they_were_written(
        lists in proptest::collection::vec((any_list(), proptest::option::of(0usize..6000)), 1..12),
    ) {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        for (list, size) in lists {
            if let Some(size) = size {
                encoder.resize(size);
            }
            let mut block = Vec::new();
            encoder.encode(fields(&list), &mut block);
            prop_assert_eq!(decoded(&mut decoder, &block), Ok(plain(&list)));
        }
    }

    #[test]
    fn a_reader_understands_what_is_withheld_changed_or_passed_on_in_any_order(
        lists in proptest::collection::vec((any_list(), 0u8..8, proptest::option::of(0usize..5000)), 1..20),
    ) {
        let (mut sender, mut recoder) = (Encoder::default(), Recoder::default());
        let mut reader = Decoder::default();
        for (list, what, size) in lists {
            if let Some(size) = size {
                sender.resize(size);
            }
            let mut block = Vec::new();
            sender.encode(fields(&list), &mut block);
            if recoder.is_verbatim() && what < 3 {
                recoder.follow(&block).unwrap();
                prop_assert_eq!(decoded(&mut reader, &block), Ok(plain(&list)));
                continue;
            }
            let mut read = FieldList::default();
            recoder.read(&block, &mut read).unwrap();
            prop_assert_eq!(pairs(&read), plain(&list));
            match what {
                7 => recoder.withhold(),
                6 => {
                    let more = Field::plain(b"x-more", b"1");
                    let mut out = Vec::new();
                    recoder.encode(read.iter().chain([more]), &mut out);
                    let mut expected = plain(&list);
                    expected.push((b"x-more".to_vec(), b"1".to_vec()));
                    prop_assert_eq!(decoded(&mut reader, &out), Ok(expected));
                }
                _ if recoder.is_verbatim() => {
                    prop_assert_eq!(decoded(&mut reader, &block), Ok(plain(&list)));
                }
                _ => {
                    let mut out = Vec::new();
                    recoder.encode(read.iter(), &mut out);
                    prop_assert_eq!(decoded(&mut reader, &out), Ok(plain(&list)));
                }
            }
        }
    }

    #[test]
    fn a_second_decoder_reads_what_we_write(lists in proptest::collection::vec(any_list(), 1..10)) {
        let (mut encoder, mut other) = (Encoder::default(), fluke_hpack::Decoder::new());
        for list in lists {
            let mut block = Vec::new();
            encoder.encode(fields(&list), &mut block);
            prop_assert_eq!(other.decode(&block).map_err(|e| format!("{e:?}")), Ok(plain(&list)));
        }
    }

    #[test]
    fn we_read_what_a_second_encoder_writes(lists in proptest::collection::vec(any_list(), 1..10)) {
        let (mut other, mut decoder) = (fluke_hpack::Encoder::new(), Decoder::default());
        for list in lists {
            let list = plain(&list);
            let block = other.encode(list.iter().map(|(n, v)| (&n[..], &v[..])));
            prop_assert_eq!(decoded(&mut decoder, &block), Ok(list));
        }
    }

    #[test]
    fn any_bytes_mean_the_same_to_a_second_decoder(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..4)) {
        let (mut decoder, mut follower) = (Decoder::default(), Decoder::default());
        let mut other = fluke_hpack::Decoder::new();
        for block in blocks {
            let ours = decoded(&mut decoder, &block);
            let followed = follower.follow(&block);
            prop_assert!(ours.is_err() || followed.is_ok());
            // The other one panics on some that are cut.
            let Ok(ours) = ours else { break };
            let Ok(theirs) = other.decode(&block) else {
                break;
            };
            prop_assert_eq!(ours, theirs);
        }
    }
}
