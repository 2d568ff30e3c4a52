//! What is done for one client.

use vmwright_nbd::{Command, Ended, Negotiated, Observer, Session, SessionReport, Transport, negotiate};

use super::event::{Cause, Event};
use super::serve::Shared;
use super::wire::Wire;
use crate::Error;
use crate::error::Reason;

/// Serves one client until it has gone.
pub(super) fn serve(shared: &Shared<'_>, client: u64, wire: &Wire) {
    let watch = Watch { shared, client, export: "" };
    let cause = match negotiate(wire, &shared.exports, &watch) {
        Ok(Negotiated::Chosen(session)) => match wire.negotiated(shared.config.limits.idle) {
            Ok(()) => return serve_export(shared, client, wire, &session),
            Err(error) => Cause::Host(error),
        },
        Ok(Negotiated::Aborted | Negotiated::HungUp) => Cause::Looked,
        Err(error) => Cause::Failed(error),
    };
    wire.close();
    shared.config.tell(&Event::Gone { client, cause });
}

fn serve_export(shared: &Shared<'_>, client: u64, wire: &Wire, session: &Session) {
    let export = session.export().name();
    let encrypted = wire.encryption() == vmwright_nbd::Encryption::Active;
    shared.config.tell(&Event::Serving { client, export, encrypted });
    shared.note_use();
    let watch = Watch { shared, client, export };
    let report = session.run(wire, &shared.config.limits.session, &watch);
    wire.close();
    // Not every client flushes before it goes, and none that died did.
    if report.changed
        && let Err(source) = session.export().disk().flush()
    {
        let error = Error::from(Reason::Flush { export: export.to_owned(), source });
        shared.config.tell(&Event::NotFlushed { client, error: &error });
        shared.note_failure(error);
    }
    shared.count(&report);
    shared.config.tell(&Event::Served { client, export, report: &report });
}

/// The server's eyes on one connection.
struct Watch<'a> {
    shared: &'a Shared<'a>,
    client: u64,
    export: &'a str,
}

impl Observer for Watch<'_> {
    fn is_stopping(&self) -> bool {
        self.shared.is_stopping()
    }

    fn request_failed(&self, command: Command, offset: u64, len: u32, error: &vmwright_disk::Error) {
        let Self { client, export, .. } = *self;
        self.shared.config.tell(&Event::RequestFailed { client, export, command, offset, len, error });
    }
}

/// Whether a session ended as sessions should.
pub(super) fn ended_well(report: &SessionReport) -> bool {
    !matches!(report.ended, Ended::Failed(_))
}
