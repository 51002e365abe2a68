#![no_main]
//! A reader behind a recoder understands every list, whatever was withheld before it.
use libfuzzer_sys::fuzz_target;
use traffic_core::http2::hpack::{Decoder, Encoder, Field, FieldList, Form, Recoder};

type Line<'a> = (&'a [u8], &'a [u8], u8);

fn form(n: u8) -> Form {
    [Form::Indexed, Form::Incremental, Form::Plain, Form::Never][usize::from(n % 4)]
}

fuzz_target!(|steps: Vec<(Vec<Line<'_>>, u8, u16)>| {
    let (mut sender, mut recoder, mut reader) = (Encoder::default(), Recoder::default(), Decoder::default());
    for (lines, what, size) in steps {
        if what & 0x10 != 0 {
            sender.resize(size.into());
        }
        let fields = lines.iter().map(|(name, value, n)| Field { form: form(*n), ..Field::plain(name, value) });
        let mut block = Vec::new();
        sender.encode(fields, &mut block);
        let mut read = FieldList::default();
        if recoder.is_verbatim() && what & 3 == 0 {
            recoder.follow(&block).expect("our own encoder");
            reader.follow(&block).expect("our own encoder");
            continue;
        }
        recoder.read(&block, &mut read).expect("our own encoder");
        if what & 3 == 3 {
            recoder.withhold();
            continue;
        }
        let mut out = block;
        if !recoder.is_verbatim() || what & 4 != 0 {
            out = Vec::new();
            recoder.encode(read.iter(), &mut out);
        }
        let mut heard = FieldList::default();
        reader.decode(&out, &mut heard).expect("the reader understands");
        let plain = |list: &FieldList| -> Vec<_> {
            list.iter().map(|f| (f.name.to_vec(), f.value.to_vec(), f.form == Form::Never)).collect()
        };
        let said: Vec<_> = lines.iter().map(|(n, v, f)| (n.to_vec(), v.to_vec(), form(*f) == Form::Never)).collect();
        assert_eq!(plain(&heard), said);
    }
});
