//! Commands of a client, parsed from one line.

/// A command. Paths are bytes as received, never empty, without line ends and zero bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'l> {
    /// `USER`: name of the user.
    User(&'l [u8]),
    /// `PASS`: the password, which is not looked at.
    Pass,
    /// `QUIT`: end of the session.
    Quit,
    /// `NOOP`: nothing.
    Noop,
    /// `SYST`: kind of the server.
    Syst,
    /// `FEAT`: list of features.
    Feat,
    /// `OPTS UTF8 ON` and `OPTS MLST …`.
    Opts,
    /// `TYPE`, `MODE`, `STRU`, `ALLO`: true for the values that mean bytes as they are.
    Representation(bool),
    /// `PWD`: working directory.
    Pwd,
    /// `CWD`, and `CDUP` as `..`: changes the working directory.
    Cwd(&'l [u8]),
    /// `PASV`: a port for a data connection, in the form for IPv4.
    Pasv,
    /// `EPSV`: a port for a data connection, in the form for every family.
    Epsv(Family),
    /// `REST`: position at which the next transfer begins.
    Rest(u64),
    /// `RETR`: sends a file.
    Retr(&'l [u8]),
    /// `STOR`: receives a file.
    Stor(&'l [u8]),
    /// `APPE`: receives the further bytes of a file.
    Appe(&'l [u8]),
    /// `ABOR`: ends the transfer.
    Abor,
    /// `MLST`: facts of a path, on the control connection; the working directory without one.
    Mlst(Option<&'l [u8]>),
    /// `MLSD`: facts of a directory's entries.
    Mlsd(Option<&'l [u8]>),
    /// `LIST`: a directory for people to read.
    List(Option<&'l [u8]>),
    /// `NLST`: names of a directory.
    Nlst(Option<&'l [u8]>),
    /// `SIZE`: size of a file.
    Size(&'l [u8]),
    /// `MDTM`: time of the last change of a file.
    Mdtm(&'l [u8]),
    /// `MKD`: makes a directory.
    Mkd(&'l [u8]),
    /// `RMD`: removes a directory.
    Rmd(&'l [u8]),
    /// `DELE`: removes a file.
    Dele(&'l [u8]),
    /// `RNFR`: path that is to be renamed.
    Rnfr(&'l [u8]),
    /// `RNTO`: its new path.
    Rnto(&'l [u8]),
    /// A verb that is not served: `PORT` and `EPRT`, `SITE`, `AUTH` and all others.
    Unknown,
}

/// Address family that an `EPSV` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// That of the control connection.
    Same,
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// No family: every later data connection will be asked for by `EPSV` too.
    All,
    /// One that is not known.
    Other,
}

/// A line that is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// The verb is missing, or not made of letters.
    #[error("this is no command")]
    NoVerb,
    /// The argument is missing, empty or of the wrong form.
    #[error("an argument is missing or has the wrong form")]
    Argument,
    /// A zero byte or carriage return, which no served name has.
    #[error("the argument holds a control character that no name may have")]
    ControlCharacter,
}

/// Parses one line, its end removed.
///
/// # Errors
/// The line is no command, or its argument has not the form that the verb asks for.
pub fn parse(line: &[u8]) -> Result<Command<'_>, BadCommand> {
    let line = without_signals(line);
    let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let (verb, rest) = line.split_at_checked(end).unwrap_or_default();
    if !(3..=4).contains(&verb.len()) || !verb.iter().all(u8::is_ascii_alphabetic) {
        return Err(BadCommand::NoVerb);
    }
    // One space parts them; further ones belong to the name.
    let argument = rest
        .split_first()
        .map_or(&b""[..], |(_, argument)| argument);
    if argument.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err(BadCommand::ControlCharacter);
    }
    let mut upper = [0; 4];
    let upper = upper.get_mut(..verb.len()).unwrap_or_default();
    upper.copy_from_slice(verb);
    upper.make_ascii_uppercase();
    command(upper, argument)
}

/// Removes what telnet clients send ahead of an `ABOR`: interrupt (255 244) and mark (255 242).
fn without_signals(mut line: &[u8]) -> &[u8] {
    while let [255, 242 | 244, rest @ ..] = line {
        line = rest;
    }
    line
}

fn command<'l>(verb: &[u8], argument: &'l [u8]) -> Result<Command<'l>, BadCommand> {
    let given = (!argument.is_empty()).then_some(argument);
    let path = given.ok_or(BadCommand::Argument);
    Ok(match verb {
        b"USER" => Command::User(path?),
        b"PASS" => Command::Pass,
        b"QUIT" => Command::Quit,
        b"NOOP" => Command::Noop,
        b"SYST" => Command::Syst,
        b"FEAT" => Command::Feat,
        b"OPTS" => opts(argument)?,
        b"TYPE" => Command::Representation(is_one_of(argument, &[b"I", b"A", b"A N", b"L 8"])),
        b"MODE" => Command::Representation(is_one_of(argument, &[b"S"])),
        b"STRU" => Command::Representation(is_one_of(argument, &[b"F"])),
        b"ALLO" => Command::Representation(true),
        b"PWD" => Command::Pwd,
        b"CWD" => Command::Cwd(path?),
        b"CDUP" => Command::Cwd(b".."),
        b"PASV" => Command::Pasv,
        b"EPSV" => Command::Epsv(family(argument)),
        b"REST" => Command::Rest(number(argument).ok_or(BadCommand::Argument)?),
        b"RETR" => Command::Retr(path?),
        b"STOR" => Command::Stor(path?),
        b"APPE" => Command::Appe(path?),
        b"ABOR" => Command::Abor,
        b"MLST" => Command::Mlst(given),
        b"MLSD" => Command::Mlsd(given),
        b"LIST" => Command::List(without_options(given)),
        b"NLST" => Command::Nlst(without_options(given)),
        b"SIZE" => Command::Size(path?),
        b"MDTM" => Command::Mdtm(path?),
        b"MKD" => Command::Mkd(path?),
        b"RMD" => Command::Rmd(path?),
        b"DELE" => Command::Dele(path?),
        b"RNFR" => Command::Rnfr(path?),
        b"RNTO" => Command::Rnto(path?),
        _ => Command::Unknown,
    })
}

fn is_one_of(argument: &[u8], allowed: &[&[u8]]) -> bool {
    allowed.iter().any(|it| it.eq_ignore_ascii_case(argument))
}

fn opts(argument: &[u8]) -> Result<Command<'static>, BadCommand> {
    let first = argument.split(|b| *b == b' ').next().unwrap_or_default();
    if is_one_of(first, &[b"UTF8", b"MLST"]) {
        Ok(Command::Opts)
    } else {
        Err(BadCommand::Argument)
    }
}

fn family(argument: &[u8]) -> Family {
    match argument {
        b"" => Family::Same,
        b"1" => Family::V4,
        b"2" => Family::V6,
        all if all.eq_ignore_ascii_case(b"ALL") => Family::All,
        _ => Family::Other,
    }
}

/// Reads digits; the largest position is what a file system can address.
fn number(argument: &[u8]) -> Option<u64> {
    if argument.is_empty() || !argument.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: i64 = std::str::from_utf8(argument).ok()?.parse().ok()?;
    u64::try_from(number).ok()
}

/// Passes over options as for `ls`, which some clients send: `LIST -a`.
fn without_options(argument: Option<&[u8]>) -> Option<&[u8]> {
    let argument = argument?;
    if !argument.starts_with(b"-") {
        return Some(argument);
    }
    let end = argument.iter().position(|b| *b == b' ')?;
    argument.get(end + 1..).filter(|rest| !rest.is_empty())
}
