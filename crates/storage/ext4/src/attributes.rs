//! Extended attributes of inodes.

use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::volume::Ext4;

impl Ext4 {
    /// The part of inline content that is kept as an attribute.
    pub(crate) fn inline_tail(&self, _inode: &Inode) -> Result<Vec<u8>> {
        Err(Error::unsupported("inline content cannot be read yet"))
    }

    /// The names of all attributes.
    pub(crate) fn attribute_names(&self, _inode: &Inode) -> Result<Vec<Vec<u8>>> {
        Err(Error::unsupported("extended attributes cannot be read yet"))
    }

    /// The value of an attribute.
    pub(crate) fn attribute(&self, _inode: &Inode, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        Err(Error::unsupported("extended attributes cannot be read yet"))
    }
}
