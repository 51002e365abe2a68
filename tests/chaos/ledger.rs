//! Accounts of every request: who asked on whose behalf, where it arrived, and what came back.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use traffic_proto::sync::lock;

use crate::callers::Kind;

/// Problems beyond these are not kept.
const MAX_PROBLEMS: usize = 20;
/// Happenings that are kept.
const HISTORY: usize = 60;

/// A server that requests may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The app in the pod.
    App,
    /// The workstation with this seat.
    Workstation(usize),
}

/// Expectation for a developer's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The intercept is in force and everything on its way works.
    Here,
    /// There is no intercept.
    Away,
    /// A change is under way: requests reach the workstation or the app.
    Changing,
    /// A fault is under way: the same, or they fail.
    Unsettled,
}

/// Standing of a seat, with the number of changes so far, by which two looks are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look(pub(crate) Standing, pub(crate) u64);

/// A request that is under way.
pub(crate) struct Asked {
    pub(crate) id: u64,
    seat: Option<usize>,
    look: Option<Look>,
    what: &'static str,
    is_whole_port: bool,
    began: Instant,
}

#[derive(Default)]
pub(crate) struct Ledger {
    next: AtomicU64,
    arrivals: Mutex<HashMap<u64, Vec<Place>>>,
    standings: Mutex<HashMap<usize, Look>>,
    /// Number of the last change of each seat that was to or from a fault.
    faults: Mutex<HashMap<usize, u64>>,
    /// Answers of a seat's workstation in a row since its standing changed.
    streaks: Mutex<HashMap<usize, u64>>,
    answers: Mutex<BTreeMap<(&'static str, Place), u64>>,
    /// Requests whose failure a fault excused.
    excused: Mutex<HashSet<u64>>,
    repeated: AtomicU64,
    /// Connections and datagrams of a whole port that the app got because the workstation's dial took
    /// longer than usual: anybody's, so they do not wait for it.
    impatient: AtomicU64,
    /// The longest time to the answer of a request that no developer asked for, us.
    longest: AtomicU64,
    problems: Mutex<Vec<String>>,
    /// What happened last, with its time of day, for comparison with logs.
    history: Mutex<VecDeque<String>>,
}

impl Ledger {
    /// Opens the account of a request; `seat` is the developer's on whose behalf it is sent.
    pub(crate) fn ask(&self, kind: Kind, seat: Option<usize>) -> Asked {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.arrivals).insert(id, Vec::new());
        Asked {
            id,
            seat,
            look: seat.map(|seat| self.look(seat)),
            what: kind.name(),
            is_whole_port: kind.is_whole_port(),
            began: Instant::now(),
        }
    }

    /// Notes that a server has received a request.
    pub(crate) fn arrived(&self, id: u64, place: Place) {
        match lock(&self.arrivals).get_mut(&id) {
            Some(places) => places.push(place),
            // A workstation that stood still may read it long after its caller has given up.
            None if place != Place::App && lock(&self.excused).contains(&id) => {}
            None => self.problem(format!(
                "request {id} arrived at {place:?} behind its answer"
            )),
        }
    }

