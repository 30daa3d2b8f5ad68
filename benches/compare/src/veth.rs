//! A second network namespace, and a pair of virtual interfaces to it, over which datagrams travel
//! as packets of 1,500 bytes, unlike on loopback.
//!
//! The client's end has many addresses, as the daemon limits what one source may send. It cuts its
//! bursts into packets itself; the server's end merges packets as a network card's driver does
//! (GRO). Servers are started in the namespace, which exists as long as it has a process.

use std::ffi::OsStr;
use std::io;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

/// Where servers are.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 86, 2, 1);

/// The first of the client's addresses; there are [`SOURCES`].
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 86, 3, 0);

/// Addresses that flows come from, one after the other.
pub(crate) const SOURCES: u32 = 256;

/// In a namespace of its own: `$1` is a process in that of the servers.
const SET_UP: &str = "set -e
ip link add echo-near type veth peer name echo-far netns $1
ip addr add 10.86.0.1/14 dev echo-near
ip route add local 10.86.3.0/24 dev echo-near
inside() { nsenter --net=/proc/$process/ns/net \"$@\"; }
process=$1
inside ip link set lo up
inside ip addr add 10.86.2.1/14 dev echo-far
inside ethtool -K echo-far gro on
ethtool -K echo-near tso off tx-udp-segmentation off
inside ip link set echo-far up
ip link set echo-near up
inside ip route add 10.86.3.0/24 via 10.86.0.1
";

/// The namespace of the servers. Dropping it takes the interfaces down.
pub(crate) struct FarEnd {
    holder: Child,
}

impl FarEnd {
    /// Makes it. Needs root, iproute2, util-linux and ethtool.
    pub(crate) fn new() -> Result<Self, String> {
        let make = || -> io::Result<Self> {
            // `cat` waits for the end of a pipe, and so ends with this process at the latest.
            let holder = Command::new("unshare")
                .args(["--net", "cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()?;
            let far_end = Self { holder };
            far_end.await_namespace()?;
            let process = far_end.holder.id().to_string();
            let status = Command::new("bash").args(["-c", SET_UP, "set-up", &process]).status()?;
            if status.success() { Ok(far_end) } else { Err(io::Error::other(status.to_string())) }
        };
        make()
            .map_err(|error| format!("making a pair of interfaces (needs root, ethtool): {error}"))
    }

    /// Until the holder is in a namespace of its own.
    fn await_namespace(&self) -> io::Result<()> {
        let ours = std::fs::read_link("/proc/self/ns/net")?;
        for _ in 0..500 {
            let theirs = std::fs::read_link(format!("/proc/{}/ns/net", self.holder.id()))?;
            if theirs != ours {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// A command that runs there. It becomes the program: the process is the same.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg("--").arg(program);
        command
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
