//! Named instances of the service: `echo-uring@NAME` with `/etc/echo-uring/NAME.toml`.

use std::path::Path;

/// The rule of [`is_name`].
pub const NAME_RULE: &str = "the name of an instance has 1 to 20 letters, digits and hyphens";

/// Whether an instance can have this name: its user is called `echo-uring-NAME`, and the name of a
/// user has at most 31 characters (systemd.exec(5), `User=`).
#[must_use]
pub fn is_name(name: &str) -> bool {
    let is_possible = |letter: u8| letter.is_ascii_alphanumeric() || letter == b'-';
    (1..=20).contains(&name.len()) && name.bytes().all(is_possible)
}

/// The name of the instance whose file this is, if it is at the place of one. No instance can have
/// the name unless [`is_name`] holds.
#[must_use]
pub fn of_file(path: &Path) -> Option<&str> {
    let name = path.strip_prefix("/etc/echo-uring").ok()?.to_str()?.strip_suffix(".toml")?;
    (!name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_that_of_a_user() {
        for name in ["lab", "edge-2", "A", "abcdefghijklmnopqrst"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "abcdefghijklmnopqrstu", "a b", "a_b", "a.b", "../lab", "a/b", "ä"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_file_of_an_instance_tells_its_name() {
        let name = |path: &'static str| of_file(Path::new(path));
        assert_eq!(name("/etc/echo-uring/lab.toml"), Some("lab"));
        assert_eq!(name("/etc/echo-uring.toml"), None);
        assert_eq!(name("/etc/echo-uring/lab.toml.d/limits.toml"), None);
        assert_eq!(name("/srv/lab.toml"), None);
    }
}
