//! Secrets in use and their rotation: directories are watched and polled; a valid new pair replaces
//! the old one for later handshakes, and an invalid one is rejected with one log line while the
//! valid one stays.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use notify::{RecursiveMode, Watcher};

use crate::telemetry::metrics::Counter;
use crate::tls::secrets::annotations::PortPlan;
use crate::tls::secrets::secret;
use crate::tls::secrets::secret::{CertifiedPair, LoadedSecret, SecretSource, Want};
use traffic_proto::sync::lock;

/// Interval of polling directories even without events: overflows and network file systems lose
/// events, and a directory that does not exist yet cannot be watched. A poll is a handful of `stat`
/// calls.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Delay after an event: the writer may be between two files.
const SETTLE_DELAY: Duration = Duration::from_millis(100);
/// Delay before a rejected pair is read again: it may become valid by time, or permissions may
/// change without a trace in the file.
const RETRY_DELAY: Duration = Duration::from_secs(10);
const EXPIRY_WARNING_SECONDS: i64 = 7 * 24 * 3600;
const WARNING_INTERVAL_SECONDS: i64 = 24 * 3600;

/// One secret: the last valid content and the result of the last read.
#[derive(Debug)]
pub struct Store {
    source: SecretSource,
    want: Want,
    current: ArcSwapOption<LoadedSecret>,
    progress: Mutex<LoadProgress>,
    /// Valid contents loaded, including the first.
    pub loads: Counter,
    /// Contents rejected.
    pub refused: Counter,
}

#[derive(Debug, Default)]
struct LoadProgress {
    /// File state at the last read.
    seen: Option<u64>,
    /// The content last accepted or rejected.
    judged: Option<u64>,
    /// An invalid content that is read once more before it is rejected.
    suspect: Option<u64>,
    fault: Option<secret::Fault>,
    retry: Option<Instant>,
    warned: i64,
}

impl Store {
    /// Reads the secret at once; a fault is logged and kept (see [`Self::fault`]).
    #[must_use]
    pub fn open(source: SecretSource, want: Want) -> Arc<Self> {
        let store = Self {
            source,
            want,
            current: ArcSwapOption::empty(),
            progress: Mutex::default(),
            loads: Counter::default(),
            refused: Counter::default(),
        };
        // The first read is final: nothing is being written at start-up.
        store.read(store.look(), true);
        store.warn_of_expiry();
        Arc::new(store)
    }

    /// Returns the last valid content; `None` until there was one.
    #[must_use]
    pub fn current(&self) -> Option<Arc<LoadedSecret>> {
        self.current.load_full()
    }

