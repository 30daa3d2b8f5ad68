//! Why io_uring cannot be used here: kernel, sysctl or seccomp filter.
//!
//! The errno alone is ambiguous. A filter may return EPERM (Docker, systemd) or ENOSYS (Podman),
//! the sysctl EPERM, and a kernel without io_uring ENOSYS. Therefore, after a call is refused, the
//! other two system calls are tried on a ring that does not exist. The kernel returns EBADF or
//! EINVAL, regardless of the sysctl, whereas a filter returns the same errno as for the first call.

use std::fmt;
use std::fs;
use std::io;

use nix::errno::Errno;

/// Rings that need more locked memory than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// How many rings are wanted.
    pub rings: usize,
    /// Bytes for each.
    pub each: u64,
    /// Bytes that all processes of the user together may lock.
    pub limit: u64,
}

impl Shortage {
    /// Bytes for all of them.
    #[must_use]
    pub fn needed(&self) -> u64 {
        self.each * self.rings as u64
    }

    /// How many rings fit if no other process of the user has any.
    #[must_use]
    pub fn fitting(&self) -> u64 {
        self.limit / self.each
    }

    /// Whether the limit itself is high enough, so that other processes of the user hold the rest.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.needed() <= self.limit
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rings, limit, .. } = self;
        let (plural, verb) = if *rings == 1 { ("", "needs") } else { ("s", "need") };
        write!(
            formatter,
            "too little locked memory (ENOMEM): {rings} ring{plural} {verb} {}, and \
             RLIMIT_MEMLOCK is {} for all processes of user {} together, enough for {}; \
             set LimitMEMLOCK=infinity in the unit (ulimit -l unlimited), or start fewer workers \
             or threads",
            KibiBytes(self.needed()),
            KibiBytes(*limit),
            // The user that is charged is the real one.
            nix::unistd::getuid(),
            self.fitting(),
        )
    }
}

/// Bytes as `ulimit -l` counts them.
struct KibiBytes(u64);

impl fmt::Display for KibiBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} KiB", self.0.div_ceil(1024))
    }
}

/// One of the three system calls of io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// io_uring_setup(2)
    Setup,
    /// io_uring_enter(2)
    Enter,
    /// io_uring_register(2)
    Register,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Setup => "io_uring_setup(2)",
            Self::Enter => "io_uring_enter(2)",
            Self::Register => "io_uring_register(2)",
        }
    }
}

/// Why io_uring cannot be used here.
#[derive(Debug)]
pub enum Unusable {
    /// A call is refused (EPERM, EACCES, ENOSYS).
    Refused {
        /// Which one.
        call: Call,
        /// Its errno.
        errno: i32,
        /// What refuses it.
        obstacle: Obstacle,
    },
    /// The kernel is older than 6.1, or lacks what the text names.
    TooOld(&'static str),
    /// A restricted ring nevertheless accepts what the text names.
    Unrestricted(&'static str),
    /// The rings need more locked memory than the process may have.
    LockedMemory(Shortage),
    /// Something else ran out.
    Resources {
        /// In which system call.
        call: &'static str,
        /// Its errno.
        error: io::Error,
    },
}

/// What refuses a call of io_uring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The kernel was built without io_uring.
    Kernel,
    /// The sysctl `kernel.io_uring_disabled` has this value; `None` if it cannot be read here.
    Sysctl(Option<String>),
    /// A seccomp filter.
    Filter,
    /// The sysctl, which has this value, and a seccomp filter as well.
    SysctlAndFilter(String),
    /// A seccomp filter, or else the kernel was built without io_uring.
    FilterOrKernel,
    /// A security module such as SELinux (Linux 6.15).
    SecurityModule,
}

/// The evidence about a refusal.
#[derive(Clone, Debug)]
struct Evidence {
    call: Call,
    errno: i32,
    sysctl: Sysctl,
    /// Whether another call is refused although it names no ring.
    others_refused: bool,
    /// Whether another call reached the kernel's io_uring.
    others_answered: bool,
    /// Whether this process has a seccomp filter at all, where that can be seen.
    filtered: Option<bool>,
}

/// The sysctl `kernel.io_uring_disabled`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sysctl {
    Value(String),
    /// The kernel has none: it came with Linux 6.6.
    Absent,
    /// /proc/sys is not visible, as under `ProcSubset=pid`.
    Hidden,
}

