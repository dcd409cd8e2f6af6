//! What `make fuzz` runs for minutes, for moments: its corpus, and a few thousand mutations of it, always the same ones. Needs no
//! nightly compiler.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, missing_docs)] // a test may stop where it fails

#[path = "../fuzz/bodies/injection.rs"]
mod injection;
#[path = "../fuzz/bodies/review.rs"]
mod review;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// How many mutations of each file.
const MUTATIONS: u32 = 60;

/// What is put into the texts.
const WORDS: [&[u8]; 24] = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"\"\"",
    b"true",
    b"\n",
    b"---\n",
    b": ",
    b"- ",
    b"\\u0000",
    b"\xff",
    b"$(PGSET_POD_NAME)",
    b"../",
    b"pgset.dev/inject",
    b"pgset.dev/injected",
    b"enabled",
    b"latest",
    b"replicas: 0\n",
    b"subPath: x\n",
    b"PGDATA",
    b"pgset-run",
    b"{\"container\":\"postgres\",\"command\":true}",
    b"99999999999999999999",
];

/// xorshift: the same numbers on every machine.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or_default() % limit.max(1)
    }

    fn mutated(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let end = (at + self.below(24)).min(bytes.len());
            match self.below(5) {
                0 => bytes[at..].iter_mut().take(1).for_each(|byte| *byte ^= 1 << (at % 8)),
                1 => drop(bytes.drain(at..end)),
                2 => drop(bytes.splice(at..end, WORDS[self.below(WORDS.len())].iter().copied())),
                3 => drop(bytes.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied())),
                _ => {
                    let from = self.below(other.len());
                    let to = (from + self.below(400)).min(other.len());
                    drop(bytes.splice(at..end, other[from..to].iter().copied()));
                }
            }
        }
        bytes
    }
}

fn smoke(name: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut corpus: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    corpus.sort();
    assert!(corpus.len() >= 10, "the corpus is missing");
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|path| fs::read(path).unwrap()).collect();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let check = |bytes: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(bytes))) {
            eprintln!("with:\n{}", String::from_utf8_lossy(bytes));
            std::panic::resume_unwind(panic);
        }
    };
    for bytes in &corpus {
        check(bytes);
        for _ in 0..MUTATIONS {
            let other = &corpus[numbers.below(corpus.len())];
            check(&numbers.mutated(bytes, other));
        }
    }
}

#[test]
fn the_injection_survives_mutations_of_its_corpus() {
    smoke("injection", injection::run);
}

#[test]
fn the_webhook_survives_mutations_of_its_corpus() {
    smoke("review", review::run);
}
