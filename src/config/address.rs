//! Where a listener listens, as it is spelled in the file, on the command line and in the log.
//!
//! It must never know whether the address exists: that is found out when it is bound.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// `sun_path` has 108 bytes (unix(7)), one of them for the closing NUL.
const UNIX_PATH_LENGTH_MAX: usize = 107;

/// Where a listener listens: `127.0.0.1:7777`, `[::1]:7777` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP over IPv4 or IPv6. Port 0 lets the kernel choose.
    Inet(SocketAddr),
    /// A Unix stream socket: an absolute path of at most 107 bytes.
    Unix(PathBuf),
}

impl Address {
    /// Whether both cannot be bound at once. Port 0 never collides: the kernel finds a free one.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (one, two) = match (self, other) {
            (Self::Unix(one), Self::Unix(two)) => return one == two,
            (Self::Inet(one), Self::Inet(two)) => (one, two),
            (Self::Unix(_), Self::Inet(_)) | (Self::Inet(_), Self::Unix(_)) => return false,
        };
        // `[::]` is dual stack here, so it takes every IPv4 address too; `0.0.0.0` takes those
        // only.
        let takes = |wide: &SocketAddr, narrow: &SocketAddr| {
            wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
        };
        one.port() == two.port()
            && one.port() != 0
            && (one == two || takes(one, two) || takes(two, one))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    /// What is wrong, and the cure.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(path) = text.strip_prefix("unix:") else {
            return text.parse().map(Self::Inet).map_err(|_| {
                format!(
                    "{text:?} is not an address; use one such as \"127.0.0.1:7777\", \
                     \"[::1]:7777\" or \"unix:/run/echo.sock\" (numbers, not host names)"
                )
            });
        };
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(format!(
                "{text:?} names no socket; use an absolute path such as \"unix:/run/echo.sock\""
            ));
        }
        if path.len() > UNIX_PATH_LENGTH_MAX {
            return Err(format!(
                "the path has {} bytes; use at most {UNIX_PATH_LENGTH_MAX}, the kernel's limit",
                path.len()
            ));
        }
        Ok(Self::Unix(path.into()))
    }
}
