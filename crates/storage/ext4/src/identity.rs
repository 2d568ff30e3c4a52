//! What a volume is called: its label and its identifier, in every copy of the superblock.

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::superblock::{LABEL_MAX, Superblock};
use crate::tune;
use crate::volume::Ext4;

impl Ext4 {
    /// Gives the volume another label, in the copies of the superblock too.
    pub(crate) fn change_label(&mut self, label: &[u8]) -> Result<()> {
        self.check_writable()?;
        if label.len() > LABEL_MAX || label.contains(&0) {
            let problem = "a label has at most 16 bytes, none of them zero";
            return Err(Error::plain(ErrorKind::InvalidInput, problem));
        }
        self.change_copies(&mut |superblock| superblock.set_label(label))
    }

    /// Gives the volume another identifier; what is sealed with the old one is sealed anew, all of it at once.
    pub(crate) fn change_uuid(&mut self, uuid: &str) -> Result<()> {
        self.check_writable()?;
        let invalid = |_| Error::plain(ErrorKind::InvalidInput, "the identifier is not a UUID");
        let uuid = Uuid::try_parse(uuid).map_err(invalid)?;
        self.sync_volume()?;
        tune::set_uuid(self, uuid)
    }

    /// Changes fields of the superblock that all of its copies share. A copy that is not sound is left alone.
    fn change_copies(&mut self, change: &mut dyn FnMut(&mut Superblock)) -> Result<()> {
        let (blocks, block_size) = (self.superblock.blocks, self.block_size());
        for group in (1..self.superblock.groups).filter(|group| self.superblock.has_superblock(*group)) {
            let block = self.superblock.group_start(group);
            // A block holds the copy at its beginning, however large it is.
            let mut bytes = [0; 1024];
            bytes.copy_from_slice(&self.cache.read(block)?[..1024]);
            let Ok(mut copy) = Superblock::parse(&bytes, blocks.saturating_mul(block_size)) else { continue };
            change(&mut copy);
            self.cache.modify(block)?[..1024].copy_from_slice(&copy.encode());
        }
        change(&mut self.superblock);
        self.changed = true;
        Ok(())
    }
}
