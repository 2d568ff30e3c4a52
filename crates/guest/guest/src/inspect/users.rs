use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Reader;

/// A user out of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name to log in with.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The number of the first group.
    pub gid: u32,
    /// The comment, usually the person's name.
    pub comment: String,
    /// The home directory.
    pub home: String,
    /// The program that a login runs.
    pub shell: String,
    /// What the password allows. The hash itself is never shown.
    pub password: Password,
}

/// What a password allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Password {
    /// There is one.
    Set,
    /// Nobody can log in with a password.
    Locked,
    /// Anybody can log in: it is empty.
    Empty,
    /// It is not known: there is no line in `/etc/shadow`.
    Unknown,
}

/// A group out of `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The name.
    pub name: String,
    /// The number.
    pub gid: u32,
    /// The users that belong to it besides those whose first group it is.
    pub members: Vec<String>,
}

pub(super) fn users(reader: &mut Reader<'_>) -> Vec<User> {
    let shadow = reader.text("/etc/shadow").unwrap_or_default();
    let passwords: HashMap<&str, Password> = shadow
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, password(fields.next()?)))
        })
        .collect();
    let passwd = reader.text("/etc/passwd").unwrap_or_default();
    passwd.lines().filter_map(|line| user(line, &passwords)).collect()
}

fn user(line: &str, passwords: &HashMap<&str, Password>) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, own, uid, gid, comment, home, shell] = fields.as_slice() else { return None };
    let password = match own {
        "x" => passwords.get(name).copied().unwrap_or(Password::Unknown),
        own => password(own),
    };
    Some(User {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        comment: comment.to_owned(),
        home: home.to_owned(),
        shell: shell.to_owned(),
        password,
    })
}

/// No hash begins with `!` or `*`: so written, none ever matches.
fn password(field: &str) -> Password {
    match field.as_bytes().first() {
        None => Password::Empty,
        Some(b'!' | b'*') => Password::Locked,
        Some(_) => Password::Set,
    }
}

pub(super) fn groups(reader: &mut Reader<'_>) -> Vec<Group> {
    let text = reader.text("/etc/group").unwrap_or_default();
    let groups = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
        let members = fields.next().unwrap_or_default().split(',').filter(|member| !member.is_empty());
        Some(Group { name: name.to_owned(), gid, members: members.map(str::to_owned).collect() })
    });
    groups.collect()
}
