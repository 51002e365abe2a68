//! The environment of the app's container as it is handed to commands and written to files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::container::facts::Facts;
use crate::flags::ContainerFlags;
use crate::local::write_secret;
use crate::{Failure, local};

/// Language of an environment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Docker,
    Compose,
    Sh,
    Csh,
    PowerShell,
    Cmd,
}

/// Syntax of an environment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syntax {
    language: Language,
    /// Programs that are started see the variables.
    is_exported: bool,
}

impl std::str::FromStr for Syntax {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (language, is_exported) = match text.split_once(':') {
            Some((language, "export")) => (language, true),
            Some(_) => ("", false),
            None => (text, false),
        };
        let language = match language {
            "docker" if !is_exported => Language::Docker,
            "compose" if !is_exported => Language::Compose,
            "cmd" if !is_exported => Language::Cmd,
            "sh" => Language::Sh,
            "csh" => Language::Csh,
            "ps" => Language::PowerShell,
            _ => {
                return Err(format!(
                    "{text:?} is no syntax; use docker, compose, sh, sh:export, csh, csh:export, \
                     ps, ps:export or cmd"
                ));
            }
        };
        Ok(Self {
            language,
            is_exported,
        })
    }
}

/// Returns the container's environment with what is added on this machine. `root` is where its
/// volumes are mounted.
pub(crate) fn of(facts: &Facts, root: Option<&Path>) -> BTreeMap<String, String> {
    let mut environment = facts.environment.clone();
    if let Some(id) = &facts.intercept {
        environment.insert("TELEPRESENCE_INTERCEPT_ID".into(), id.clone());
    }
    if let Some(root) = root {
        let root = root.to_string_lossy().into_owned();
        environment.insert("TELEPRESENCE_ROOT".into(), root);
    }
    environment
}

