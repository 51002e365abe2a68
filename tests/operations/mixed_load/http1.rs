//! A caller that keeps its HTTP/1 connection until an answer says that it is the last one.

use std::io::ErrorKind;

use harness::apps::field;
use harness::caller::Caller;

use super::{Call, DEV, HTTP};

pub(super) fn call(call: &Call<'_>) -> Result<(), String> {
    let headers = if call.dev { &[DEV][..] } else { &[] };
    loop {
        let mut caller = match Caller::connect(call.testbed.address(HTTP)) {
            Ok(caller) => caller,
            Err(error) => return call.gone(&error),
        };
        for number in 0u64.. {
            if call.should_stop() {
                return Ok(());
            }
            let path = if number % 20 == 19 {
                "/drip/10/20"
            } else {
                "/slow/1"
            };
            // A connection that ends before anything of an answer has ended between two exchanges:
            // whoever asks with GET asks again (RFC 9112 section 9.3.1).
            if let Err(error) = caller
                .send("GET", path, headers, b"")
                .and_then(|()| begins(&mut caller))
            {
                if number == 0 {
                    return call.gone(&error);
                }
                call.repeated();
                break;
            }
            let answer = caller
                .answer()
                .map_err(|error| format!("cut within {path}: {error}"))?;
            if answer.status != 200
                || (path.starts_with("/drip") && answer.body != b"drip\n".repeat(10))
            {
                return Err(format!("{path}: {answer:?}"));
            }
            call.answered(answer.by())?;
            if field(&answer.head, "connection").is_some_and(|value| value == "close") {
                break;
            }
        }
    }
}

fn begins(caller: &mut Caller) -> std::io::Result<()> {
    match caller.stream().peek(&mut [0])? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