    /// Closes the account of a request that was answered.
    pub(crate) fn answered(&self, asked: &Asked, by: Place) {
        let places = self.close(asked);
        let expected = self.expected(asked);
        if places != [by] {
            self.problem(format!(
                "{} was answered by {by:?}, and arrived at {places:?}",
                asked.describe()
            ));
        } else if by == Place::App && asked.is_whole_port && expected != [Place::App] {
            if !expected.contains(&by) {
                self.impatient.fetch_add(1, Ordering::Relaxed);
            }
        } else if !expected.contains(&by) {
            self.problem(format!(
                "{} was answered by {by:?} instead of {expected:?}",
                asked.describe()
            ));
        }
        *lock(&self.answers).entry((asked.what, by)).or_default() += 1;
        self.follow(asked, by != Place::App);
        if asked.seat.is_none() {
            let took = u64::try_from(asked.began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.longest.fetch_max(took, Ordering::Relaxed);
        }
    }

    /// Closes the account of a request that failed, which only a fault at its developer excuses.
    pub(crate) fn failed(&self, asked: &Asked, error: &dyn std::fmt::Display) {
        let places = self.close(asked);
        let is_excused = asked.seat.is_some_and(|seat| {
            let fault = lock(&self.faults).get(&seat).copied().unwrap_or_default();
            asked
                .look
                .is_some_and(|look| look.0 == Standing::Unsettled || fault > look.1)
        });
        if !is_excused || places.len() > 1 {
            self.problem(format!(
                "{} failed after {:?}, having arrived at {places:?}: {error}",
                asked.describe(),
                asked.began.elapsed()
            ));
        } else {
            lock(&self.excused).insert(asked.id);
            self.follow(asked, false);
        }
    }

    /// Closes the account of a request that nobody has processed and that is sent once more.
    pub(crate) fn repeat(&self, asked: &Asked) {
        let places = self.close(asked);
        if !places.is_empty() {
            self.problem(format!(
                "{} was handed back, and arrived at {places:?}",
                asked.describe()
            ));
        }
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns true if more of a whole port than one in a hundred did not wait for the workstation.
    pub(crate) fn is_impatient(&self) -> bool {
        let all: u64 = lock(&self.answers)
            .iter()
            .filter(|((_, by), _)| *by != Place::App)
            .map(|(_, count)| count)
            .sum();
        self.impatient.load(Ordering::Relaxed) > all / 100
    }

    /// Returns what is expected of a seat's requests now.
    pub(crate) fn look(&self, seat: usize) -> Look {
        let standings = lock(&self.standings);
        let begin = Look(Standing::Unsettled, 0);
        standings.get(&seat).copied().unwrap_or(begin)
    }

    /// Changes what is expected of a seat's requests.
    pub(crate) fn stand(&self, seat: usize, standing: Standing) {
        let mut standings = lock(&self.standings);
        let number = standings.get(&seat).map_or(0, |look| look.1);
        standings.insert(seat, Look(standing, number + 1));
        if standing == Standing::Unsettled {
            lock(&self.faults).insert(seat, number + 1);
        }
        self.note(&format!("seat {seat} is {standing:?}"));
        lock(&self.streaks).insert(seat, 0);
    }

    /// Begins to count answers in a row anew.
    pub(crate) fn restart_streak(&self, seat: usize) {
        let standing = self.look(seat).0;
        self.stand(seat, standing);
    }

    /// Returns the number of answers of a seat's workstation in a row since its standing changed.
    pub(crate) fn streak(&self, seat: usize) -> u64 {
        lock(&self.streaks).get(&seat).copied().unwrap_or_default()
    }

    fn follow(&self, asked: &Asked, reached: bool) {
        let Some(seat) = asked.seat else { return };
        let standings = lock(&self.standings);
        if asked.look == standings.get(&seat).copied() {
            let mut streaks = lock(&self.streaks);
            let streak = streaks.entry(seat).or_default();
            *streak = if reached { *streak + 1 } else { 0 };
        }
    }

    /// Returns true once the app and the workstations of so many seats have answered.
    pub(crate) fn everywhere(&self, seats: usize) -> bool {
        let answers = lock(&self.answers);
        let answered = |place| answers.keys().any(|(_, by)| *by == place);
        answered(Place::App) && (0..seats).all(|seat| answered(Place::Workstation(seat)))
    }

    /// Notes an event.
    pub(crate) fn note(&self, event: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let (minute, second) = (now.as_secs() / 60 % 60, now.as_secs() % 60);
        let mut history = lock(&self.history);
        history.push_back(format!(
            "{minute:02}:{second:02}.{:03} {event}",
            now.subsec_millis()
        ));
        if history.len() > HISTORY {
            history.pop_front();
        }
    }

    /// Returns the last events, one a line.
    pub(crate) fn history(&self) -> String {
        lock(&self.history)
            .iter()
            .fold(String::new(), |text, event| text + event + "\n")
    }

    pub(crate) fn problem(&self, problem: String) {
        self.note(&problem);
        let mut problems = lock(&self.problems);
        if problems.len() < MAX_PROBLEMS {
            problems.push(problem);
        }
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        lock(&self.problems).clone()
    }

    /// Returns the counts in a few lines.
    pub(crate) fn summary(&self) -> String {
        let answers = lock(&self.answers);
        let (mut app, mut workstations) = (BTreeMap::new(), BTreeMap::new());
        for ((what, by), count) in &*answers {
            let side = match by {
                Place::App => &mut app,
                Place::Workstation(_) => &mut workstations,
            };
            *side.entry(*what).or_insert(0) += count;
        }
        format!(
            "{} requests; by the app {app:?}, by workstations {workstations:?}; excused {}, \
             repeated {}, impatient {}; longest of nobody's {:?}",
            answers.values().sum::<u64>(),
            lock(&self.excused).len(),
            self.repeated.load(Ordering::Relaxed),
            self.impatient.load(Ordering::Relaxed),
            Duration::from_micros(self.longest.load(Ordering::Relaxed)),
        )
    }

    fn expected(&self, asked: &Asked) -> Vec<Place> {
        let Some(seat) = asked.seat else {
            return vec![Place::App];
        };
        let now = self.look(seat);
        match now.0 {
            Standing::Here if asked.look == Some(now) => vec![Place::Workstation(seat)],
            Standing::Away if asked.look == Some(now) => vec![Place::App],
            _ => vec![Place::App, Place::Workstation(seat)],
        }
    }

    fn close(&self, asked: &Asked) -> Vec<Place> {
        lock(&self.arrivals).remove(&asked.id).unwrap_or_default()
    }
}

impl Asked {
    fn describe(&self) -> String {
        let Self { id, seat, what, .. } = self;
        format!("{what} {id} of seat {seat:?} ({:?})", self.look)
    }
}
