//! Whatever comes out of a kernel image is an ELF, and an ELF comes out as it went in.
#![no_main]

use vmwright_boot::{extract_elf, has_pvh_entry};

libfuzzer_sys::fuzz_target!(|image: &[u8]| {
    if let Ok(elf) = extract_elf(image) {
        assert!(elf.starts_with(b"\x7fELF"));
        assert!(extract_elf(&elf).is_ok_and(|again| again == elf));
        // An answer either way; the note may be anything.
        has_pvh_entry(&elf);
    }
});
