//! Options as words: `key=value`, in the long spellings of mke2fs.

use uuid::Uuid;

use super::options::{Generation, JournalPlace, MakeOptions, NameHash, OnErrors, QuotaTypes, Usage};
use crate::error::{Error, Result};

/// The names of default mount options, with their bits in `s_default_mount_opts`.
const MOUNT_OPTIONS: [(&str, u32); 12] = [
    ("debug", 0x1),
    ("bsdgroups", 0x2),
    ("user_xattr", 0x4),
    ("acl", 0x8),
    ("uid16", 0x10),
    ("journal_data", 0x20),
    ("journal_data_ordered", 0x40),
    ("journal_data_writeback", 0x60),
    ("nobarrier", 0x100),
    ("block_validity", 0x200),
    ("discard", 0x400),
    ("nodelalloc", 0x800),
];

/// The bits that say how data goes through the journal, one of three ways.
const JOURNAL_MODE: u32 = 0x60;

const USAGES: [(&str, Usage); 9] = [
    ("default", Usage::Default),
    ("small", Usage::Small),
    ("floppy", Usage::Floppy),
    ("big", Usage::Big),
    ("huge", Usage::Huge),
    ("news", Usage::News),
    ("largefile", Usage::LargeFile),
    ("largefile4", Usage::LargeFile4),
    ("hurd", Usage::Hurd),
];

const SYSTEMS: [(&str, u32); 5] = [("linux", 0), ("hurd", 1), ("masix", 2), ("freebsd", 3), ("lites", 4)];

type Setter = fn(&mut MakeOptions, &'static str, &str, &'static str) -> Result<()>;

