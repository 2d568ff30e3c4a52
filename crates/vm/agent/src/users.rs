//! Users and groups, read from the guest's own files: a static program cannot use the guest's libc.

use std::io::{self, Read};

use crate::sys;

/// Who a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) name: Vec<u8>,
    pub(crate) home: Vec<u8>,
    pub(crate) shell: Vec<u8>,
}

/// Larger files than this are cut off.
const MAX_FILE: u64 = 16 << 20;

/// The user the agent itself runs as, without reading any file where that is root.
pub(crate) fn own_account() -> Account {
    let uid = sys::effective_uid();
    if uid == 0 {
        return Account { home: b"/root".to_vec(), ..nameless(0, 0, b"root".to_vec()) };
    }
    by_uid(&read("/etc/passwd"), uid).unwrap_or_else(|| nameless(uid, uid, uid.to_string().into_bytes()))
}

/// Resolves `name`, `name:group`, `uid` or `uid:gid`.
pub(crate) fn find(user: &str) -> io::Result<Account> {
    resolve(user, &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> io::Result<Account> {
    let absent = || io::Error::from_raw_os_error(sys::ENOENT);
    let (user, wanted_group) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user, None),
    };
    let mut account = match (by_name(passwd, user.as_bytes()), user.parse()) {
        (Some(account), _) => account,
        (None, Ok(uid)) => {
            by_uid(passwd, uid).unwrap_or_else(|| nameless(uid, uid, user.as_bytes().to_vec()))
        }
        (None, Err(_)) => return Err(absent()),
    };
    match wanted_group {
        None => account.groups = memberships(group, &account),
        Some(name) => {
            let found = lines(group).find(|fields| fields.first() == Some(&name.as_bytes()));
            let gid = found.and_then(|fields| number(fields.get(2)?)).or_else(|| name.parse().ok());
            account.gid = gid.ok_or_else(absent)?;
            account.groups = vec![account.gid];
        }
    }
    Ok(account)
}

fn read(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A guest without the file has no names; numbers still work.
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    bytes
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn nameless(uid: u32, gid: u32, name: Vec<u8>) -> Account {
    Account { uid, gid, groups: vec![gid], name, home: b"/".to_vec(), shell: b"/bin/sh".to_vec() }
}

fn account(fields: &[&[u8]]) -> Option<Account> {
    let &[name, _, uid, gid, _, home, shell, ..] = fields else { return None };
    let mut account = nameless(number(uid)?, number(gid)?, name.to_vec());
    if !home.is_empty() {
        account.home = home.to_vec();
    }
    if !shell.is_empty() {
        account.shell = shell.to_vec();
    }
    Some(account)
}

fn by_name(passwd: &[u8], name: &[u8]) -> Option<Account> {
    account(&lines(passwd).find(|fields| fields.first() == Some(&name))?)
}

fn by_uid(passwd: &[u8], uid: u32) -> Option<Account> {
    lines(passwd).filter_map(|fields| account(&fields)).find(|account| account.uid == uid)
}

fn memberships(group: &[u8], account: &Account) -> Vec<u32> {
    let mut groups = vec![account.gid];
    for fields in lines(group) {
        let (Some(gid), Some(members)) = (fields.get(2).and_then(|gid| number(gid)), fields.get(3)) else {
            continue;
        };
        let listed = members.split(|byte| *byte == b',').any(|member| member == account.name);
        if listed && !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\nbroken line\nana:x:1000:100:Ana:/home/ana:\n";
    const GROUP: &[u8] = b"users:x:100:\nwheel:x:10:root,ana\nvideo:x:44:ana\nanas:x:7:anas\n";

    #[test]
    fn a_name_gives_its_home_and_all_its_groups() {
        let ana = resolve("ana", PASSWD, GROUP).unwrap();
        assert_eq!((ana.uid, ana.gid, ana.groups), (1000, 100, vec![100, 10, 44]));
        assert_eq!((ana.home, ana.shell), (b"/home/ana".to_vec(), b"/bin/sh".to_vec()));
    }

    #[test]
    fn a_number_with_a_name_is_that_user() {
        assert_eq!(resolve("1000", PASSWD, GROUP).unwrap().name, b"ana");
    }

    #[test]
    fn a_number_without_a_name_is_itself() {
        let nobody = resolve("4711", PASSWD, GROUP).unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.groups), (4711, 4711, vec![4711]));
    }

    #[test]
    fn a_group_replaces_the_users_own() {
        for text in ["ana:video", "ana:44", "1000:44"] {
            let ana = resolve(text, PASSWD, GROUP).unwrap();
            assert_eq!((ana.uid, ana.gid, ana.groups), (1000, 44, vec![44]));
        }
    }

    #[test]
    fn unknown_names_are_not_found() {
        for text in ["bob", "ana:nothing", "", "-1", "5000000000"] {
            assert_eq!(resolve(text, PASSWD, GROUP).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }
}
