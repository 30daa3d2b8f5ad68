//! The properties of units, from `systemctl show`. Read-only.
//!
//! This runs systemctl instead of using the bus: systemctl reaches systemd with and without a bus,
//! and its output is meant for programs (systemctl(1), "show").

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, access};

/// The properties that are queried.
const PROPERTIES: &str = "Id,LoadState,LoadError,ActiveState,SubState,Result,StatusText,\
    ExecMainCode,ExecMainStatus,MainPID,NRestarts,UnitFileState,NeedDaemonReload,ExecStart,\
    ExecStop,User,Group,SupplementaryGroups,DynamicUser,LimitNOFILE,LimitMEMLOCK,\
    FileDescriptorStoreMax,SystemCallFilter,RestrictAddressFamilies,NoNewPrivileges,\
    CapabilityBoundingSet,PrivateNetwork,PrivateUsers,ProtectSystem,ProtectProc,\
    MemoryDenyWriteExecute,TriggeredBy,Listen,FreeBind,FileDescriptorName,ReceiveBuffer";

/// The search path for systemctl if the environment has none.
const PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";

/// The properties of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    properties: Vec<(String, String)>,
}

/// Why units cannot be queried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// systemd is not running.
    NoSystemd,
    /// systemd is running but cannot be queried; the reason.
    Unreachable(String),
}

/// Queries the units with these names. A unit that does not exist is returned as well, with a
/// corresponding `LoadState`.
///
/// # Errors
/// When systemd is not running or cannot be queried.
pub fn show(names: &[&str]) -> Result<Vec<Unit>, Unseen> {
    let is_booted = Path::new("/run/systemd/system").is_dir();
    let Some(systemctl) = systemctl() else {
        return Err(match is_booted {
            true => Unseen::Unreachable("systemctl cannot be executed".to_owned()),
            false => Unseen::NoSystemd,
        });
    };
    let mut command = Command::new(systemctl);
    command.args(["show", "--no-pager", "--property", PROPERTIES, "--"]).args(names);
    command.env("LC_ALL", "C").env("SYSTEMD_COLORS", "0").stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(parsed(&String::from_utf8_lossy(&output.stdout)))
        }
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().next().unwrap_or("systemctl show fails").trim();
            Err(match line.contains("not been booted with systemd") {
                true => Unseen::NoSystemd,
                false => Unseen::Unreachable(line.to_owned()),
            })
        }
        Err(error) => Err(Unseen::Unreachable(format!("systemctl: {error}"))),
    }
}

/// The first systemctl that can be executed. In the sandbox of the service there is none. This
/// check avoids the system calls of a child process, which the sandbox forbids.
fn systemctl() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH.into());
    std::env::split_paths(&path)
        .map(|directory| directory.join("systemctl"))
        .find(|file| access(file, AccessFlags::X_OK).is_ok())
}

/// The units of an output: lines of `Name=value`, with an empty line between two units.
fn parsed(text: &str) -> Vec<Unit> {
    let property = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    let unit = |block: &str| Unit { properties: block.lines().filter_map(property).collect() };
    text.split("\n\n").map(unit).filter(|unit| !unit.properties.is_empty()).collect()
}

impl Unit {
    /// The name of the unit.
    #[must_use]
    pub fn name(&self) -> &str {
        self.value("Id")
    }

    /// The value of a property, empty if it has none.
    #[must_use]
    pub fn value(&self, property: &str) -> &str {
        let of_name = self.properties.iter().find(|(name, _)| name == property);
        of_name.map_or("", |(_, value)| value)
    }

    /// All values of a property that may have several, such as `Listen`.
    pub fn values<'a>(&'a self, property: &'a str) -> impl Iterator<Item = &'a str> {
        let of_name = self.properties.iter().filter(move |(name, _)| name == property);
        of_name.map(|(_, value)| value.as_str())
    }

    /// Whether a property is set to yes.
    #[must_use]
    pub fn is(&self, property: &str) -> bool {
        self.value(property) == "yes"
    }

    /// Whether its file was found and understood.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.value("LoadState") == "loaded"
    }

    /// Its main process, if there is one.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.value("MainPID").parse().ok().filter(|pid| *pid != 0)
    }

    /// A limit (`LimitNOFILE`), the hard one; `None` if it is infinite or unknown.
    #[must_use]
    pub fn limit(&self, property: &str) -> Option<u64> {
        // systemd 252 writes 2^64 - 1 for infinity.
        self.value(property).parse().ok().filter(|limit| *limit != u64::MAX)
    }

    /// The words of `ExecStart=`.
    #[must_use]
    pub fn command(&self) -> Vec<&str> {
        let words = self.value("ExecStart").split_once("argv[]=");
        let words = words.and_then(|(_, rest)| rest.split(" ; ").next());
        words.unwrap_or_default().split_whitespace().collect()
    }

    /// The configuration file that its command names.
    #[must_use]
    pub fn config(&self) -> Option<PathBuf> {
        let words = self.command();
        let after = words.iter().position(|word| *word == "--config").map(|index| index + 1);
        let joined = words.iter().find_map(|word| word.strip_prefix("--config="));
        after.and_then(|index| words.get(index).copied()).or(joined).map(PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd 257 writes, shortened.
    const OUTPUT: &str = "Id=echo-uring@lab.service\nLoadState=loaded\nMainPID=0\n\
        LimitNOFILE=524288\nLimitMEMLOCK=infinity\nStatusText=a=b; c\n\
        ExecStart={ path=/usr/sbin/echo-uring ; argv[]=/usr/sbin/echo-uring serve --config \
        /etc/echo-uring/lab.toml ; ignore_errors=no ; start_time=[n/a] }\n\n\
        Id=echo-uring.socket\nListen=127.0.0.1:7 (Stream)\nListen=[::1]:7 (Stream)\nFreeBind=yes\n";

    #[test]
    fn units_are_told_apart_and_their_properties_read() {
        let units = parsed(OUTPUT);
        let [service, socket] = &units[..] else { panic!("{units:?}") };
        assert_eq!(service.name(), "echo-uring@lab.service");
        assert!(service.is_loaded());
        assert_eq!(service.process(), None);
        assert_eq!(service.limit("LimitNOFILE"), Some(524_288));
        assert_eq!(service.limit("LimitMEMLOCK"), None);
        assert_eq!(service.value("StatusText"), "a=b; c");
        assert_eq!(service.config(), Some(PathBuf::from("/etc/echo-uring/lab.toml")));
        assert_eq!(service.value("Unheard"), "");
        assert_eq!(
            socket.values("Listen").collect::<Vec<_>>(),
            ["127.0.0.1:7 (Stream)", "[::1]:7 (Stream)"]
        );
        assert!(socket.is("FreeBind"));
        assert_eq!(socket.config(), None);
        assert!(parsed("").is_empty());
    }
}
