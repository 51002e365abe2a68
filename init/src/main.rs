//! Program: arguments and environment in, exit code out. A panic is a bug and has an exit code of
//! its own.

use std::process::ExitCode;

use agent_init::{apply, command, error, log, signals};

fn main() -> ExitCode {
    signals::watch();
    let run = || {
        let env = |key: &str| std::env::var_os(key);
        command::run(
            std::env::args_os().skip(1),
            &env,
            &mut std::io::stdin(),
            &mut std::io::stdout(),
            &mut std::io::stderr(),
        )
    };
    match std::panic::catch_unwind(run) {
        Ok(code) => code.into(),
        Err(_) => {
            let mut stderr = std::io::stderr();
            let log = log::Log::new(&mut stderr);
            if let Some(left) = apply::remove_quietly(&log) {
                log.warning(&left);
            }
            error::BUG.into()
        }
    }
}
