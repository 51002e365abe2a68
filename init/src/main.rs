//! Program: arguments and environment in, exit code out. A panic is a bug and has an exit code of its
//! own.

use std::process::ExitCode;

fn main() -> ExitCode {
    let run = || {
        let env = |key: &str| std::env::var(key).ok();
        agent_init::command::run(
            std::env::args().skip(1),
            &env,
            &mut std::io::stdout(),
            &mut std::io::stderr(),
        )
    };
    match std::panic::catch_unwind(run) {
        Ok(code) => code.into(),
        Err(_) => {
            agent_init::apply::remove_quietly();
            agent_init::error::BUG.into()
        }
    }
}