/// Checks that the files which the flags name can be written, before anything is created.
///
/// # Errors
/// One cannot; the text names its flag and has the remedy.
pub(crate) fn check(flags: &ContainerFlags) -> Result<(), Failure> {
    let files = [
        ("--env-file", &flags.env_file),
        ("--env-json", &flags.env_json),
    ];
    for (flag, path) in files {
        let Some(path) = path else {
            continue;
        };
        check_place(path)
            .map_err(|why| Failure::Failed(format!("{flag} {}: {why}", path.display())))?;
    }
    match &flags.env_file {
        Some(path) if flags.env_json.as_ref() == Some(path) => Err(Failure::Usage(format!(
            "--env-file and --env-json both name {}; name two files",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Checks that a file can be made at a path, in the place of a file or link that is there.
fn check_place(path: &Path) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path);
    local::check_writable(folder).map_err(|why| {
        let quoted = folder.display();
        match folder.symlink_metadata() {
            Err(_) => format!("{why}; mkdir -p {quoted} makes it"),
            Ok(_) => format!("{why}; name a file in a folder of yours"),
        }
    })?;
    let found = fs::metadata(path);
    let is_folder = found.as_ref().is_ok_and(fs::Metadata::is_dir);
    if is_folder || path.as_os_str().as_bytes().ends_with(b"/") {
        return Err("that is a folder; name a file in it".into());
    }
    // Links such as /dev/stdout belong to the system.
    let is_of_system = fs::read_link(path).is_ok_and(|target| target.starts_with("/proc"));
    if is_of_system || found.is_ok_and(|found| !found.is_file()) {
        return Err("that is a device or a pipe, which a file would replace; name a file".into());
    }
    Ok(())
}

/// Writes an environment to the file that `--env-file` names.
pub(crate) fn write_file(
    path: &Path,
    syntax: Syntax,
    environment: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    written("--env-file", path, &syntax.file(environment))
}

/// Writes an environment to the file that `--env-json` names.
pub(crate) fn write_json(
    path: &Path,
    environment: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let object = serde_json::Value::from_iter(environment.clone());
    written("--env-json", path, &format!("{object:#}\n"))
}

fn written(flag: &str, path: &Path, text: &str) -> Result<(), Failure> {
    write_secret(path, text)
        .map_err(|error| Failure::Failed(format!("{flag} {}: {error}", path.display())))
}

impl Syntax {
    /// Formats an environment. Names that a shell cannot have are left out.
    fn file(self, environment: &BTreeMap<String, String>) -> String {
        let is_shell = !matches!(self.language, Language::Docker | Language::Compose);
        let variables = environment.iter();
        let variables = variables.filter(|(name, _)| !is_shell || is_identifier(name));
        variables
            .map(|(name, value)| self.line(name, value) + "\n")
            .collect()
    }

    fn line(self, name: &str, value: &str) -> String {
        match (self.language, self.is_exported) {
            // Docker has no escapes; several lines are one, quoted.
            (Language::Docker, _) if value.contains('\n') => format!("{name}={value:?}"),
            (Language::Docker, _) => format!("{name}={value}"),
            (Language::Compose, _) => format!("{name}=\"{}\"", compose(value)),
            (Language::Sh, false) => format!("{name}='{}'", value.replace('\'', r"'\''")),
            (Language::Sh, true) => format!("export {name}='{}'", value.replace('\'', r"'\''")),
            (Language::Csh, false) => format!("set {name}='{}'", csh(value)),
            (Language::Csh, true) => format!("setenv {name} '{}'", csh(value)),
            (Language::PowerShell, false) => format!("${name}='{}'", value.replace('\'', "''")),
            (Language::PowerShell, true) => {
                format!("$Env:{name}='{}'", value.replace('\'', "''"))
            }
            (Language::Cmd, _) => format!("set \"{name}={}\"", value.replace('%', "%%")),
        }
    }
}

fn is_identifier(name: &str) -> bool {
    let letter = |c: char| c == '_' || c.is_ascii_alphabetic();
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

fn compose(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        match c {
            '\\' | '"' => text.extend(['\\', c]),
            '$' => text.push_str("$$"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            _ => text.push(c),
        }
    }
    text
}

fn csh(value: &str) -> String {
    let mut text = String::new();
    for c in value.chars() {
        match c {
            '\'' => text.push_str(r"'\''"),
            // History and line ends work inside of quotes, too.
            '!' | '\n' => text.extend(['\\', c]),
            _ => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "it's \"$a\" 100% c:\\d!";

    fn file(syntax: &str, variables: &[(&str, &str)]) -> String {
        let variables = variables.iter();
        let environment = variables.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        syntax
            .parse::<Syntax>()
            .unwrap()
            .file(&environment.collect())
    }

    #[test]
    fn each_syntax_quotes_in_its_way() {
        for (syntax, line) in [
            ("docker", r#"A=it's "$a" 100% c:\d!"#),
            ("compose", r#"A="it's \"$$a\" 100% c:\\d!""#),
            ("sh", r#"A='it'\''s "$a" 100% c:\d!'"#),
            ("sh:export", r#"export A='it'\''s "$a" 100% c:\d!'"#),
            ("csh", r#"set A='it'\''s "$a" 100% c:\d\!'"#),
            ("csh:export", r#"setenv A 'it'\''s "$a" 100% c:\d\!'"#),
            ("ps", r#"$A='it''s "$a" 100% c:\d!'"#),
            ("ps:export", r#"$Env:A='it''s "$a" 100% c:\d!'"#),
            ("cmd", r#"set "A=it's "$a" 100%% c:\d!""#),
        ] {
            assert_eq!(
                file(syntax, &[("A", VALUE)]),
                format!("{line}\n"),
                "{syntax}"
            );
        }
        assert_eq!(file("docker", &[("A", "1\n2")]), "A=\"1\\n2\"\n");
        assert_eq!(file("compose", &[("A", "1\n2")]), "A=\"1\\n2\"\n");
    }

    #[test]
    fn names_that_no_shell_can_have_are_left_out_there() {
        let variables = [("a.b", "1"), ("1x", "1"), ("ok_1", "1")];
        assert_eq!(file("sh", &variables), "ok_1='1'\n");
        assert_eq!(file("docker", &variables), "1x=1\na.b=1\nok_1=1\n");
    }

    #[test]
    fn a_shell_reads_back_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        let value = format!("{VALUE}\nsecond line");
        std::fs::write(&path, file("sh:export", &[("A", &value)])).unwrap();
        let shell = std::process::Command::new("sh")
            .args(["-c", ". \"$0\"; printenv A"])
            .arg(&path)
            .output();
        assert_eq!(
            String::from_utf8(shell.unwrap().stdout).unwrap(),
            value + "\n"
        );
    }

    #[test]
    fn unknown_syntaxes_are_refused_with_the_known_ones() {
        for wrong in ["", "bash", "docker:export", "sh:", "sh:set"] {
            let error = wrong.parse::<Syntax>().unwrap_err();
            assert!(error.contains("sh:export"), "{error}");
        }
    }

    #[test]
    fn the_machine_adds_where_things_are() {
        let mut facts = Facts {
            name: "web".into(),
            intercept: None,
            environment: [("COLOUR".into(), "blue".into())].into(),
            files: None,
            is_read_only: false,
        };
        assert_eq!(of(&facts, None), facts.environment);
        facts.intercept = Some("s:one".into());
        let all = of(&facts, Some(Path::new("/mnt/x")));
        let all: Vec<_> = all.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            all,
            [
                "COLOUR=blue",
                "TELEPRESENCE_INTERCEPT_ID=s:one",
                "TELEPRESENCE_ROOT=/mnt/x"
            ]
        );
    }
}
