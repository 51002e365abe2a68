//! Exports: the volumes of each container under `/tel_app_exports/<container>`, as stock clients
//! ask for them, and the mount policy of every path.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use traffic_proto::sidecar::MountPolicy;

use crate::files::confined::{self, Root};
use crate::files::path::normalised;

/// Directory under which clients find the containers.
pub const EXPORTS: &str = "/tel_app_exports";

/// A container whose volumes are exported.
#[derive(Clone, Debug, Default)]
pub struct ContainerVolumes {
    /// Last element of its mount point; the name of its export.
    pub name: String,
    /// Directory of the agent below which its volumes are mounted.
    pub mount_point: PathBuf,
    /// Mount paths as the app sees them, with their policies.
    pub mounts: Vec<(String, MountPolicy)>,
}

/// The exported volumes of one container.
#[derive(Debug)]
pub struct Export {
    /// Directories of the agent by the path at which the app sees them; `/` is the first.
    roots: Vec<(Vec<Vec<u8>>, Root)>,
    policies: Vec<(Vec<Vec<u8>>, MountPolicy)>,
}

/// All exports of the pod by name.
#[derive(Debug, Default)]
pub struct Exports(BTreeMap<Vec<u8>, Export>);

/// The place that a client's path names.
#[derive(Debug)]
pub(crate) enum Place<'e> {
    /// A directory that exists only as the parent of exports, with the names in it.
    Virtual(Vec<Vec<u8>>),
    /// A path below a root of an export.
    Real(Location<'e>),
    /// No export has this name.
    Missing,
}

/// A path below a root of an export.
#[derive(Clone, Debug)]
pub(crate) struct Location<'e> {
    export: &'e Export,
    prefix: &'e [Vec<u8>],
    pub(crate) root: &'e Root,
    /// Elements below the root, none of them `.` or `..`.
    pub(crate) below: Vec<Vec<u8>>,
    /// Names of further roots that lie in this directory.
    pub(crate) further: Vec<Vec<u8>>,
}

impl Exports {
    /// Opens the volumes of `containers`. `secrets` is the pod's `/var/run/secrets`: directories in
    /// it that no mount covers are exported with every container, as the original does.
    ///
    /// # Errors
    /// The kernel has no `openat2` (Linux 5.6), without which paths cannot be confined; or a mount
    /// point that exists cannot be opened.
    pub fn open(containers: &[ContainerVolumes], secrets: &Path) -> io::Result<Self> {
        let mut exports = BTreeMap::new();
        for container in containers {
            let export = Export::open(container, secrets)?;
            exports.insert(container.name.clone().into_bytes(), export);
        }
        Ok(Self(exports))
    }

    /// Finds the place of a path. `..` is taken off before the file system is asked.
    pub(crate) fn find(&self, path: &[u8]) -> Place<'_> {
        let elements = normalised(path);
        let top = EXPORTS.trim_start_matches('/').as_bytes();
        let mut rest = elements.into_iter();
        match rest.next() {
            None => return Place::Virtual(vec![top.to_vec()]),
            Some(first) if first != top => return Place::Missing,
            Some(_) => {}
        }
        let Some(name) = rest.next() else {
            return Place::Virtual(self.0.keys().cloned().collect());
        };
        match self.0.get(&name) {
            Some(export) => export.find(rest.collect()),
            None => Place::Missing,
        }
    }
}

impl Export {
    fn open(container: &ContainerVolumes, secrets: &Path) -> io::Result<Self> {
        let policies: Vec<_> = container
            .mounts
            .iter()
            .map(|(path, policy)| (normalised(path.as_bytes()), *policy))
            .collect();
        let mut roots = vec![(Vec::new(), Root::open_or_empty(&container.mount_point)?)];
        for entry in std::fs::read_dir(secrets).into_iter().flatten().flatten() {
            let name = entry.file_name().into_encoded_bytes();
            let inside = [b"var".to_vec(), b"run".to_vec(), b"secrets".to_vec(), name].to_vec();
            let covered = policies
                .iter()
                .any(|(mount, _)| inside.starts_with(mount) || mount.starts_with(&inside));
            if !covered && entry.path().is_dir() {
                roots.push((inside, Root::open_or_empty(&entry.path())?));
            }
        }
        Ok(Self { roots, policies })
    }

    fn find(&self, elements: Vec<Vec<u8>>) -> Place<'_> {
        let (prefix, root) = self
            .roots
            .iter()
            .filter(|(prefix, _)| elements.starts_with(prefix))
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or((&[][..], &self.roots[0].1), |(prefix, root)| {
                (&prefix[..], root)
            });
        let mut further: Vec<Vec<u8>> = self
            .roots
            .iter()
            .filter(|(other, _)| other.len() > elements.len() && other.starts_with(&elements))
            .filter_map(|(other, _)| other.get(elements.len()).cloned())
            .collect();
        further.dedup();
        let below = elements.get(prefix.len()..).unwrap_or_default().to_vec();
        Place::Real(Location {
            export: self,
            prefix,
            root,
            below,
            further,
        })
    }
}

impl Location<'_> {
    /// Policy of a file or directory by its place after all links have been followed: the one of
    /// the longest mount path that leads to it.
    pub(crate) fn policy_of(&self, found: &confined::Found) -> MountPolicy {
        let mut elements = self.prefix.to_vec();
        elements.extend(found.below_root(self.root));
        self.export
            .policies
            .iter()
            .filter(|(mount, _)| elements.starts_with(mount))
            .max_by_key(|(mount, _)| mount.len())
            .map_or(MountPolicy::Remote, |(_, policy)| *policy)
    }
}
