//! The user and the groups of a service, and whether they can read a file.
//!
//! The test opens the file instead of reading its mode bits, so ACLs and directories count too: for
//! a moment the calling thread has the file access rights of the other user (setfsuid(2)).

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgroups, setfsgid, setfsuid, setgroups};

use super::units::{self, Unit};

/// A user like a dynamic one, which owns no files and is in no group.
const NOBODY: u32 = 65_534;

/// The user and the groups of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The name of the user, or that of the service if there is no user yet.
    pub name: String,
    user: Uid,
    groups: Vec<Gid>,
}

/// A file that the service cannot read, and the reason. `Display` is one line that ends with the
/// remedy.
#[derive(Debug)]
pub struct Denied {
    /// The file, or the directory above it that cannot be searched.
    pub place: PathBuf,
    /// The missing permission: `o+r` or `o+x`.
    pub mode: &'static str,
    /// The user that needs it.
    pub user: String,
    /// The error of the system.
    pub cause: io::Error,
}

impl fmt::Display for Denied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, mode, user, cause } = self;
        write!(
            formatter,
            "user {user} of the service cannot read it: {cause}; chmod {mode} {}",
            place.display()
        )
    }
}

impl Account {
    /// The account of `service`; none if it runs as root.
    #[must_use]
    pub fn of(service: &Unit) -> Option<Self> {
        let name = service.value("User");
        if matches!(name, "" | "root" | "0") && !service.is("DynamicUser") {
            return None;
        }
        let more = service.value("SupplementaryGroups").split_whitespace();
        let groups = [service.value("Group")].into_iter().chain(more).filter_map(group);
        Some(Self::named(name, groups.collect()))
    }

    /// The account of the service in this unit, if it is known: from systemd, or else the user with
    /// the unit's name, which the package creates.
    #[must_use]
    pub fn of_name(unit: &str) -> Option<Self> {
        if let Ok(units) = units::show(&[unit])
            && let Some(unit) = units.first().filter(|unit| unit.is_loaded())
        {
            return Self::of(unit);
        }
        let name = unit.trim_end_matches(".service").replace('@', "-");
        User::from_name(&name).ok().flatten().map(|_| Self::named(&name, Vec::new()))
    }

    fn named(name: &str, mut groups: Vec<Gid>) -> Self {
        let known = User::from_name(name).ok().flatten();
        let number = name.parse().ok().map(|number| (Uid::from_raw(number), None));
        let known = known.map(|user| (user.uid, Some(user.gid)));
        let (user, group) = known.or(number).unwrap_or((Uid::from_raw(NOBODY), None));
        // The first group is that of the process itself.
        if groups.is_empty() {
            groups.push(group.unwrap_or(Gid::from_raw(NOBODY)));
        }
        Self { name: name.to_owned(), user, groups }
    }

    /// Whether it is in the group with this number.
    #[must_use]
    pub fn is_in(&self, group: u32) -> bool {
        self.groups.contains(&Gid::from_raw(group))
    }

    /// Tries to read `file` with the rights of this account. Only root can do so; for other users
    /// the result is always `Ok`. A process with threads must not call this.
    ///
    /// # Errors
    /// When the account has no read access.
    pub fn try_reading(&self, file: &Path) -> Result<(), Denied> {
        let Some(disguise) = Disguise::as_(self) else { return Ok(()) };
        let outcome = File::open(file).map(drop);
        let denied = outcome.err().filter(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
        let denied = denied.map(|cause| {
            // The topmost directory that cannot be searched, if a directory is the reason.
            let ancestors: Vec<&Path> = file.ancestors().skip(1).collect();
            let closed = ancestors.into_iter().rev().find(|directory| is_closed(directory));
            let (place, mode) = closed.map_or((file, "o+r"), |directory| (directory, "o+x"));
            Denied { place: place.to_owned(), mode, user: self.name.clone(), cause }
        });
        drop(disguise);
        denied.map_or(Ok(()), Err)
    }
}

/// Whether the entries of a directory cannot be accessed.
fn is_closed(directory: &Path) -> bool {
    let inside = fs::symlink_metadata(directory.join("."));
    inside.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn group(name: &str) -> Option<Gid> {
    let known = Group::from_name(name).ok().flatten().map(|group| group.gid);
    known.or_else(|| name.parse().ok().map(Gid::from_raw))
}

/// File access rights of another user, while this value exists.
struct Disguise {
    user: Uid,
    group: Gid,
    groups: Vec<Gid>,
}

impl Disguise {
    /// None if this process lacks the privilege.
    fn as_(account: &Account) -> Option<Self> {
        if !Uid::effective().is_root() {
            return None;
        }
        let own = getgroups().ok()?;
        setgroups(&account.groups).ok()?;
        // Each call returns the previous id, also if it changes nothing. A second call therefore
        // shows whether the first had an effect.
        let group = setfsgid(account.groups[0]);
        let user = setfsuid(account.user);
        let disguise = Self { user, group, groups: own };
        (setfsuid(account.user) == account.user).then_some(disguise)
    }
}

impl Drop for Disguise {
    fn drop(&mut self) {
        setfsuid(self.user);
        setfsgid(self.group);
        // The groups could be set, so they can be restored.
        let _ = setgroups(&self.groups);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Goal: the obstacle is named, whether it is the file or a directory above it. Afterwards the
    /// process has its own rights again.
    #[test]
    fn what_keeps_another_user_out_is_named() {
        if !Uid::effective().is_root() {
            println!("skipped: only root can try as another user");
            return;
        }
        let top = std::env::temp_dir().join(format!("echo-uring-account-{}", std::process::id()));
        let (directory, file) = (top.join("deep"), top.join("deep/file"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(&file, "secret").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
        let account = Account::named("echo-uring-nobody-has-this-name", Vec::new());
        let tried = || {
            // Rights are those of a thread, but groups those of a process.
            let denied = account.try_reading(&file).err();
            assert_eq!(fs::read_to_string(&file).unwrap(), "secret");
            denied.map(|denied| (denied.place, denied.mode))
        };
        assert_eq!(tried(), None);
        set(&file, 0o640).unwrap();
        assert_eq!(tried(), Some((file.clone(), "o+r")));
        set(&top, 0o700).unwrap();
        assert_eq!(tried(), Some((top.clone(), "o+x")));
        set(&top, 0o755).unwrap();
        set(&file, 0o644).unwrap();
        set(&directory, 0o750).unwrap();
        assert_eq!(tried(), Some((directory.clone(), "o+x")));
        fs::remove_dir_all(&top).unwrap();
    }
}