impl Sysctl {
    fn read() -> Self {
        match fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
            Ok(value) => Self::Value(value.trim().to_owned()),
            Err(_) if fs::exists("/proc/sys/kernel").unwrap_or(false) => Self::Absent,
            Err(_) => Self::Hidden,
        }
    }
}

fn is_refusal(errno: i32) -> bool {
    matches!(errno, libc::EPERM | libc::EACCES | libc::ENOSYS)
}

impl Evidence {
    fn gather(call: Call, errno: i32) -> Self {
        // Some registrations need no ring; 0 is not one of them.
        let asked = [(Call::Enter, libc::SYS_io_uring_enter), (Call::Register, REGISTER)];
        let others = asked.into_iter().filter(|(other, _)| *other != call);
        let answers: Vec<bool> = others.map(|(_, number)| is_refused(number)).collect();
        Self {
            call,
            errno,
            sysctl: Sysctl::read(),
            others_refused: answers.contains(&true),
            others_answered: answers.contains(&false),
            filtered: status("Seccomp").map(|mode| mode != "0"),
        }
    }

    fn obstacle(&self) -> Obstacle {
        let forbids = |value: &str| value != "0";
        match (&self.sysctl, self.errno) {
            // A ring was created: the kernel has io_uring, and the sysctl only forbids setup.
            _ if self.call != Call::Setup => Obstacle::Filter,
            (Sysctl::Value(value), libc::ENOSYS) if forbids(value) => {
                Obstacle::SysctlAndFilter(value.clone())
            }
            // If the kernel has the sysctl or answers a call, it has io_uring.
            (Sysctl::Value(_), libc::ENOSYS) => Obstacle::Filter,
            (_, libc::ENOSYS) if self.others_answered => Obstacle::Filter,
            (_, libc::ENOSYS) if self.filtered == Some(false) => Obstacle::Kernel,
            (_, libc::ENOSYS) => Obstacle::FilterOrKernel,
            (Sysctl::Value(value), _) if forbids(value) && self.others_refused => {
                Obstacle::SysctlAndFilter(value.clone())
            }
            (Sysctl::Value(value), _) if forbids(value) => Obstacle::Sysctl(Some(value.clone())),
            (_, _) if self.others_refused => Obstacle::Filter,
            (Sysctl::Hidden, _) => Obstacle::Sysctl(None),
            (Sysctl::Value(_) | Sysctl::Absent, _) if self.filtered == Some(false) => {
                Obstacle::SecurityModule
            }
            (Sysctl::Value(_) | Sysctl::Absent, _) => Obstacle::Filter,
        }
    }
}

const REGISTER: libc::c_long = libc::SYS_io_uring_register;

/// Whether the call with this number is refused although it names no ring.
fn is_refused(number: libc::c_long) -> bool {
    // SAFETY: -1 is not a descriptor, and without one neither call reads or writes our memory.
    let answer = unsafe { libc::syscall(number, -1, 0, 0, std::ptr::null::<u8>(), 0) };
    answer < 0 && is_refusal(Errno::last_raw())
}

/// A field of this thread's /proc/PID/status (proc_pid_status(5)); the sandbox of the unit permits
/// reading it, but not getuid(2).
pub(super) fn status(field: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned())
}

impl Unusable {
    /// What the failure of `call` means.
    pub(super) fn from_call(call: Call, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) if is_refusal(errno) => {
                Self::Refused { call, errno, obstacle: Evidence::gather(call, errno).obstacle() }
            }
            _ => Self::Resources { call: call.name(), error },
        }
    }

    /// What the failure of io_uring_setup(2) means.
    pub(super) fn from_setup(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EINVAL) => Self::TooOld("SINGLE_ISSUER and DEFER_TASKRUN rings"),
            _ => Self::from_call(Call::Setup, error),
        }
    }

    /// Whether a later retry may succeed without a change on this machine.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Resources { .. } => true,
            Self::LockedMemory(shortage) => shortage.may_pass(),
            Self::Refused { .. } | Self::TooOld(_) | Self::Unrestricted(_) => false,
        }
    }

    /// The errno that describes it best.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused { errno, .. } => *errno,
            Self::TooOld(_) | Self::Unrestricted(_) => libc::ENOSYS,
            Self::LockedMemory(_) => libc::ENOMEM,
            Self::Resources { error, .. } => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// What to do about a filter. The default profiles of Docker, containerd and Podman refuse
