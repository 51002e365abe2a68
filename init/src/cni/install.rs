//! Installation of the CNI plugin on a node, by a DaemonSet that mounts the node's folders: the
//! program is copied beside the other plugins and added to the end of the list of plugins.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::Error;
use crate::log::Log;
use crate::signals;

/// Name of the plugin: its file, and its type in configurations.
const NAME: &str = "agent-init";
/// Time between two looks at the configuration, which the network's own installer may write anew.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Text of `cni-install --help`.
const HELP: &str = "\
agent-init cni-install: installs the CNI plugin on the node, and keeps it installed

Usage: agent-init cni-install [OPTIONS]

  --bin-dir DIR    folder of the node's plugins (/host/opt/cni/bin)
  --conf-dir DIR   folder of the node's CNI configuration (/host/etc/cni/net.d)
  --options JSON   keys of the plugin's configuration: agentGid, backend, excludeInboundPorts,
                   excludeInboundCidrs, excludeUids, excludeGids, meshDialSubnets
  --once           end when it is installed
  --remove         take it out of the configuration and away, and end
";

/// Task on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Install {
    programs: PathBuf,
    configurations: PathBuf,
    options: Value,
    once: bool,
    remove: bool,
}

impl Install {
    /// Reads the words behind `cni-install`; none when they ask for help.
    pub fn parse(words: &[String]) -> Result<Option<Self>, Error> {
        let mut install = Self {
            programs: "/host/opt/cni/bin".into(),
            configurations: "/host/etc/cni/net.d".into(),
            options: json!({}),
            once: false,
            remove: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (flag, given) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let mut value = || {
                given
                    .clone()
                    .or_else(|| words.next().cloned())
                    .ok_or_else(|| Error::Usage(format!("{flag}: needs a value")))
            };
            match flag {
                "--bin-dir" => install.programs = value()?.into(),
                "--conf-dir" => install.configurations = value()?.into(),
                "--options" => install.options = options(&value()?)?,
                "--once" => install.once = true,
                "--remove" => install.remove = true,
                "-h" | "--help" => return Ok(None),
                _ => {
                    let text = format!("cni-install {word}: no such option or argument");
                    return Err(Error::Usage(text));
                }
            }
        }
        Ok(Some(install))
    }

    /// Text of the help.
    pub fn help() -> &'static str {
        HELP
    }

    /// Installs or removes the plugin, and keeps it installed until a signal comes.
    pub fn run(&self, log: &Log<'_>) -> Result<u8, Error> {
        if self.remove {
            // Out of the configuration first: a list with a plugin that is missing starts no pod.
            self.configure(log)?;
            let program = self.programs.join(NAME);
            return match fs::remove_file(&program) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(failed(&program, &error))
                }
                _ => Ok(0),
            };
        }
        self.copy_program()?;
        self.configure(log)?;
        while !self.once && waited(LOOK_INTERVAL) {
            if let Err(error) = self.configure(log) {
                log.warning(&error.to_string());
            }
        }
        Ok(0)
    }

    fn copy_program(&self) -> Result<(), Error> {
        let program = self.programs.join(NAME);
        let bytes = fs::read("/proc/self/exe").map_err(|error| failed(&program, &error))?;
        replace(&program, &bytes, 0o755)
    }

    /// Brings the list of plugins that the runtime uses in order.
    fn configure(&self, log: &Log<'_>) -> Result<(), Error> {
        let path = self.configuration()?;
        let text = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        let plugin = (!self.remove).then(|| self.plugin());
        let changed = with_plugin(&text, plugin)
            .map_err(|problem| Error::Config(format!("{}: {problem}", path.display())))?;
        if let Some(changed) = changed {
            let mode = fs::metadata(&path).map_or(0o644, |it| it.permissions().mode() & 0o777);
            replace(&path, changed.as_bytes(), mode)?;
            let what = if self.remove {
                "took the plugin out of"
            } else {
                "added the plugin to"
            };
            log.info(&format!("{what} {}", path.display()));
        }
        Ok(())
    }

    fn plugin(&self) -> Value {
        let mut plugin = json!({
            "type": NAME,
            "capabilities": { super::call::POD_ANNOTATIONS: true },
        });
        for (key, value) in self.options.as_object().into_iter().flatten() {
            plugin[key] = value.clone();
        }
        plugin
    }

    /// File that the runtime uses: the first by name.
    fn configuration(&self) -> Result<PathBuf, Error> {
        let folder = &self.configurations;
        let entries = fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
        let is_configuration = |path: &PathBuf| {
            let ending = path.extension().and_then(|it| it.to_str());
            matches!(ending, Some("conf" | "conflist" | "json"))
        };
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(is_configuration)
            .collect();
        paths.sort();
        paths.into_iter().next().ok_or_else(|| {
            Error::Config(format!(
                "{}: holds no CNI configuration; mount the node's folder there, and install the \
                 network first",
                folder.display()
            ))
        })
    }
}

