//! The export on a disk of its own and behind a server of its own: it can be full, and it can stall.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

use crate::lab::{Namespace, run};
use crate::mount::Mount;
use crate::node::tool;

/// Plenty, for three members and what they keep of what they had. It is in memory, and takes what is in it.
const SIZE: &str = "4g";
/// What it is measured in.
const BLOCK: u64 = 4096;
/// Others write while it is measured: it is tried again.
const TRIES: u32 = 50;

/// The export. It must be there before a claim is made on it.
pub struct Export {
    disk: PathBuf,
    /// Until it is dropped.
    server: Option<Mount>,
}

impl Export {
    pub fn of(ns: &Namespace<'_>) -> Self {
        let disk = ns.export().with_extension("disk");
        fs::create_dir_all(&disk).unwrap();
        let place = disk.display().to_string();
        tool("mount", &["-t", "tmpfs", "-o", &format!("size={SIZE},mode=0777"), "pgset-faults", &place]).unwrap();
        Self { server: Some(Mount::of(&disk, ns.export())), disk }
    }

    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Which process serves it.
    pub fn server(&self) -> u32 {
        self.server.as_ref().unwrap().server()
    }
}

/// The disk becomes as small as what is on it.
pub fn fill(disk: &Path) -> Result<(), String> {
    let mut said = String::new();
    for _ in 0..TRIES {
        match used(disk).and_then(|blocks| resize(disk, &(blocks * BLOCK).to_string())) {
            Ok(()) => return Ok(()),
            Err(why) => said = why,
        }
    }
    Err(said)
}

/// Ends [`fill`].
pub fn empty(disk: &Path) -> Result<(), String> {
    resize(disk, SIZE)
}

fn used(disk: &Path) -> Result<u64, String> {
    let block = format!("--block-size={BLOCK}");
    let said = run(Command::new("df").args([&block, "--output=used"]).arg(disk), None).map_err(|said| said.err)?;
    let blocks = said.out.lines().last().and_then(|line| line.trim().parse().ok());
    blocks.ok_or(said.out)
}

fn resize(disk: &Path, size: &str) -> Result<(), String> {
    tool("mount", &["-o", &format!("remount,size={size}"), &disk.display().to_string()])
}

impl Drop for Export {
    fn drop(&mut self) {
        let server = self.server.take();
        if thread::panicking() && env::var_os("PGSET_E2E_KEEP").is_some() {
            return std::mem::forget(server); // the namespace stays as well, and its pods
        }
        drop(server);
        // Its containers have it until they end.
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.disk), None);
        let _ = fs::remove_dir(&self.disk);
    }
}
