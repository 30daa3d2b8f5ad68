//! The program that will replace this process at a restart: which state versions it can read.
//!
//! An upgrade replaces the program file while the old process still runs. At a handover the process
//! therefore finds the next program at the path from which it was started. A downgrade works in the
//! same way: the state is written in a version that the older program reads, and no connection is
//! lost. A different path in `ExecStart=` cannot be detected.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::handover::format::Version;

/// The program file of this process, even if its path now names another file.
const OWN: &str = "/proc/self/exe";
/// The suffix that the kernel appends to the path of a replaced or removed file (proc(5)).
const REPLACED: &str = " (deleted)";

/// The state version that the next process reads.
pub(super) fn version() -> Version {
    match look() {
        Ok(None) => Version::PRESENT,
        Ok(Some((path, version))) => {
            if version == Version::V1 {
                log::warn!(
                    "{} was replaced by an older version, which takes over connections but not the \
                     configuration: it will not start if the file is invalid",
                    path.display()
                );
            }
            version
        }
        Err(error) => {
            log::debug!("cannot read the next program ({error}): assuming the same version");
            Version::PRESENT
        }
    }
}

/// The program that has replaced this one, and the version it reads; none if it is the same.
fn look() -> io::Result<Option<(PathBuf, Version)>> {
    let link = fs::read_link(OWN)?;
    let name = link.to_string_lossy();
    let path = PathBuf::from(name.strip_suffix(REPLACED).unwrap_or(&name));
    let (own, next) = (File::open(OWN)?.metadata()?, fs::metadata(&path)?);
    if (own.dev(), own.ino()) == (next.dev(), next.ino()) {
        return Ok(None);
    }
    let version = Version::newest_read_by(&fs::read(&path)?);
    Ok(Some((path, version)))
}
