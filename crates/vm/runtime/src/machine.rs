//! Which request is legal in which state, and what an event makes of it.
//!
//! Pure: no locks, no clock, no I/O. Everything that changes a VM asks here first.
//!
//! ```text
//! create → CREATED → start → RUNNING ⇄ PAUSED → stop → STOPPED → start | delete   (PAUSED → stop too)
//! guest powers off → STOPPED;  VMM dies or host reboots → ERROR → reconcile → start | delete
//! ```

use serde::{Deserialize, Serialize};

/// What a VM is, as the store records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// It has a disk and has never run.
    Created,
    /// Its VMM runs.
    Running,
    /// Its VMM is there and its processors stand still.
    Paused,
    /// It ended as it should.
    Stopped,
    /// It ended as it should not, and has not been looked at since.
    Error,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Created, Self::Running, Self::Paused, Self::Stopped, Self::Error];

    /// The name in the store and in `--json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "CREATED",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Stopped => "STOPPED",
            Self::Error => "ERROR",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether a VMM belongs to this state.
    pub fn has_vmm(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// What somebody wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Boot it.
    Start,
    /// Halt its processors.
    Pause,
    /// Let its processors go on.
    Resume,
    /// End its VMM.
    Stop,
    /// Run something inside it, or move a file.
    Use,
    /// Clear up after it died.
    Reconcile,
    /// Remove it.
    Delete,
}

impl Request {
    /// Every request.
    pub const ALL: [Self; 7] =
        [Self::Start, Self::Pause, Self::Resume, Self::Stop, Self::Use, Self::Reconcile, Self::Delete];

    /// The verb, as in "cannot start".
    pub fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Use => "use",
            Self::Reconcile => "reconcile",
            Self::Delete => "delete",
        }
    }
}

/// What happened to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Its VMM runs and its agent answered.
    Started,
    /// Its processors stand still.
    Paused,
    /// Its processors go on.
    Resumed,
    /// It was stopped on request, or the guest powered itself off.
    Ended,
    /// Its VMM or its shim ended unasked, or the host restarted.
    Died,
    /// What it left behind is cleared up.
    Reconciled,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 6] =
        [Self::Started, Self::Paused, Self::Resumed, Self::Ended, Self::Died, Self::Reconciled];
}

/// What to do about a legal request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Do it.
    Proceed,
    /// Nothing: it is so already.
    Already,
}

/// Why a request is not legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is {}: {reason}", state.name())]
pub struct Refusal {
    /// The state it is in.
    pub state: State,
    /// What stands against the request, and what to do instead.
    pub reason: &'static str,
}

/// Decides about a request.
pub fn request(state: State, request: Request) -> Result<Answer, Refusal> {
    use Answer::{Already, Proceed};
    let refuse = |reason| Err(Refusal { state, reason });
    match (request, state) {
        (Request::Start, State::Created | State::Stopped) => Ok(Proceed),
        (Request::Start, State::Running) => Ok(Already),
        (Request::Start, State::Paused) => refuse("resume it instead"),
        (Request::Start, State::Error) => refuse("its last run broke off; `vm reconcile` clears up after it"),

        (Request::Pause, State::Running) => Ok(Proceed),
        (Request::Pause, State::Paused) => Ok(Already),
        (Request::Resume, State::Paused) => Ok(Proceed),
        (Request::Resume, State::Running) => Ok(Already),
        (Request::Pause | Request::Resume, _) => refuse("it does not run"),

        (Request::Stop, State::Running | State::Paused) => Ok(Proceed),
        (Request::Stop, State::Created | State::Stopped) => Ok(Already),
        (Request::Stop, State::Error) => refuse("it has ended; `vm reconcile` clears up after it"),

        (Request::Use, State::Running) => Ok(Proceed),
        (Request::Use, State::Paused) => refuse("resume it first"),
        (Request::Use, _) => refuse("start it first"),

        (Request::Reconcile, State::Error) => Ok(Proceed),
        (Request::Reconcile, _) => Ok(Already),

        (Request::Delete, State::Created | State::Stopped) => Ok(Proceed),
        (Request::Delete, State::Running | State::Paused) => refuse("stop it first, or use --force"),
        (Request::Delete, State::Error) => {
            refuse("its last run broke off; `vm reconcile` clears up after it")
        }
    }
}

