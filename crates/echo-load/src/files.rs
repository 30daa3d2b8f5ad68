//! Result files. The file of an earlier run is kept until there is new content, and is then
//! replaced atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file to be written.
pub(crate) struct Replacement {
    path: PathBuf,
    /// None before the first write.
    file: Option<File>,
}

impl Replacement {
    /// # Errors
    /// When the file could not be written.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        // Through a symbolic link, the file behind it is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let replacement = Self { path, file: None };
        if !replacement.is_special() {
            // Fail now and not after the run.
            let (_, temporary) = replacement.open_beside()?;
            fs::remove_file(temporary)?;
        }
        Ok(replacement)
    }

    /// Appends `bytes`. The first call replaces the existing file.
    ///
    /// # Errors
    /// When the file cannot be written or replaced.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            return file.write_all(bytes);
        }
        if self.is_special() {
            let mut file = OpenOptions::new().write(true).open(&self.path)?;
            file.write_all(bytes)?;
            self.file = Some(file);
            return Ok(());
        }
        let (mut file, temporary) = self.open_beside()?;
        let written = file.write_all(bytes).and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            // A failure to remove it is ignored.
            let _ = fs::remove_file(&temporary);
        }
        self.file = Some(file);
        written
    }

    /// Whether it is a device or a pipe, which is written directly.
    fn is_special(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| !found.is_file() && !found.is_dir())
    }

    /// A new file in the same directory.
    fn open_beside(&self) -> io::Result<(File, PathBuf)> {
        let found = fs::metadata(&self.path).ok();
        if found.is_some() {
            // A file without write permission must not be replaced either.
            OpenOptions::new().append(true).open(&self.path)?;
        }
        let mut name = self.path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = self.path.with_file_name(name);
        let file = File::create(&temporary)?;
        if let Some(found) = found {
            fs::set_permissions(&temporary, found.permissions())?;
        }
        Ok((file, temporary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_file_stays_until_there_is_a_new_one() {
        let place = std::env::temp_dir().join(format!("echo-load-files-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let path = place.join("file");
        fs::write(&path, "old").unwrap();
        let mut replacement = Replacement::new(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        replacement.write(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        replacement.write(b"er").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        assert!(Replacement::new(&place).is_err(), "a directory is not a file");
        fs::remove_dir_all(&place).unwrap();
    }
}
