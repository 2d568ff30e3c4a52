use super::*;
use crate::MemoryFs;

#[test]
fn the_filesystem_in_memory_conforms() {
    check(&mut || Box::new(MemoryFs::default()));
    check_limits(&mut || Box::new(MemoryFs::default()));
}

#[test]
fn random_operations_of_every_sort_succeed_now_and_then() {
    let mut fs = MemoryFs::default();
    let words = pattern(9, 60_000);
    let mut done = std::collections::HashSet::new();
    for words in words.chunks_exact(16) {
        let word = |at: usize| u32::from_le_bytes(words[at * 4..at * 4 + 4].try_into().unwrap());
        let op = Op::from_words([word(0), word(1), word(2), word(3)], 100_000);
        if op.apply(&mut fs).is_ok() {
            done.insert(std::mem::discriminant(&op));
        }
    }
    assert_eq!(done.len(), 14);
    assert!(tree(&fs, b"lost+found").unwrap().len() > 10);
}