/// Every key: its name, what it may be, and what it does.
const TABLE: &[(&str, &str, Setter)] = &[
    ("type", "ext2, ext3 or ext4", |options, key, value, allowed| {
        let types = [("ext2", Generation::Ext2), ("ext3", Generation::Ext3), ("ext4", Generation::Ext4)];
        options.generation = choice(key, value, allowed, &types)?;
        Ok(())
    }),
    (
        "usage",
        "default, small, floppy, big, huge, news, largefile, largefile4 or hurd",
        |options, key, value, allowed| {
            options.usage = Some(choice(key, value, allowed, &USAGES)?);
            Ok(())
        },
    ),
    ("features", "names as for mke2fs -O, such as ^has_journal,bigalloc", |options, _, value, _| {
        options.features.add(value)
    }),
    ("length", "a size such as 20G", |options, key, value, allowed| {
        options.length = Some(size(key, value, allowed)?);
        Ok(())
    }),
    ("block_size", "1K to 64K", |options, key, value, allowed| {
        options.block_size = Some(narrow(key, value, allowed)?);
        Ok(())
    }),
    ("cluster_size", "the block size to 512M", |options, key, value, allowed| {
        options.cluster_size = Some(narrow(key, value, allowed)?);
        Ok(())
    }),
    ("blocks_per_group", "256 to 8 times the block size", |options, key, value, allowed| {
        options.blocks_per_group = Some(number(key, value, allowed)?);
        Ok(())
    }),
    ("flex_bg_size", "a power of two", |options, key, value, allowed| {
        options.flex_groups = Some(number(key, value, allowed)?);
        Ok(())
    }),
    ("inode_ratio", "1K to 64M", |options, key, value, allowed| {
        options.inode_ratio = Some(narrow(key, value, allowed)?);
        Ok(())
    }),
    ("inodes", "a number", |options, key, value, allowed| {
        options.inodes = Some(number(key, value, allowed)?);
        Ok(())
    }),
    ("inode_size", "128 to the block size", |options, key, value, allowed| {
        options.inode_size = Some(number(key, value, allowed)?);
        Ok(())
    }),
    ("desc_size", "64 to 1024", |options, key, value, allowed| {
        options.descriptor_size = Some(number(key, value, allowed)?);
        Ok(())
    }),
    ("label", "at most 16 bytes", |options, _, value, _| {
        options.label = value.as_bytes().to_vec();
        Ok(())
    }),
    ("last_mounted", "at most 64 bytes", |options, _, value, _| {
        options.last_mounted = value.as_bytes().to_vec();
        Ok(())
    }),
    ("uuid", "a UUID, or clear", |options, key, value, allowed| {
        options.uuid = if matches!(value, "clear" | "null") { Uuid::nil() } else { id(key, value, allowed)? };
        Ok(())
    }),
    ("hash_seed", "a UUID", |options, key, value, allowed| {
        options.hash_seed = id(key, value, allowed)?;
        Ok(())
    }),
    ("hash_alg", "legacy, half_md4 or tea", |options, key, value, allowed| {
        let hashes = [("legacy", NameHash::Legacy), ("half_md4", NameHash::HalfMd4), ("tea", NameHash::Tea)];
        options.name_hash = choice(key, value, allowed, &hashes)?;
        Ok(())
    }),
    ("journal_size", "a size such as 64M", |options, key, value, allowed| {
        options.journal_size = Some(size(key, value, allowed)?);
        Ok(())
    }),
    ("fast_commit_size", "a size such as 1M", |options, key, value, allowed| {
        options.fast_commit_size = Some(size(key, value, allowed)?);
        Ok(())
    }),
    ("journal_location", "the number of a block", |options, key, value, allowed| {
        options.journal = JournalPlace::At(number(key, value, allowed)?);
        Ok(())
    }),
    ("journal_device", "the UUID of a journal device", |options, key, value, allowed| {
        options.journal = JournalPlace::Device(id(key, value, allowed)?);
        Ok(())
    }),
    ("reserved_percent", "0 to 50", |options, key, value, allowed| {
        options.reserved_percent = number(key, value, allowed)?;
        Ok(())
    }),
    ("root_owner", "UID:GID", |options, key, value, allowed| {
        let (uid, gid) = value.split_once(':').ok_or_else(|| Error::bad_value(key, value, allowed))?;
        options.root_owner = (number(key, uid, allowed)?, number(key, gid, allowed)?);
        Ok(())
    }),
    ("root_perms", "an octal number", |options, key, value, allowed| {
        let mode = u16::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
        options.root_mode = mode.ok_or_else(|| Error::bad_value(key, value, allowed))?;
        Ok(())
    }),
    ("root_selinux", "a label of SELinux", |options, _, value, _| {
        options.root_selinux = Some(value.as_bytes().to_vec());
        Ok(())
    }),
    ("stride", "blocks", |options, key, value, allowed| {
        options.stride = number(key, value, allowed)?;
        Ok(())
    }),
    ("stripe_width", "blocks", |options, key, value, allowed| {
        options.stripe_width = number(key, value, allowed)?;
        Ok(())
    }),
    ("resize", "a size greater than the volume's, such as 2T", |options, key, value, allowed| {
        options.resize_limit = Some(size(key, value, allowed)?);
        Ok(())
    }),
    ("num_backup_sb", "0, 1 or 2", |options, key, value, allowed| {
        options.backups = number(key, value, allowed)?;
        Ok(())
    }),
    ("packed_meta_blocks", "on or off", |options, key, value, _| {
        options.packed_meta_blocks = switch(key, value)?;
        Ok(())
    }),
    ("quotatype", "usrquota, grpquota and prjquota, separated by :", |options, key, value, allowed| {
        let mut types = QuotaTypes { user: false, group: false, project: false };
        for word in value.split(':') {
            match word {
                "usr" | "usrquota" => types.user = true,
                "grp" | "grpquota" => types.group = true,
                "prj" | "prjquota" => types.project = true,
                _ => return Err(Error::bad_value(key, value, allowed)),
            }
        }
        options.quota = types;
        Ok(())
    }),
    ("mmp_update_interval", "0 to 300 seconds", |options, key, value, allowed| {
        options.mmp_interval = Some(number(key, value, allowed)?);
        Ok(())
    }),
    ("encoding", "utf8 or utf8-12.1", |options, key, value, allowed| {
        choice(key, value, allowed, &[("utf8", ()), ("utf8-12.1", ())])?;
        options.features.add("casefold")
    }),
    ("encoding_flags", "strict or nostrict", |options, key, value, allowed| {
        let flags = [("strict", true), ("nostrict", false), ("-strict", false)];
        options.strict_encoding = choice(key, value, allowed, &flags)?;
        Ok(())
    }),
    ("orphan_file_size", "a size such as 128K", |options, key, value, allowed| {
        options.orphan_file_size = Some(size(key, value, allowed)?);
        Ok(())
    }),
    ("errors", "continue, remount-ro or panic", |options, key, value, allowed| {
        let choices = [
            ("continue", OnErrors::Continue),
            ("remount-ro", OnErrors::RemountReadOnly),
            ("panic", OnErrors::Panic),
        ];
        options.on_errors = choice(key, value, allowed, &choices)?;
        Ok(())
    }),
    ("mount_options", "names as for tune2fs -o, such as acl,^user_xattr", |options, key, value, allowed| {
        for word in value.split(',').filter(|word| !word.is_empty()) {
            let clear = word.strip_prefix(['^', '-']);
            let bit = choice(key, clear.unwrap_or(word), allowed, &MOUNT_OPTIONS)?;
            let whole = if bit & JOURNAL_MODE != 0 { JOURNAL_MODE } else { bit };
            options.mount_options &= !whole;
            options.mount_options |= if clear.is_some() { 0 } else { bit };
        }
        Ok(())
    }),
    ("lazy_itable_init", "on or off", |options, key, value, _| {
        options.lazy_inode_tables = switch(key, value)?;
        Ok(())
    }),
    ("lazy_journal_init", "on or off", |options, key, value, _| {
        options.lazy_journal = switch(key, value)?;
        Ok(())
    }),
    ("assume_storage_prezeroed", "on or off", |options, key, value, _| {
        options.assume_zeroed = switch(key, value)?;
        Ok(())
    }),
    ("discard", "on or off", |options, key, value, _| {
        options.discard = switch(key, value)?;
        Ok(())
    }),
    ("test_fs", "on or off", |options, key, value, _| {
        options.test_filesystem = switch(key, value)?;
        Ok(())
    }),
    ("creator_os", "linux, hurd, masix, freebsd or lites", |options, key, value, allowed| {
        options.creator_os = choice(key, value, allowed, &SYSTEMS)?;
        Ok(())
    }),
];

