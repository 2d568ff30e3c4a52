//! Selecting what can be asked about ranges.

use std::sync::Arc;

use super::Handshake;
use super::options::sized_string;
use super::reply::Replies;
use crate::export::ContextId;
use crate::layout::{REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_META_CONTEXT};
use crate::{Export, Result};

/// The queries that stand for every context whose name begins so, when listing.
const WILDCARDS: [&str; 3] = ["base:", "qemu:", "qemu:dirty-bitmap:"];

impl Handshake<'_> {
    /// `NBD_OPT_LIST_META_CONTEXT`.
    pub(super) fn list_contexts(&self, data: &[u8], replies: &Replies<'_>) -> Result<()> {
        let Some((export, queries)) = self.parse_contexts(data, replies)? else { return Ok(()) };
        for (_, name) in export.context_names() {
            let matches =
                |query: &&str| name == *query || (WILDCARDS.contains(query) && name.starts_with(*query));
            if queries.is_empty() || queries.iter().any(matches) {
                send(replies, 0, name)?;
            }
        }
        replies.ack()
    }

    /// `NBD_OPT_SET_META_CONTEXT`, which forgets what was selected before even where it fails.
    pub(super) fn set_contexts(&mut self, data: &[u8], replies: &Replies<'_>) -> Result<()> {
        self.contexts = None;
        let Some((export, queries)) = self.parse_contexts(data, replies)? else { return Ok(()) };
        let named = export.context_names().filter(|(_, name)| queries.contains(name));
        let selected: Vec<(ContextId, &str)> = named.collect();
        for (context, name) in &selected {
            send(replies, context.number(), name)?;
        }
        let contexts = selected.into_iter().map(|(context, _)| context).collect();
        self.contexts = Some((export.clone(), contexts));
        replies.ack()
    }

    /// The export and the queries; nothing where the option was refused, which is then answered.
    fn parse_contexts<'d>(
        &self,
        data: &'d [u8],
        replies: &Replies<'_>,
    ) -> Result<Option<(Arc<Export>, Vec<&'d str>)>> {
        let refuse = |reply, why| replies.error(reply, why).map(|()| None);
        if !self.structured {
            return refuse(REP_ERR_INVALID, "structured replies must be agreed on first");
        }
        let Some((name, queries)) = parse(data) else {
            return refuse(REP_ERR_INVALID, "the option is malformed");
        };
        if queries.iter().any(|query| !query.contains(':')) {
            return refuse(REP_ERR_INVALID, "a query has a namespace and a colon");
        }
        match self.exports.find(name) {
            Some(export) => Ok(Some((export.clone(), queries))),
            None => refuse(REP_ERR_UNKNOWN, "there is no export of that name"),
        }
    }
}

fn send(replies: &Replies<'_>, number: u32, name: &str) -> Result<()> {
    let mut data = number.to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    replies.send(REP_META_CONTEXT, &data)
}

/// Takes the name of the export and the queries apart.
fn parse(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let (name, rest) = sized_string(data)?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let mut queries = Vec::new();
    for _ in 0..u32::from_be_bytes(*count) {
        let (query, after) = sized_string(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some((name, queries))
}
