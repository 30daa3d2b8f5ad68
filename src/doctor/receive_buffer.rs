//! The receive buffers of UDP sockets: what each holds, and how to make it larger.
//!
//! Datagrams that arrive while the daemon does something else wait in that buffer, and the kernel
//! drops those that do not fit. The default is 208 KiB, so a pause of some milliseconds loses
//! datagrams: at half of the rate that saturates a worker, thousands are lost.

use std::fs;

use super::finding::{Finding, Topic};
use crate::listen;

/// Bytes of the buffer that a datagram takes with what the kernel keeps about it: one of 64 bytes,
/// and one of 64 KiB (Linux 6.18: 212,992 bytes hold 256 and 3 of them, 8 MiB 10,082 and 126).
const SMALL: u64 = 832;
const LARGE: u64 = 66_560;
/// A smaller buffer is a note.
const ENOUGH: u64 = 2 << 20;
/// The default of the kernel, where /proc does not show it.
const DEFAULT: u64 = 212_992;

/// The finding for a socket or a unit with a buffer of `bytes`, as SO_RCVBUF reports them: twice
/// the number that was set (socket(7)).
pub(super) fn finding(whose: &str, bytes: u64, remedy: &str) -> Finding {
    let what = format!(
        "{whose}: a receive buffer of {} KiB holds {} small or {} large datagrams",
        bytes / 1024,
        bytes / SMALL,
        bytes / LARGE
    );
    if bytes >= ENOUGH {
        return Finding::ok(Topic::Sockets, what);
    }
    let what = format!("{what}; the kernel drops the others while the daemon is busy");
    Finding::note(Topic::Sockets, what, remedy)
}

/// What a socket gets from `ReceiveBuffer=` of its unit, of which 0 means that it is not set.
/// systemd is not bound by the sysctl net.core.rmem_max. In a unit that `has_streams` as well the
/// directive would end the kernel's own tuning for every connection.
pub(super) fn of_unit(name: &str, wanted: u64, has_streams: bool) -> Finding {
    let bytes = if wanted == 0 { default() } else { 2 * wanted };
    let remedy = match has_streams {
        false => format!(
            "set ReceiveBuffer=4M in [Socket]: systemctl edit {name}; then restart the socket unit"
        ),
        true => "for load, give the UDP sockets a unit of their own with ReceiveBuffer=4M, as \
                 /usr/share/doc/echo-uring/examples/echo-uring-udp.socket does"
            .to_owned(),
    };
    finding(&format!("UDP sockets of {name}"), bytes, &remedy)
}

/// What a socket gets that the daemon binds itself.
pub(super) fn of_configured() -> Option<Finding> {
    let bytes = listen::granted_receive_buffer().ok()?;
    let remedy = "set the sysctl net.core.rmem_max to 4194304";
    Some(finding("UDP sockets that the daemon binds", bytes as u64, remedy))
}

fn default() -> u64 {
    let text = fs::read_to_string("/proc/sys/net/core/rmem_default").unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn the_default_is_a_note_and_a_set_size_is_not() {
        let default = finding("x", DEFAULT, "r");
        assert_eq!(default.level, Level::Note);
        let what = "x: a receive buffer of 208 KiB holds 256 small or 3 large datagrams; ";
        assert!(default.what.starts_with(what), "{default:?}");
        let set = of_unit("echo-uring.socket", 4 << 20, false);
        assert_eq!(set.level, Level::Ok);
        assert!(set.what.contains("holds 10082 small or 126 large"), "{set:?}");
        let small = of_unit("echo-uring.socket", 1 << 18, false);
        assert!(small.remedy.unwrap().starts_with("set ReceiveBuffer=4M"), "{}", small.what);
        let mixed = of_unit("echo-uring.socket", 0, true);
        assert!(mixed.remedy.unwrap().contains("echo-uring-udp.socket"), "{}", mixed.what);
    }
}