impl MakeOptions {
    /// The keys that [`MakeOptions::set`] takes, each with what it may be.
    pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
        TABLE.iter().map(|(key, allowed, _)| (*key, *allowed))
    }

    /// Sets one option by its name. `-` counts as `_` in names; sizes are in bytes and may end in K, M, G or T.
    ///
    /// # Errors
    ///
    /// Kind `InvalidInput` for an unknown key or a value that it cannot have, naming both.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let key = key.replace('-', "_");
        match TABLE.iter().find(|(known, _, _)| *known == key) {
            Some((key, allowed, set)) => set(self, key, value, allowed),
            None => Err(Error::bad_value("option", &key, "one of those that the documentation lists")),
        }
    }
}

fn choice<T: Copy>(key: &'static str, value: &str, allowed: &'static str, all: &[(&str, T)]) -> Result<T> {
    let found = all.iter().find(|(name, _)| *name == value).map(|(_, choice)| *choice);
    found.ok_or_else(|| Error::bad_value(key, value, allowed))
}

fn number<T: std::str::FromStr>(key: &'static str, value: &str, allowed: &'static str) -> Result<T> {
    value.parse().map_err(|_| Error::bad_value(key, value, allowed))
}

fn id(key: &'static str, value: &str, allowed: &'static str) -> Result<Uuid> {
    Uuid::try_parse(value).map_err(|_| Error::bad_value(key, value, allowed))
}

fn narrow(key: &'static str, value: &str, allowed: &'static str) -> Result<u32> {
    u32::try_from(size(key, value, allowed)?).map_err(|_| Error::bad_value(key, value, allowed))
}

fn size(key: &'static str, value: &str, allowed: &'static str) -> Result<u64> {
    let wrong = || Error::bad_value(key, value, allowed);
    let units = [("k", 10), ("m", 20), ("g", 30), ("t", 40)];
    let lower = value.to_ascii_lowercase();
    let unit = units.iter().find_map(|(unit, shift)| Some((lower.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((&lower, 0));
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(1 << shift).ok_or_else(wrong)
}

fn switch(key: &'static str, value: &str) -> Result<bool> {
    let states = [("on", true), ("off", false), ("1", true), ("0", false), ("true", true), ("false", false)];
    choice(key, value, "on or off", &states)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_refuses_what_it_cannot_be_by_name() {
        for (key, _) in MakeOptions::keys() {
            let mut options = MakeOptions::default();
            let free = ["label", "last_mounted", "root_selinux"].contains(&key);
            let answer = options.set(key, "/!");
            assert_eq!(answer.is_ok(), free, "{key}");
            if let Err(error) = answer {
                assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
                assert!(error.to_string().contains(key), "{error}");
            }
        }
        assert!(
            MakeOptions::default().set("inode_count", "7").unwrap_err().to_string().contains("inode_count")
        );
    }

    #[test]
    fn values_become_options() {
        let mut options = MakeOptions::default();
        for (key, value) in [
            ("type", "ext3"),
            ("stripe-width", "64"),
            ("journal_size", "16M"),
            ("root_owner", "7:9"),
            ("root_perms", "1777"),
            ("mount_options", "^acl,journal_data,journal_data_ordered"),
            ("quotatype", "usrquota:prj"),
            ("discard", "off"),
        ] {
            options.set(key, value).unwrap();
        }
        let expected = MakeOptions {
            generation: Generation::Ext3,
            stripe_width: 64,
            journal_size: Some(16 << 20),
            root_owner: (7, 9),
            root_mode: 0o1777,
            mount_options: 0x44,
            quota: QuotaTypes { user: true, group: false, project: true },
            discard: false,
            ..MakeOptions::default()
        };
        assert_eq!(options, expected);
    }
}
