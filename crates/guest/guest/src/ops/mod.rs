//! What can be done to a guest's files: each operation once, with a table that names them all.
//!
//! Paths in the guest are bytes and always resolve inside it. Every operation takes the tree of files, a
//! [`Root`](vmwright_vfs::Root); what it changes is durable after [`Guest::commit`](crate::Guest::commit).

mod attributes;
mod copy_in;
mod copy_out;
mod edit;
mod files;
mod list;
mod sizes;
mod table;

pub use attributes::{Owner, chmod, chown, parse_mode};
pub use copy_in::copy_in;
pub use copy_out::copy_out;
pub use edit::{Substitution, edit, substitute};
pub use files::{cat, hard_link, mkdir, remove, rename, symlink, write};
pub(crate) use list::kind_name;
pub use list::{Listed, list, stat};
pub use sizes::{CopyOptions, CopySummary};
pub use table::{Argument, Operation, TABLE, Value};
