//! Requests that are copied: every byte of the body once, whoever serves it.

use traffic_core::http2::frames::code;
use traffic_core::http2::router::StreamEnd;

use crate::peer::{Peer, Say};
use crate::rig::Rig;
use crate::scripted::{get, line};

fn body(number: usize) -> Vec<u8> {
    (0..number * 977).map(|i| (i * 31 + number) as u8).collect()
}

#[test]
fn bodies_with_padding_in_any_pieces_are_copied_for_the_app_and_for_workstations() {
    for seed in 0..40 {
        let caller = Peer::client(seed, 65_535, 0);
        let app = Peer::server("app", seed + 1, 65_535, 0);
        let mut rig = Rig::new(caller, app, seed + 2);
        rig.rules.active = true;
        let mut ids = Vec::new();
        for number in 0..12 {
            let dev = ["", "a", "b"][number % 3];
            let mut lines = get("/upload", dev);
            lines[0] = line(":method", "POST");
            if number != 11 {
                lines.push(line("x-copy", "yes"));
            }
            let (bytes, pad) = (body(number), [0, 1, 200][number % 3]);
            let half = bytes.len() / 2;
            let trailers = number % 4 == 3;
            let mut say = vec![
                Say::Fields(lines, false),
                Say::Data(bytes[..half].to_vec(), pad, false),
                Say::Data(bytes[half..].to_vec(), pad, !trailers),
            ];
            if trailers {
                say.push(Say::Fields(vec![line("x-end", "yes")], true));
            }
            ids.push(rig.caller.open(say));
        }
        ids.push(rig.caller.open([Say::Fields(
            [get("/", ""), vec![line("x-copy", "yes")]].concat(),
            true,
        )]));
        rig.settle();
        for (number, id) in ids.iter().enumerate().filter(|(number, _)| *number != 11) {
            let copy = rig.rules.copies.get(id);
            let copy = copy.unwrap_or_else(|| panic!("seed {seed}: no copy of request {number}"));
            let wanted = if number == 12 {
                Vec::new()
            } else {
                body(number)
            };
            assert!(copy.ended, "seed {seed}: request {number}");
            assert_eq!(copy.body, wanted, "seed {seed}: request {number}");
            assert_eq!(copy.trailers, usize::from(number % 4 == 3 && number < 12));
        }
        assert!(!rig.rules.copies.contains_key(&ids[11]));
    }
}

#[test]
fn a_request_that_is_given_up_is_copied_no_further() {
    for dev in ["", "a"] {
        let caller = Peer::client(3, 65_535, 0);
        let app = Peer::server("app", 5, 65_535, 0);
        let mut rig = Rig::new(caller, app, 7);
        (rig.rules.active, rig.prompt) = (true, true);
        let lines = [get("/upload", dev), vec![line("x-copy", "yes")]].concat();
        let id = rig.caller.open([
            Say::Fields(lines, false),
            Say::Data(body(2), 0, false),
            Say::Reset(code::CANCEL),
        ]);
        rig.settle();
        let copy = &rig.rules.copies[&id];
        assert_eq!((copy.ended, &copy.body), (false, &body(2)));
        assert_eq!(rig.rules.ended, [(id, StreamEnd::CallerReset)]);
    }
}