/// io_uring. The profile that permits it is installed with the packages and is in the image. How it
/// is applied is in docker-run(1), podman-run(1) and the Kubernetes API (`SeccompProfile`).
const ALLOW: &str = "in a container, replace the engine's default seccomp profile by that of \
                     echo-uring, seccomp.json in /usr/share/echo-uring of package and image \
                     (Docker, Podman: copy it to the host and run with --security-opt \
                     seccomp=seccomp.json, Kubernetes: copy it to \
                     /var/lib/kubelet/seccomp/echo-uring.json on the node and set \
                     seccompProfile: {type: Localhost, localhostProfile: echo-uring.json}), \
                     or in a unit, allow io_uring_setup, io_uring_enter and io_uring_register in \
                     SystemCallFilter=";
/// What to do about the sysctl.
const SET: &str = "set it to 0, or to 1 and put the service's group into kernel.io_uring_group";

impl fmt::Display for Unusable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { call, errno, obstacle } => {
                refusal(formatter, call.name(), Errno::from_raw(*errno), obstacle)
            }
            Self::TooOld(missing) => {
                write!(formatter, "this kernel's io_uring lacks {missing}; run Linux 6.1 or later")
            }
            Self::Unrestricted(what) => write!(
                formatter,
                "io_uring is not safe to use here: a restricted ring takes {what}; \
                 run a kernel whose IORING_REGISTER_RESTRICTIONS works",
            ),
            Self::LockedMemory(shortage) => shortage.fmt(formatter),
            Self::Resources { call, error } => {
                let remedy = match error.raw_os_error() {
                    Some(libc::EMFILE) => "raise LimitNOFILE= of the service (ulimit -n)",
                    Some(libc::ENFILE) => "raise the sysctl fs.file-max",
                    Some(libc::ENOMEM | libc::EAGAIN | libc::ENOBUFS) => {
                        "the machine, or the service's MemoryMax= (ulimit -v), leaves too little \
                         memory: raise it"
                    }
                    _ => "see io_uring(7)",
                };
                write!(formatter, "{call} fails: {error}; {remedy}")
            }
        }
    }
}

