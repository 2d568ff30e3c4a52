//! Choosing an export, and looking at what there is.

use std::io::IoSlice;

use zerocopy::IntoBytes;

use super::reply::Replies;
use super::{Handshake, Negotiated};
use crate::error::Reason;
use crate::layout::{
    ExportReply, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, MAX_STRING, REP_ERR_INVALID,
    REP_ERR_UNKNOWN, REP_INFO, REP_SERVER,
};
use crate::transport::write_all;
use crate::{Export, MAX_PAYLOAD, Result};

impl Handshake<'_> {
    /// `NBD_OPT_EXPORT_NAME`, which can only be granted or answered by hanging up.
    pub(super) fn export_name(&self, data: &[u8]) -> Result<Negotiated> {
        let found = string(data).and_then(|name| self.exports.find(name));
        let Some(export) = found else {
            let name = String::from_utf8_lossy(&data[..data.len().min(MAX_STRING)]).into_owned();
            return Err(Reason::UnknownExport { name }.into());
        };
        let session = self.session(export);
        let flags = export.flags(self.structured).into();
        let reply = ExportReply { size: session.size.into(), flags };
        let zeroes = [0; 124];
        let zeroes = if self.zeroes { &zeroes[..] } else { &[] };
        write_all(self.transport, &mut [IoSlice::new(reply.as_bytes()), IoSlice::new(zeroes)])?;
        Ok(Negotiated::Chosen(session))
    }

    /// `NBD_OPT_INFO`, and `NBD_OPT_GO` which chooses too.
    pub(super) fn info(&self, go: bool, data: &[u8], replies: &Replies<'_>) -> Result<Option<Negotiated>> {
        let Some((name, wanted)) = parse_info(data) else {
            return replies.error(REP_ERR_INVALID, "the option is malformed").map(|()| None);
        };
        let Some(export) = self.exports.find(name) else {
            return replies.error(REP_ERR_UNKNOWN, "there is no export of that name").map(|()| None);
        };
        let session = self.session(export);
        let info = |kind: u16, parts: &[&[u8]]| {
            let mut data = kind.to_be_bytes().to_vec();
            parts.iter().for_each(|part| data.extend_from_slice(part));
            replies.send(REP_INFO, &data)
        };
        let flags = export.flags(self.structured);
        info(INFO_EXPORT, &[&session.size.to_be_bytes(), &flags.to_be_bytes()])?;
        if wanted.contains(&INFO_NAME) {
            info(INFO_NAME, &[export.name().as_bytes()])?;
        }
        if let Some(description) = export.description().filter(|_| wanted.contains(&INFO_DESCRIPTION)) {
            info(INFO_DESCRIPTION, &[description.as_bytes()])?;
        }
        if wanted.contains(&INFO_BLOCK_SIZE) {
            info(INFO_BLOCK_SIZE, &block_sizes(export).each_ref().map(|size| &size[..]))?;
        }
        replies.ack()?;
        Ok(go.then_some(Negotiated::Chosen(session)))
    }

    /// `NBD_OPT_LIST`.
    pub(super) fn list(&self, replies: &Replies<'_>) -> Result<()> {
        for export in self.exports.iter() {
            let name = export.name().as_bytes();
            // Names have at most 4096 bytes.
            let mut data = (name.len() as u32).to_be_bytes().to_vec();
            data.extend_from_slice(name);
            data.extend_from_slice(export.description().unwrap_or_default().as_bytes());
            replies.send(REP_SERVER, &data)?;
        }
        replies.ack()
    }
}

/// Minimum, preferred and maximum.
fn block_sizes(export: &Export) -> [[u8; 4]; 3] {
    [1, export.preferred_block(), MAX_PAYLOAD].map(u32::to_be_bytes)
}

/// Takes the name of the export and the wanted items apart.
fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let (name, rest) = sized_string(data)?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    let items = rest.chunks_exact(2);
    let well_formed = rest.len() == 2 * usize::from(u16::from_be_bytes(*count));
    let items = items.filter_map(|item| item.first_chunk::<2>().map(|item| u16::from_be_bytes(*item)));
    well_formed.then(|| (name, items.collect()))
}

/// A string after its length in 32 bits, and what follows it.
pub(super) fn sized_string(data: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    Some((string(text)?, rest))
}

/// A string as the protocol wants it.
fn string(data: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(data).ok()?;
    (text.len() <= MAX_STRING && !text.contains('\0')).then_some(text)
}