fn options(text: &str) -> Result<Value, Error> {
    match serde_json::from_str(text) {
        Ok(Value::Object(options)) => Ok(Value::Object(options)),
        _ => Err(Error::Usage(format!(
            "--options {text}: is no JSON object; write it like {{\"excludeUids\":[1337]}}"
        ))),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::Config(format!(
        "{}: {error}; mount the node's folder there, and run as root",
        path.display()
    ))
}

/// Writes a file in one step, so that no runtime meets half of it.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    // No runtime takes a file of this name for a configuration or a plugin.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&new)
        .and_then(|mut file| {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|error| failed(path, &error))
}

/// Waits. Says whether the time passed without a signal.
fn waited(time: Duration) -> bool {
    let start = std::time::Instant::now();
    while start.elapsed() < time {
        if signals::received().is_some() {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    signals::received().is_none()
}

/// Puts `plugin`, or none, at the end of a list of plugins; none when the list is so already.
fn with_plugin(text: &str, plugin: Option<Value>) -> Result<Option<String>, String> {
    let mut list: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else {
        return Err(
            "holds one plugin and no list; write it as a list with the key plugins, in a file \
             that ends with .conflist"
                .to_owned(),
        );
    };
    let before = plugins.clone();
    plugins.retain(|it| it["type"] != NAME);
    plugins.extend(plugin);
    if *plugins == before {
        return Ok(None);
    }
    Ok(Some(format!("{list:#}\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;

    fn install(dir: &Path, words: &[&str]) -> Result<u8, Error> {
        let folder = |flag: &str, name: &str| format!("{flag}={}", dir.join(name).display());
        let mut all = vec![folder("--bin-dir", "bin"), folder("--conf-dir", "net.d")];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        let mut out = Vec::new();
        let log = Log::new(&mut out);
        Install::parse(&all)?.unwrap().run(&log)
    }

    #[test]
    fn the_plugin_is_last_in_the_first_list_once_and_goes_again() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "net.d"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let list = dir.path().join("net.d/10-pods.conflist");
        fs::write(&list, LIST).unwrap();
        fs::write(dir.path().join("net.d/20-other.conflist"), LIST).unwrap();
        let read =
            || -> Value { serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap() };
        for options in ["{}", r#"{"excludeUids":[1337]}"#] {
            for _ in 0..2 {
                install(dir.path(), &["--once", "--options", options]).unwrap();
                let plugins = read()["plugins"].as_array().unwrap().clone();
                assert_eq!(plugins.len(), 3);
                assert_eq!(plugins[2]["type"], "agent-init");
            }
        }
        assert_eq!(read()["plugins"][2]["excludeUids"][0], 1337);
        let program = dir.path().join("bin/agent-init");
        assert_eq!(
            fs::metadata(&program).unwrap().permissions().mode() & 0o777,
            0o755
        );
        install(dir.path(), &["--remove"]).unwrap();
        let untouched: Value = serde_json::from_str(LIST).unwrap();
        assert_eq!(read(), untouched);
        assert!(!program.exists());
        let other = fs::read_to_string(dir.path().join("net.d/20-other.conflist")).unwrap();
        assert_eq!(other, LIST);
    }

    #[test]
    fn faults_name_the_file_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["bin", "net.d"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let message = |words: &[&str]| install(dir.path(), words).unwrap_err().to_string();
        assert!(message(&["--once"]).contains("no CNI configuration"));
        let single = dir.path().join("net.d/10-one.conf");
        fs::write(&single, r#"{"type":"bridge"}"#).unwrap();
        let text = message(&["--once"]);
        assert!(
            text.contains("10-one.conf") && text.contains(".conflist"),
            "{text}"
        );
        assert!(message(&["--options", "[]"]).contains("JSON object"));
        assert!(message(&["--twice"]).contains("--twice"));
    }
}