    /// Returns the problem of the content on disk; `None` while that content is in use.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.lock().fault.as_ref().map(ToString::to_string)
    }

    /// Returns the secret's source.
    #[must_use]
    pub fn source(&self) -> &SecretSource {
        &self.source
    }

    /// Returns the end of validity of the certificate in use, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> Option<i64> {
        self.current
            .load()
            .as_ref()?
            .pair
            .as_ref()
            .map(|pair| pair.facts.not_after)
    }

    /// Reads the files if they changed. True asks for another check after [`SETTLE_DELAY`].
    pub fn check(&self) -> bool {
        let look = self.look();
        let due = {
            let progress = self.lock();
            progress.seen != Some(look)
                || progress.suspect.is_some()
                || progress.retry.is_some_and(|at| at <= Instant::now())
        };
        let again = due && self.read(look, false);
        self.warn_of_expiry();
        again
    }

    fn read(&self, look: u64, final_word: bool) -> bool {
        let content = self.content();
        let loaded = secret::load(&self.source, self.want, now());
        let mut progress = self.lock();
        progress.seen = Some(look);
        match loaded {
            Ok(loaded) => self.accept(&mut progress, content, loaded),
            Err(fault) => {
                let known =
                    progress.fault.as_ref() == Some(&fault) && progress.judged == Some(content);
                // A writer may be between two files, so a new fault counts only if the content is
                // unchanged at the next look.
                if !known && !final_word && progress.suspect != Some(content) {
                    progress.suspect = Some(content);
                    return true;
                }
                progress.suspect = None;
                progress.judged = Some(content);
                progress.retry = Some(Instant::now() + RETRY_DELAY);
                if !known {
                    self.refuse(&fault);
                    progress.fault = Some(fault);
                }
            }
        }
        false
    }

    fn accept(&self, progress: &mut LoadProgress, content: u64, loaded: LoadedSecret) {
        let same = progress.judged == Some(content) && progress.fault.is_none();
        progress.suspect = None;
        progress.judged = Some(content);
        progress.retry = None;
        progress.fault = None;
        // The same content was accepted before: only its metadata changed.
        if same {
            return;
        }
        let loaded = Arc::new(loaded);
        progress.warned = 0;
        self.current.store(Some(Arc::clone(&loaded)));
        self.loads.inc();
        let (secret, annotation) = (&self.source.value, &self.source.annotation);
        match &loaded.pair {
            Some(CertifiedPair { facts, .. }) => tracing::info!(
                secret,
                annotation,
                serial = %facts.serial,
                subject = %facts.subject,
                not_after = facts.not_after,
                "certificate in use"
            ),
            None => tracing::info!(secret, annotation, "CA in use"),
        }
    }

    fn refuse(&self, fault: &secret::Fault) {
        self.refused.inc();
        if self.current.load().is_some() {
            tracing::warn!("{fault}; the last good certificate stays in use");
        } else {
            tracing::error!(
                "{fault}; until then TLS of the ports that name it is relayed unchanged"
            );
        }
    }

    fn warn_of_expiry(&self) {
        let Some(not_after) = self.not_after() else {
            return;
        };
        let now = now();
        let mut progress = self.lock();
        if not_after - now > EXPIRY_WARNING_SECONDS
            || now - progress.warned < WARNING_INTERVAL_SECONDS
        {
            return;
        }
        progress.warned = now;
        let problem = if not_after > now {
            "the certificate expires soon: renew it"
        } else {
            "the certificate has expired"
        };
        tracing::warn!(
            secret = %self.source.value,
            annotation = %self.source.annotation,
            seconds_left = not_after - now,
            "{problem}"
        );
    }

    /// Fingerprint of the files' metadata: enough to notice a swapped symlink, a rename or a write.
    fn look(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for path in self.paths() {
            match std::fs::metadata(&path) {
                Ok(m) => (
                    m.dev(),
                    m.ino(),
                    m.len(),
                    m.mtime(),
                    m.mtime_nsec(),
                    // A change of permissions shows in ctime alone.
                    m.ctime(),
                    m.ctime_nsec(),
                )
                    .hash(&mut hasher),
                Err(error) => error.raw_os_error().hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    fn content(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for path in self.paths() {
            secret::read_file(&path).ok().hash(&mut hasher);
        }
        hasher.finish()
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.source
            .dirs
            .iter()
            .flat_map(|dir| secret::file_names().map(|name| dir.join(name)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LoadProgress> {
        lock(&self.progress)
    }
}

/// Returns true if each of these secrets has been valid at least once.
#[must_use]
pub fn all_good(stores: &[Arc<Store>]) -> bool {
    stores.iter().all(|store| store.current.load().is_some())
}

/// All secrets of the agent, each opened once however many ports name it.
#[derive(Debug, Default)]
pub struct Stores {
    known: HashMap<(Vec<PathBuf>, Want), Arc<Store>>,
}

impl Stores {
    /// Returns the store of a source; opens it on first use.
    pub fn open(&mut self, source: &SecretSource, want: Want) -> Arc<Store> {
        let key = (source.dirs.clone(), want);
        Arc::clone(
            self.known
                .entry(key)
                .or_insert_with(|| Store::open(source.clone(), want)),
        )
    }

    /// Opens all secrets that a port's plan names, in both directions.
    pub fn all_of(&mut self, plan: &PortPlan) -> Vec<Arc<Store>> {
        let pairs = plan
            .terminating
            .iter()
            .chain(&plan.originating)
            .map(|source| (source, Want::Pair));
        let cas = plan.caller_ca.iter().map(|(source, _)| (source, Want::Ca));
        pairs
            .chain(cas)
            .map(|(source, want)| self.open(source, want))
            .collect()
    }

    /// Iterates over all stores.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Store>> {
        self.known.values()
    }

    /// Starts watching; dropping the returned guard stops it. `None` if there is no secret.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn watch(&self) -> std::io::Result<Option<FolderWatch>> {
        if self.known.is_empty() {
            return Ok(None);
        }
        FolderWatch::start(self.known.values().cloned().collect()).map(Some)
    }
}

/// Guard of the thread that watches the secrets; stops it when dropped. Files are read there, never
/// on a thread that carries traffic.
#[derive(Debug)]
pub struct FolderWatch {
    tx: mpsc::SyncSender<Wake>,
    thread: Option<JoinHandle<()>>,
}

/// File events that wait to be looked at; more tell nothing new.
const MAX_WAKES: usize = 64;

enum Wake {
    Event,
    Stop,
}

impl FolderWatch {
    /// Watches `stores`.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(stores: Vec<Arc<Store>>) -> std::io::Result<Self> {
        let (tx, rx) = mpsc::sync_channel(MAX_WAKES);
        let events_tx = tx.clone();
        let thread = std::thread::Builder::new()
            .name("secrets".into())
            .spawn(move || run(&stores, events_tx, &rx))?;
        Ok(Self {
            tx,
            thread: Some(thread),
        })
    }
}

impl Drop for FolderWatch {
    fn drop(&mut self) {
        // A thread that has ended already needs no message.
        let _ = self.tx.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(stores: &[Arc<Store>], tx: mpsc::SyncSender<Wake>, rx: &mpsc::Receiver<Wake>) {
    // An event only makes the next check come sooner: its kind and errors do not matter, and with a
    // full queue a check is due anyway.
    let mut watcher = notify::recommended_watcher(move |_| drop(tx.try_send(Wake::Event)))
        .inspect_err(
            |error| tracing::debug!(%error, "no file events: secrets are polled every second"),
        )
        .ok();
    let dirs = stores.iter().flat_map(|store| store.source.dirs.iter());
    for dir in dirs {
        if let Some(Err(error)) = watcher
            .as_mut()
            .map(|w| w.watch(dir, RecursiveMode::NonRecursive))
        {
            tracing::debug!(dir = %dir.display(), %error, "not watched: polled every second");
        }
    }
    let mut pause = POLL_INTERVAL;
    loop {
        match rx.recv_timeout(pause) {
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Wake::Event) => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a thread of its own; one rotation is many events"
                )]
                std::thread::sleep(SETTLE_DELAY);
                while let Ok(wake) = rx.try_recv() {
                    if matches!(wake, Wake::Stop) {
                        return;
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let again = stores
            .iter()
            .fold(false, |again, store| store.check() | again);
        pause = if again { SETTLE_DELAY } else { POLL_INTERVAL };
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    // A clock before 1970 makes every certificate "not yet valid", which is what it looks like.
    i64::try_from(traffic_proto::clock::now_unix()).unwrap_or(i64::MAX)
}