fn refusal(
    formatter: &mut fmt::Formatter<'_>,
    call: &str,
    errno: Errno,
    obstacle: &Obstacle,
) -> fmt::Result {
    match obstacle {
        Obstacle::Kernel => write!(
            formatter,
            "this kernel has no io_uring: {call} fails with {errno:?}, and no seccomp filter is on \
             this process; run Linux 6.1 or later with CONFIG_IO_URING=y"
        ),
        Obstacle::Sysctl(Some(value)) => write!(
            formatter,
            "io_uring is disabled: sysctl kernel.io_uring_disabled is {value}; {SET}"
        ),
        Obstacle::Sysctl(None) => write!(
            formatter,
            "io_uring is disabled: {call} fails with {errno:?} and no seccomp filter refuses \
             io_uring_enter(2), so it is the sysctl kernel.io_uring_disabled, which cannot be read \
             here; {SET}"
        ),
        Obstacle::Filter => {
            write!(
                formatter,
                "a seccomp filter refuses io_uring: {call} fails with {errno:?}; {ALLOW}"
            )
        }
        Obstacle::SysctlAndFilter(value) => write!(
            formatter,
            "io_uring is disabled twice: sysctl kernel.io_uring_disabled is {value}, and a seccomp \
             filter refuses its calls; set the sysctl to 0, and {ALLOW}"
        ),
        Obstacle::FilterOrKernel => write!(
            formatter,
            "io_uring is not available: {call} fails with {errno:?}, as does a seccomp filter that \
             knows no such call, or a kernel without it; {ALLOW}, or run Linux 6.1 or later with \
             CONFIG_IO_URING=y"
        ),
        Obstacle::SecurityModule => write!(
            formatter,
            "io_uring is forbidden: {call} fails with {errno:?}, but neither the sysctl \
             kernel.io_uring_disabled nor a seccomp filter is in the way; allow it to this program \
             in the security module (SELinux, AppArmor), see the kernel's audit log"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(errno: i32, sysctl: Sysctl) -> Evidence {
        let call = Call::Setup;
        let (others_refused, others_answered, filtered) = (false, true, Some(true));
        Evidence { call, errno, sysctl, others_refused, others_answered, filtered }
    }

    fn value(text: &str) -> Sysctl {
        Sysctl::Value(text.to_owned())
    }

    /// Goal: each pair of errno and circumstances leads to the real cause.
    #[test]
    fn the_obstacle_follows_from_the_evidence() {
        let refused =
            |it: Evidence| Evidence { others_refused: true, others_answered: false, ..it };
        let free = |it: Evidence| Evidence { filtered: Some(false), ..it };
        let (eperm, enosys) = (libc::EPERM, libc::ENOSYS);
        let two = || value("2");
        let zero = || value("0");
        let both = Obstacle::SysctlAndFilter("2".to_owned());
        let cases = [
            // Docker, and Podman, on a kernel where io_uring is allowed.
            (refused(evidence(eperm, zero())), Obstacle::Filter),
            (refused(evidence(enosys, zero())), Obstacle::Filter),
            // The same where /proc/sys is not visible, or has no such file.
            (refused(evidence(eperm, Sysctl::Hidden)), Obstacle::Filter),
            (refused(evidence(eperm, Sysctl::Absent)), Obstacle::Filter),
            (refused(evidence(enosys, Sysctl::Hidden)), Obstacle::FilterOrKernel),
            (refused(evidence(enosys, Sysctl::Absent)), Obstacle::FilterOrKernel),
            // A filter that only refuses io_uring_setup.
            (evidence(eperm, zero()), Obstacle::Filter),
            (evidence(enosys, Sysctl::Hidden), Obstacle::Filter),
            // The sysctl, visible and not.
            (evidence(eperm, two()), Obstacle::Sysctl(Some("2".to_owned()))),
            (evidence(eperm, Sysctl::Hidden), Obstacle::Sysctl(None)),
            (free(evidence(eperm, Sysctl::Hidden)), Obstacle::Sysctl(None)),
            // Both.
            (refused(evidence(eperm, two())), both.clone()),
            (refused(evidence(enosys, two())), both),
            // A kernel without io_uring, and a security module.
            (free(refused(evidence(enosys, Sysctl::Absent))), Obstacle::Kernel),
            (free(evidence(libc::EACCES, zero())), Obstacle::SecurityModule),
            // The ring was there, and then a call was refused.
            (Evidence { call: Call::Register, ..evidence(eperm, two()) }, Obstacle::Filter),
        ];
        for (evidence, wanted) in cases {
            assert_eq!(evidence.obstacle(), wanted, "{evidence:?}");
        }
    }

    /// Goal: if a filter is or may be the cause, the message names the profile that permits
    /// io_uring, its path, and how each engine applies it. It is one line, like every failure at
    /// start-up.
    #[test]
    fn the_remedy_for_a_filter_names_the_profile_and_how_each_engine_applies_it() {
        let both = Obstacle::SysctlAndFilter("2".to_owned());
        for obstacle in [Obstacle::Filter, Obstacle::FilterOrKernel, both] {
            let unusable = Unusable::Refused { call: Call::Setup, errno: libc::ENOSYS, obstacle };
            let text = unusable.to_string();
            for words in [
                "seccomp.json in /usr/share/echo-uring",
                "Docker, Podman",
                "--security-opt seccomp=",
                "Kubernetes",
                "/var/lib/kubelet/seccomp/echo-uring.json",
                "localhostProfile: echo-uring.json",
                "allow io_uring_setup, io_uring_enter and io_uring_register",
                "SystemCallFilter=",
            ] {
                assert!(text.contains(words), "{words:?} is missing: {text}");
            }
            assert!(!text.contains('\n') && !text.contains("  "), "{text}");
        }
        // If no filter is the cause, no profile helps.
        for obstacle in [Obstacle::Kernel, Obstacle::Sysctl(None), Obstacle::SecurityModule] {
            let unusable = Unusable::Refused { call: Call::Setup, errno: libc::EPERM, obstacle };
            assert!(!unusable.to_string().contains("seccomp.json"), "{unusable}");
        }
    }

    #[test]
    fn a_call_without_a_ring_is_answered_by_the_kernel() {
        assert!(!is_refused(libc::SYS_io_uring_enter));
        assert!(!is_refused(REGISTER));
        // Every kernel refuses a number that no call has.
        assert!(is_refused(9_999));
    }
}
