use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vmwright_vfs::Root;

use super::{CopyOptions, CopySummary, Listed, Owner, Substitution};
use crate::{Error, ErrorKind, Result};

/// One operation: what it is called, what it does, what it takes, and the code that does it.
///
/// Whatever offers operations by name (scripts, a shell, bindings) is derived from [`TABLE`].
pub struct Operation {
    /// Its name, as on the command line after `vmwright guest`.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub summary: &'static str,
    /// What it takes, in order.
    pub arguments: &'static [Argument],
    /// Whether it changes the guest.
    pub changes: bool,
    run: fn(&mut Root, &[&[u8]]) -> Result<Value>,
}

/// An argument of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// What it is called in help.
    pub name: &'static str,
    /// What it means.
    pub summary: &'static str,
}

/// What an operation answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// It is done.
    Done,
    /// The content of a file.
    Bytes(Vec<u8>),
    /// Files with what is known of them.
    Files(Vec<Listed>),
    /// Whether anything changed.
    Changed(bool),
    /// What was copied.
    Copied(CopySummary),
}

impl Operation {
    /// The operation of a name.
    pub fn find(name: &str) -> Option<&'static Operation> {
        TABLE.iter().find(|operation| operation.name == name)
    }

    /// Does it, with exactly the arguments that it takes.
    pub fn call(&self, root: &mut Root, arguments: &[&[u8]]) -> Result<Value> {
        match arguments.len() == self.arguments.len() {
            true => (self.run)(root, arguments),
            false => Err(Error::plain(ErrorKind::InvalidInput, self.name, "wrong number of arguments")),
        }
    }
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.arguments.iter().map(|argument| argument.name).collect();
        write!(f, "{} {}", self.name, names.join(" "))
    }
}

/// The longest content that [`Value::Bytes`] holds.
const BYTES_MAX: u64 = 256 << 20;

const fn argument(name: &'static str, summary: &'static str) -> Argument {
    Argument { name, summary }
}

const PATH: Argument = argument("PATH", "a path in the guest");
const FROM: Argument = argument("FROM", "the path in the guest as it is now");
const TO: Argument = argument("TO", "the new path in the guest, or a directory to keep the name in");

/// Every operation.
pub const TABLE: &[Operation] = &[
    Operation {
        name: "ls",
        summary: "Lists a directory, or a single file.",
        arguments: &[PATH],
        changes: false,
        run: |root, arguments| list(root, arguments[0], false),
    },
    Operation {
        name: "find",
        summary: "Lists everything beneath a directory.",
        arguments: &[PATH],
        changes: false,
        run: |root, arguments| list(root, arguments[0], true),
    },
    Operation {
        name: "stat",
        summary: "Says what is known of a file, of a symbolic link itself.",
        arguments: &[PATH],
        changes: false,
        run: |root, arguments| Ok(Value::Files(vec![super::stat(root, arguments[0], false)?])),
    },
    Operation {
        name: "cat",
        summary: "Answers the content of a file.",
        arguments: &[PATH],
        changes: false,
        run: |root, arguments| Ok(Value::Bytes(root.read_file(arguments[0], BYTES_MAX)?)),
    },
    Operation {
        name: "write",
        summary: "Makes a file hold the text; one that exists keeps owner, mode and attributes.",
        arguments: &[PATH, argument("TEXT", "the new content")],
        changes: true,
        run: |root, arguments| {
            root.write_file(arguments[0], arguments[1]).map(|_| Value::Done).map_err(Error::from)
        },
    },
    Operation {
        name: "edit",
        summary: "Applies a substitution to every line of a file.",
        arguments: &[PATH, argument("EXPRESSION", "a substitution such as s/old/new/g")],
        changes: true,
        run: |root, arguments| {
            let substitution = Substitution::parse(text(arguments[1])?)?;
            Ok(Value::Changed(super::substitute(root, arguments[0], &[substitution])?))
        },
    },
    Operation {
        name: "cp-in",
        summary: "Copies a file or directory from the host into the guest.",
        arguments: &[argument("LOCAL", "a path on the host"), PATH],
        changes: true,
        run: |root, arguments| {
            let copied = super::copy_in(root, host_path(arguments[0]), arguments[1], &CopyOptions::default());
            Ok(Value::Copied(copied?))
        },
    },
    Operation {
        name: "cp-out",
        summary: "Copies a file or directory out of the guest.",
        arguments: &[PATH, argument("LOCAL", "a path on the host")],
        changes: false,
        run: |root, arguments| {
            let copied =
                super::copy_out(root, arguments[0], host_path(arguments[1]), &CopyOptions::default());
            Ok(Value::Copied(copied?))
        },
    },
    Operation {
        name: "mkdir",
        summary: "Makes a directory and those above it that are missing.",
        arguments: &[PATH],
        changes: true,
        run: |root, arguments| super::mkdir(root, arguments[0], 0o755, true).map(|()| Value::Done),
    },
    Operation {
        name: "rm",
        summary: "Removes a file or an empty directory.",
        arguments: &[PATH],
        changes: true,
        run: |root, arguments| super::remove(root, arguments[0], false).map(|()| Value::Done),
    },
    Operation {
        name: "rm-r",
        summary: "Removes a file, or a directory with everything in it.",
        arguments: &[PATH],
        changes: true,
        run: |root, arguments| super::remove(root, arguments[0], true).map(|()| Value::Done),
    },
    Operation {
        name: "mv",
        summary: "Moves or renames a file or directory, replacing a file of that name.",
        arguments: &[FROM, TO],
        changes: true,
        run: |root, arguments| super::rename(root, arguments[0], arguments[1], true).map(|()| Value::Done),
    },
    Operation {
        name: "ln",
        summary: "Gives a file a second name.",
        arguments: &[FROM, TO],
        changes: true,
        run: |root, arguments| super::hard_link(root, arguments[0], arguments[1]).map(|()| Value::Done),
    },
    Operation {
        name: "ln-s",
        summary: "Makes a symbolic link.",
        arguments: &[argument("TARGET", "what the link says"), PATH],
        changes: true,
        run: |root, arguments| super::symlink(root, arguments[0], arguments[1]).map(|()| Value::Done),
    },
    Operation {
        name: "chmod",
        summary: "Changes the mode of a file.",
        arguments: &[PATH, argument("MODE", "octal digits, or clauses such as u+x,go-w")],
        changes: true,
        run: |root, arguments| {
            super::chmod(root, arguments[0], text(arguments[1])?, false).map(|()| Value::Done)
        },
    },
    Operation {
        name: "chown",
        summary: "Changes the owner of a file.",
        arguments: &[
            PATH,
            argument("OWNER", "USER, USER:GROUP or :GROUP, by the guest's names or by number"),
        ],
        changes: true,
        run: |root, arguments| {
            let owner = Owner::parse(root, text(arguments[1])?)?;
            super::chown(root, arguments[0], owner, true, false).map(|()| Value::Done)
        },
    },
];

fn list(root: &Root, path: &[u8], recursive: bool) -> Result<Value> {
    let mut files = Vec::new();
    super::list(root, path, recursive, &mut |listed| {
        files.push(listed);
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(Value::Files(files))
}

fn text(argument: &[u8]) -> Result<&str> {
    std::str::from_utf8(argument)
        .map_err(|_| Error::guest_path(ErrorKind::InvalidInput, argument, "it must be UTF-8"))
}

fn host_path(argument: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(argument))
}