/// The state after an event, or nothing where the event cannot happen in that state.
pub fn event(state: State, event: Event) -> Option<State> {
    match (event, state) {
        (Event::Started, State::Created | State::Stopped) => Some(State::Running),
        (Event::Paused, State::Running) => Some(State::Paused),
        (Event::Resumed, State::Paused) => Some(State::Running),
        (Event::Ended, State::Running | State::Paused) => Some(State::Stopped),
        (Event::Died, State::Running | State::Paused) => Some(State::Error),
        (Event::Reconciled, State::Error) => Some(State::Stopped),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_round_trip() {
        for state in State::ALL {
            assert_eq!(State::from_name(state.name()), Some(state));
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{}\"", state.name()));
        }
        assert_eq!(State::from_name("running"), None);
    }

    #[test]
    fn every_state_is_reached_from_created() {
        let mut reached = vec![State::Created];
        let mut next = 0;
        while let Some(&state) = reached.get(next) {
            next += 1;
            for after in Event::ALL.into_iter().filter_map(|happened| event(state, happened)) {
                if !reached.contains(&after) {
                    reached.push(after);
                }
            }
        }
        assert_eq!(reached.len(), State::ALL.len());
    }

    #[test]
    fn stop_is_idempotent() {
        assert_eq!(request(State::Stopped, Request::Stop), Ok(Answer::Already));
        assert_eq!(request(State::Created, Request::Stop), Ok(Answer::Already));
    }

    #[test]
    fn nothing_created_comes_back() {
        for state in State::ALL {
            for happened in Event::ALL {
                assert_ne!(event(state, happened), Some(State::Created));
            }
        }
    }

    /// The event that a granted request leads to.
    fn outcome(granted: Request) -> Option<Event> {
        match granted {
            Request::Start => Some(Event::Started),
            Request::Pause => Some(Event::Paused),
            Request::Resume => Some(Event::Resumed),
            Request::Stop => Some(Event::Ended),
            Request::Reconcile => Some(Event::Reconciled),
            Request::Use | Request::Delete => None,
        }
    }

    proptest! {
        #[test]
        fn a_granted_request_has_an_event_and_a_repeated_one_is_already_so(
            steps in prop::collection::vec((0usize..7, any::<bool>()), 1..64)
        ) {
            let mut state = State::Created;
            for (index, dies) in steps {
                let wanted = Request::ALL[index];
                match request(state, wanted) {
                    Ok(Answer::Proceed) => if let Some(happened) = outcome(wanted) {
                        let after = event(state, happened);
                        prop_assert!(after.is_some(), "{wanted:?} granted in {state:?} leads nowhere");
                        state = after.unwrap();
                        prop_assert_eq!(request(state, wanted), Ok(Answer::Already));
                    },
                    Ok(Answer::Already) => {}
                    Err(refusal) => {
                        prop_assert_eq!(refusal.state, state);
                        prop_assert!(!refusal.reason.is_empty());
                        if let Some(happened) = outcome(wanted) {
                            prop_assert_eq!(event(state, happened), None, "{:?} refused for nothing", wanted);
                        }
                    }
                }
                if dies {
                    prop_assert_eq!(event(state, Event::Died).is_some(), state.has_vmm());
                    state = event(state, Event::Died).unwrap_or(state);
                }
                // Only what has no VMM may be deleted, and an error is looked at first.
                if request(state, Request::Delete).is_ok() {
                    prop_assert!(!state.has_vmm() && state != State::Error);
                }
            }
        }
    }
}
