//! A look at a directory by way of a server, as by NFS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::lab::{SOON, run, wait_until};
use crate::node::signal_process;

/// The mount. Locks that are taken through it are unknown to others, and the storage behind it can be stalled.
pub struct Mount {
    pub path: PathBuf,
    server: Child,
}

impl Mount {
    /// Nothing of what another one does is remembered wrongly, as between NFS clients that open a file anew.
    pub fn of(directory: &Path, path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        let options = "allow_other,attr_timeout=0,entry_timeout=0,negative_timeout=0";
        let server = Command::new("bindfs").args(["-f", "-o", options]).arg(directory).arg(&path).spawn().unwrap();
        wait_until(SOON, "the mount", || {
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            if mounts.contains(&format!(" {} ", path.display())) { Ok(()) } else { Err(mounts) }
        });
        Self { path, server }
    }

    /// The server, which serves nobody while it is stopped.
    pub fn server(&self) -> u32 {
        self.server.id()
    }

    /// Whatever is asked of it waits.
    pub fn stall(&self) {
        signal_process(self.server(), "STOP").unwrap();
    }

    /// It goes on with what was asked meanwhile.
    pub fn go_on(&self) {
        signal_process(self.server(), "CONT").unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = signal_process(self.server.id(), "CONT");
        // Its containers have it until they end, and it ends with the last of them.
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.path), None);
    }
}
