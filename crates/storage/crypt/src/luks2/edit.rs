//! Changing a LUKS2 header: of both copies one is always sound, and key material is durable before it is named.

use serde_json::Value;
use vmwright_disk::Disk;

use super::create::{AREA_ALIGNMENT, Stretch, area_len, keyslot};
use super::header::{Copy, Header, Stale};
use super::layout::HEADER_LEN;
use super::metadata::{MAX_OBJECTS, Metadata, Number, Place};
use crate::error::Reason;
use crate::{Error, Limits, Passphrase, Result, random};

impl Header {
    /// Adds a passphrase beside the one that is known, and answers its slot.
    ///
    /// The key material is durable before a header names it.
    pub fn add_passphrase(
        &mut self,
        disk: &dyn Disk,
        known: &Passphrase,
        new: &Passphrase,
        stretch: Stretch,
    ) -> Result<u32> {
        let opened = self.open(disk, known, &Limits::default())?;
        let mut numbers = 0..MAX_OBJECTS;
        let free = numbers.find(|number| !self.metadata.keyslots.contains_key(&Number(*number)));
        let number = free.ok_or(Reason::NoFreeSlot)?;
        let area = self.free_area(area_len(opened.key.len())).ok_or(Reason::NoFreeSlot)?;
        let (digest_number, digest) = self.digest()?;
        let hash = digest.hash.parse()?;
        let (slot, material) = keyslot(&opened.key, new, stretch, hash, area)?;
        if area + material.len() as u64 > disk.len() {
            return Err(Error::corrupt(
                "the area for key material",
                area,
                "a place within the file",
                disk.len(),
            ));
        }
        disk.write_at(&material, area)?;
        disk.flush()?;
        let digest = digest_number.0.to_string();
        self.change(disk, &|json| {
            json.get_mut("keyslots")?.as_object_mut()?.insert(number.to_string(), slot.clone());
            keyslots_of(json.get_mut("digests")?.get_mut(&digest)?)?.push(number.to_string().into());
            Some(())
        })?;
        Ok(number)
    }

    /// Replaces a passphrase by another: the new one is durable before the old one is destroyed.
    pub fn change_passphrase(
        &mut self,
        disk: &dyn Disk,
        old: &Passphrase,
        new: &Passphrase,
        stretch: Stretch,
    ) -> Result<u32> {
        let opened = self.open(disk, old, &Limits::default())?;
        let number = self.add_passphrase(disk, old, new, stretch)?;
        self.remove_slot(disk, opened.slot, false)?;
        Ok(number)
    }

    /// Destroys the slot that a passphrase opens; the last one only where `even_last` says so.
    pub fn remove_passphrase(&mut self, disk: &dyn Disk, known: &Passphrase, even_last: bool) -> Result<u32> {
        let opened = self.open(disk, known, &Limits::default())?;
        self.remove_slot(disk, opened.slot, even_last)?;
        Ok(opened.slot)
    }

    /// Destroys a slot; the last one only where `even_last` says so, since nothing opens the content then.
    ///
    /// The key material is overwritten before the headers forget it.
    pub fn remove_slot(&mut self, disk: &dyn Disk, slot: u32, even_last: bool) -> Result<()> {
        self.segment()?;
        let found = self.metadata.keyslots.get(&Number(slot)).filter(|found| found.is_luks2());
        let (start, len) = match found {
            Some(found) => (found.area.offset.0, found.area.size.0),
            None => return Err(Reason::NoSuchSlot { slot }.into()),
        };
        if !even_last && self.metadata.keyslots.values().filter(|slot| slot.is_luks2()).count() == 1 {
            return Err(Reason::LastSlot { slot }.into());
        }
        overwrite(disk, start, len)?;
        disk.flush()?;
        let name = slot.to_string();
        self.change(disk, &|json| {
            json.get_mut("keyslots")?.as_object_mut()?.remove(&name);
            for kind in ["digests", "tokens"] {
                for object in json.get_mut(kind)?.as_object_mut()?.values_mut() {
                    // Not every token is for key slots.
                    if let Some(list) = keyslots_of(object) {
                        list.retain(|number| number != &Value::from(name.as_str()));
                    }
                }
            }
            Some(())
        })
    }

