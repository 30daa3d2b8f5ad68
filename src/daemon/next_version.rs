//! The program that will follow this process at a restart: which states it can read.
//!
//! An upgrade replaces the file of the program while the old process still runs, so a process that
//! is asked to hand over finds the next program where it was itself started from. A downgrade is
//! the same the other way round: then the state is written as the older program reads it, and no
//! connection is lost. What cannot be seen from here is another path in `ExecStart=`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::handover::format::Version;

/// The file that this process runs, also when its name belongs to another one by now.
const OWN: &str = "/proc/self/exe";
/// What the kernel puts behind the name of a file that was replaced or removed (proc(5)).
const REPLACED: &str = " (deleted)";

/// The version of a state that the next process reads.
pub(super) fn version() -> Version {
    match look() {
        Ok(None) => Version::PRESENT,
        Ok(Some((path, version))) => {
            if version < Version::PRESENT {
                log::warn!(
                    "{} is of an older version now: it takes over the connections, but not the \
                     configuration, so it will not start if the file is invalid",
                    path.display()
                );
            }
            version
        }
        Err(error) => {
            log::debug!("cannot look at the program that comes next ({error}): the same as this");
            Version::PRESENT
        }
    }
}

/// The program that has taken the place of this one, and what it reads; none if it is the same.
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
