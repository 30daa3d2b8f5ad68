//! The files of a configuration: the main file, and the drop-ins beside it.
//!
//! Drop-ins are the regular files `F.d/*.toml`, in the order of the bytes of their names. Other
//! names, hidden files and directories are ignored. A file must be a regular file or `/dev/null`,
//! so that a reload never blocks on a FIFO, a socket or a device.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;

use super::file::{Role, Source};
use super::{ConfigError, DEFAULT_PATH, Invalid};

/// A file larger than this (bytes) is not a configuration.
const FILE_LENGTH_MAX: u64 = 1 << 20;
/// More files than this are a mistake, and would take much memory.
const DROP_INS_MAX: usize = 256;
/// `/dev/null`, the major and minor number of which are 1 and 3 on every Linux.
const NULL_DEVICE: u64 = 0x103;

/// The files of the configuration at `path`, or of the default one, which may be absent.
///
/// # Errors
/// Each file that cannot be read.
pub(super) fn read_all(path: Option<&Path>) -> Result<Vec<Source>, Invalid> {
    let main = path.unwrap_or(Path::new(DEFAULT_PATH));
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    let mut take = |file: &Path, role, bytes: io::Result<Vec<u8>>| match bytes {
        Ok(bytes) => sources.push(Source { file: file.to_owned(), bytes, role }),
        Err(cause) => errors.push(ConfigError::Read { file: file.to_owned(), cause }),
    };
    match read(main) {
        Err(cause) if path.is_none() && cause.kind() == io::ErrorKind::NotFound => {}
        bytes => take(main, Role::Main, bytes),
    }
    match drop_ins(main) {
        Ok(files) => files.iter().for_each(|file| take(file, Role::DropIn, read(file))),
        Err(cause) => take(&directory(main), Role::DropIn, Err(cause)),
    }
    if errors.is_empty() { Ok(sources) } else { Err(errors.into()) }
}

/// The directory of the drop-ins of `main`: `F.d`.
pub(super) fn directory(main: &Path) -> PathBuf {
    let mut name = main.as_os_str().to_owned();
    name.push(".d");
    name.into()
}

/// The drop-ins of `main`, in their order. A directory that is missing has none.
pub(super) fn drop_ins(main: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory(main)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or(OsStr::new("")).as_bytes();
        let fits = name.ends_with(b".toml") && !name.starts_with(b".");
        // A file that cannot be examined causes an error when it is read.
        if fits && !fs::metadata(&path).is_ok_and(|it| it.is_dir()) {
            files.push(path);
        }
        if files.len() > DROP_INS_MAX {
            return Err(io::Error::other(format!("it has more than {DROP_INS_MAX} files")));
        }
    }
    files.sort_by(|one, two| one.as_os_str().as_bytes().cmp(two.as_os_str().as_bytes()));
    Ok(files)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let found = fs::metadata(file).map_err(|error| match fs::symlink_metadata(file) {
        Ok(link) if link.is_symlink() && error.kind() == io::ErrorKind::NotFound => {
            io::Error::other("it is a symbolic link to a file that is missing")
        }
        _ => error,
    })?;
    // Checked before it is opened, since opening alone has effects on pipes and devices…
    refuse_unless_plain(&found)?;
    let opened = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(file)?;
    // …and after it, since the file may have been replaced.
    refuse_unless_plain(&opened.metadata()?)?;
    contents(opened)
}

fn contents(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(FILE_LENGTH_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LENGTH_MAX {
        return Err(io::Error::other("it is larger than 1 MiB, so not a configuration"));
    }
    Ok(bytes)
}

fn refuse_unless_plain(found: &Metadata) -> io::Result<()> {
    let kind = found.file_type();
    let what = if kind.is_file() || (kind.is_char_device() && found.rdev() == NULL_DEVICE) {
        return Ok(());
    } else if kind.is_fifo() {
        "a FIFO (a named pipe)"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a device"
    };
    Err(io::Error::other(format!("it is {what}, not a regular file")))
}