    /// Overwrites all keys and both headers.
    pub fn destroy(&self, disk: &dyn Disk) -> Result<()> {
        let start = 2 * self.hdr_size;
        overwrite(disk, start, self.metadata.config.keyslots_size.0)?;
        disk.flush()?;
        overwrite(disk, 0, start)?;
        Ok(disk.flush()?)
    }

    /// What is wrong with the copies of the header.
    pub(crate) fn check(&self, disk: &dyn Disk) -> Vec<Error> {
        let mut found = Vec::new();
        let at = self.source.other().place(self.hdr_size);
        match &self.other {
            None => {}
            Some(Stale::Older) => {
                found.push(Error::corrupt("a copy of the LUKS2 header", at, "the same as the newer one", 0));
            }
            Some(Stale::Damaged(error)) => found.push(Reason::Copy { at, why: error.to_string() }.into()),
        }
        for slot in self.metadata.keyslots.values() {
            if slot.area.offset.0 + slot.area.size.0 > disk.len() {
                let at = slot.area.offset.0;
                found.push(Error::corrupt("key material", at, "a place within the file", disk.len()));
            }
        }
        found
    }

    /// Writes both copies anew where they differ; answers whether they did.
    pub(crate) fn repair(&mut self, disk: &dyn Disk) -> Result<bool> {
        let differ = self.other.is_some();
        if differ {
            self.write(disk)?;
        }
        Ok(differ)
    }

    /// The first place among the key material that nothing occupies.
    fn free_area(&self, len: u64) -> Option<u64> {
        let end = 2 * self.hdr_size + self.metadata.config.keyslots_size.0;
        let mut areas: Vec<_> = self.metadata.keyslots.values().map(|slot| &slot.area).collect();
        areas.sort_by_key(|area| area.offset.0);
        let mut at = 2 * self.hdr_size;
        for area in areas {
            if area.offset.0.saturating_sub(at) >= len {
                break;
            }
            at = at.max((area.offset.0 + area.size.0).next_multiple_of(AREA_ALIGNMENT));
        }
        at.checked_add(len).filter(|last| *last <= end).map(|_| at)
    }

    /// Changes the metadata, what is not known here included, and makes both copies durable.
    fn change(&mut self, disk: &dyn Disk, edit: &dyn Fn(&mut Value) -> Option<()>) -> Result<()> {
        let at = HEADER_LEN as u64;
        let mut json: Value =
            serde_json::from_slice(&self.json).map_err(|source| Reason::Json { at, source })?;
        let place = Place { at, hdr_size: self.hdr_size };
        edit(&mut json).ok_or_else(|| place.error("the area", "an object is written as a list"))?;
        let text = json.to_string().into_bytes();
        let mut area = text.clone();
        area.push(0);
        // What is written must be what would be read.
        let metadata = Metadata::parse(&area, &place)?;
        let changed = Self { metadata, json: text, ..self.clone() };
        *self = changed;
        self.write(disk)
    }

    /// Writes both copies under a new number: first the one that is not the only sound one.
    fn write(&mut self, disk: &dyn Disk) -> Result<()> {
        let next = self.sequence.checked_add(1);
        self.sequence = next.ok_or_else(|| Error::invalid("the LUKS2 header", "its sequence cannot grow"))?;
        let first = match self.other {
            Some(_) => self.source.other(),
            None => Copy::First,
        };
        for copy in [first, first.other()] {
            let bytes = self.encode(copy, random::array()?)?;
            disk.write_at(&bytes, copy.place(self.hdr_size))?;
            disk.flush()?;
        }
        self.other = None;
        Ok(())
    }
}

/// The key slots that a digest or a token is for.
fn keyslots_of(object: &mut Value) -> Option<&mut Vec<Value>> {
    object.get_mut("keyslots")?.as_array_mut()
}

/// Writes random numbers over a range, as far as it is there.
fn overwrite(disk: &dyn Disk, start: u64, len: u64) -> Result<()> {
    let end = start.saturating_add(len).min(disk.len());
    let mut at = start;
    while at < end {
        let step = (end - at).min(1 << 20);
        disk.write_at(&random::secret(step as usize)?, at)?;
        at += step;
    }
    Ok(())
}
