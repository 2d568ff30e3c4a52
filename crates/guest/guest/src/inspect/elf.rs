use super::Reader;

/// Programs that every system has one of.
const CORE: [&str; 8] = [
    "/bin/sh",
    "/usr/bin/sh",
    "/bin/ls",
    "/usr/bin/ls",
    "/sbin/init",
    "/usr/lib/systemd/systemd",
    "/bin/busybox",
    "/bin/bash",
];

/// The processor that the first core program found is made for.
pub(super) fn architecture(reader: &mut Reader<'_>) -> Option<String> {
    CORE.iter().find_map(|path| {
        let location = reader.root.resolve(path, true).ok()?.location;
        let mut header = [0; 20];
        let count = reader.root.read_at(location, &mut header, 0).ok()?;
        (count == header.len()).then(|| of_header(&header))?
    })
}

/// Reads class, byte order and machine of an ELF header (System V ABI, chapter 4).
fn of_header(header: &[u8; 20]) -> Option<String> {
    header.starts_with(b"\x7fELF").then_some(())?;
    let wide = header[4] == 2;
    let little = header[5] == 1;
    let machine = [header[18], header[19]];
    let machine = if little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    let name = match (machine, wide, little) {
        (3, ..) => "i686",
        (62, true, _) => "x86_64",
        (62, false, _) => "x32",
        (40, ..) => "arm",
        (183, _, true) => "aarch64",
        (183, _, false) => "aarch64_be",
        (243, true, _) => "riscv64",
        (243, false, _) => "riscv32",
        (21, _, true) => "ppc64le",
        (21, _, false) => "ppc64",
        (20, ..) => "ppc",
        (22, true, _) => "s390x",
        (8, true, true) => "mips64el",
        (8, true, false) => "mips64",
        (8, false, true) => "mipsel",
        (8, false, false) => "mips",
        (258, true, _) => "loongarch64",
        _ => return None,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_this_very_program_is_known() {
        use std::io::Read;
        let mut header = [0; 20];
        std::fs::File::open("/proc/self/exe").unwrap().read_exact(&mut header).unwrap();
        assert_eq!(of_header(&header).as_deref(), Some(std::env::consts::ARCH));
        assert_eq!(of_header(&[0; 20]), None);
    }
}
