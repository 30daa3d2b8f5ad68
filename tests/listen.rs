//! Listening sockets on the real kernel: bound or inherited, distinguished by kind, refused, and
//! options that connections inherit.
//!
//! An inherited socket needs a process that is started with it. So each such test starts itself
//! once more: a shell puts the sockets in their places and names the process in `LISTEN_PID`, and
//! the new process writes down what it found.

#![allow(clippy::unwrap_used)] // A test says with a panic what it did not expect.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use echo_ring::{ListeningSocket, Transport};
use echo_uring::config::{Address, Config, Identity, Kind, ListenerConfig, Tcp, UnixKind};
use echo_uring::listen::{self, Family, ListenError, Opened, Origin};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

const REPORT: &str = "ECHO_URING_TEST_REPORT";

fn wanted(address: &str) -> ListenerConfig {
    let address = Some(address.parse().unwrap());
    ListenerConfig {
        name: "test".to_owned(),
        address,
        kind: Kind::Echo,
        proxies: None,
        identity: Identity::default(),
        builtin_default: false,
    }
}

fn open(addresses: &[&str]) -> Result<Opened, ListenError> {
    let configured: Vec<_> = addresses.iter().map(|address| wanted(address)).collect();
    listen::open(&configured, &Config::default().tcp)
}

fn refused(address: &str) -> (u8, String) {
    let error = open(&[address]).expect_err(address);
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    (error.exit_status(), error.to_string())
}

/// A path that nothing has taken, for one test of this process.
fn scratch(name: &str) -> PathBuf {
    let path = env::temp_dir().join(format!("echo-uring-listen-{name}-{}", std::process::id()));
    let _ = fs::remove_file(&path);
    path
}

fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

fn accepted_from(listener: &listen::Listener) -> (TcpStream, TcpStream) {
    let listening = TcpListener::from(listener.socket.try_clone().unwrap());
    let client = TcpStream::connect(listening.local_addr().unwrap()).unwrap();
    (client, listening.accept().unwrap().0)
}

// Options.

/// Each option is set to a value that is not the kernel's own, so that inheriting is seen.
#[test]
fn an_accepted_connection_has_every_option_of_its_listener() {
    let tcp = Tcp {
        nodelay: true,
        keepalive: Some(Duration::from_secs(84)),
        user_timeout: Some(Duration::from_millis(45_500)),
        receive_buffer: Some(30_000),
        send_buffer: Some(40_000),
    };
    let opened = listen::open(&[wanted("127.0.0.1:0")], &tcp).unwrap();
    assert_eq!(opened.warnings, [] as [String; 0]);
    let (_client, accepted) = accepted_from(&opened.listeners[0]);
    for socket in [SockRef::from(&opened.listeners[0].socket), SockRef::from(&accepted)] {
        assert!(socket.out_of_band_inline().unwrap());
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        // The kernel holds still: when it asks is the core's business.
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(32_767));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(32_767));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 127);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(45_500)));
        // The kernel doubles what it is given (socket(7)).
        assert_eq!(socket.recv_buffer_size().unwrap(), 60_000);
        assert_eq!(socket.send_buffer_size().unwrap(), 80_000);
    }
}

#[test]
fn an_option_that_is_off_is_off() {
    let tcp = Tcp {
        nodelay: false,
        keepalive: None,
        user_timeout: None,
        receive_buffer: None,
        send_buffer: None,
    };
    let opened = listen::open(&[wanted("127.0.0.1:0")], &tcp).unwrap();
    let (_client, accepted) = accepted_from(&opened.listeners[0]);
    let accepted = SockRef::from(&accepted);
    assert!(accepted.out_of_band_inline().unwrap(), "this one is never off");
    assert!(!accepted.tcp_nodelay().unwrap());
    // A reload may switch it on; until then no probes are sent.
    assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(32_767));
    assert_eq!(accepted.tcp_user_timeout().unwrap(), None);
}

#[test]
fn the_operator_hears_of_a_capped_buffer() {
    let tcp = Tcp { send_buffer: Some(1 << 30), ..Config::default().tcp };
    let Opened { warnings, .. } = listen::open(&[wanted("127.0.0.1:0")], &tcp).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("tcp.send-buffer to "), "{warnings:?}");
    assert!(warnings[0].ends_with("raise the sysctl net.core.wmem_max"), "{warnings:?}");
}

/// The kernel passes nothing on from a listening Unix socket, hence `equip`.
#[test]
fn an_accepted_unix_connection_is_equipped_by_hand() {
    let path = scratch("equip");
    let tcp = Tcp { send_buffer: Some(30_000), ..Config::default().tcp };
    let address = format!("unix:{}", path.display());
    let mut opened = listen::open(&[wanted(&address)], &tcp).unwrap();
    let listener = opened.listeners.remove(0);
    assert_eq!((listener.family, &listener.address), (Family::Unix(UnixKind::Stream), &address));
    assert!(SockRef::from(&listener.socket).out_of_band_inline().unwrap());

    let listening = UnixListener::from(listener.socket.try_clone().unwrap());
    let client = UnixStream::connect(&path).unwrap();
    let (mut accepted, _) = listening.accept().unwrap();
    assert!(!SockRef::from(&accepted).out_of_band_inline().unwrap(), "if it were inherited…");
    let listening = ListeningSocket {
        receive_buffer: tcp.receive_buffer,
        send_buffer: tcp.send_buffer,
        ..ListeningSocket::of(listener.socket, Transport::Unix)
    };
    listening.equip(accepted.as_fd());
    assert!(SockRef::from(&accepted).out_of_band_inline().unwrap());
    assert_eq!(SockRef::from(&accepted).send_buffer_size().unwrap(), 60_000);

    let sender = SockRef::from(&client);
    sender.send(b"ab").unwrap();
    // A kernel without urgent data on Unix sockets refuses it and so loses nothing.
    let urgent = sender.send_out_of_band(b"!").is_ok();
    sender.send(b"cd").unwrap();
    drop(client);
    let mut received = String::new();
    accepted.read_to_string(&mut received).unwrap();
    assert_eq!(received, if urgent { "ab!cd" } else { "abcd" });
}

// Bound sockets.

#[test]
fn a_bound_listener_knows_its_address_and_is_closed_on_exec() {
    let Opened { listeners, warnings, .. } = open(&["127.0.0.1:0"]).unwrap();
    assert_eq!(warnings, [] as [String; 0]);
    let [listener] = &listeners[..] else { panic!("{listeners:?}") };
    let (_client, accepted) = accepted_from(listener);
    assert_eq!(listener.address, accepted.local_addr().unwrap().to_string());
    assert_eq!((listener.origin, listener.family), (Origin::Bound, Family::Tcp));
    assert_eq!(listener.name, "test");
    let flags = nix::fcntl::fcntl(&listener.socket, nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, nix::libc::FD_CLOEXEC);
}

#[test]
fn every_ipv6_address_takes_ipv4_too() {
    if !has_ipv6() {
        assert!(refused("[::1]:0").1.contains("; use an address "));
        return;
    }
    let opened = open(&["[::]:0"]).unwrap();
    let address: SocketAddr = opened.listeners[0].address.parse().unwrap();
    TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
}

#[test]
fn an_address_in_use_is_named_with_the_remedy() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let (status, error) = refused(&address.to_string());
    assert_eq!(status, 69);
    assert!(error.starts_with(&format!("{address}: Address already in use")), "{error}");
    assert!(error.contains(&format!(
        "; find the program that uses it with \"ss -ltnp sport = :{}\"",
        address.port()
    )));
}

#[test]
fn an_address_of_another_host_is_named_with_the_remedy() {
    let (status, error) = refused("192.0.2.1:0");
    assert_eq!(status, 69);
    assert!(error.starts_with("192.0.2.1:0: Cannot assign requested address"), "{error}");
    assert!(error.ends_with("; use an address listed by \"ip address\""), "{error}");
}

#[test]
fn a_privileged_port_is_named_with_the_remedy() {
    let cause = std::io::Error::from_raw_os_error(nix::libc::EACCES);
    let address: Address = "127.0.0.1:7".parse().unwrap();
    let error = ListenError::Bind { address, cause }.to_string();
    assert!(error.starts_with("127.0.0.1:7: Permission denied"), "{error}");
    assert!(error.contains("systemctl start echo-uring.socket"), "{error}");
    assert!(error.contains("net.ipv4.ip_unprivileged_port_start to 7"), "{error}");
}

/// An address of another host stands for the missing IPv6: the kernel gives the same answer.
#[test]
fn a_built_in_listener_may_be_missing_but_not_all_of_them() {
    let missing = ListenerConfig {
        name: "local-ipv6".to_owned(),
        builtin_default: true,
        ..wanted("192.0.2.1:0")
    };
    let tcp = Config::default().tcp;
    let opened = listen::open(&[missing.clone(), wanted("127.0.0.1:0")], &tcp).unwrap();
    assert_eq!(opened.listeners.len(), 1);
    assert_eq!(opened.warnings.len(), 1);
    assert!(
        opened.warnings[0].starts_with("listener local-ipv6 is skipped: 192.0.2.1:0: Cannot"),
        "{:?}",
        opened.warnings
    );
    let error = listen::open(&[missing], &tcp).unwrap_err();
    assert_eq!(error.exit_status(), 69);
}

#[test]
fn a_unix_socket_replaces_a_stale_file_and_nothing_else() {
    let path = scratch("stale");
    let address = format!("unix:{}", path.display());

    // It never listened: a child that another test is just starting has a copy of it for a moment,
    // and the copy of a listener would still take connections.
    let stale = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    stale.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    drop(stale);
    let opened = open(&[&address]).expect("a stale file is in nobody's way");
    let (status, error) = refused(&address);
    assert_eq!(
        (status, error),
        (
            69,
            format!(
                "{address}: Address already in use (os error 98); \
                 stop the program that listens there or use another path"
            )
        )
    );
    UnixStream::connect(&path).expect("the refused one has not removed the file");
    drop(opened);
    assert!(!path.exists(), "our own file is removed at the end");

    let datagram = UnixDatagram::bind(&path).unwrap();
    assert!(refused(&address).1.contains("the program that listens there"));
    drop(datagram);
    fs::remove_file(&path).unwrap();

    fs::write(&path, "precious").unwrap();
    let (status, error) = refused(&address);
    assert_eq!(status, 69);
    assert!(error.contains(": exists and is not a socket; remove it"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_unix_socket_of_a_successor_is_left_alone() {
    let path = scratch("successor");
    let opened = open(&[&format!("unix:{}", path.display())]).unwrap();
    fs::remove_file(&path).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    drop(opened);
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    fs::remove_file(&path).unwrap();
}

/// Goal: a Unix socket of each kind is bound by path and by abstract name, and a second time it is
/// refused with the remedy. Of an abstract name nothing stays behind.
#[test]
fn unix_sockets_of_every_kind_are_bound_once() {
    for kind in UnixKind::ALL {
        let path = scratch(kind.name());
        let abstract_name = format!("@echo-uring-listen-{}-{}", kind.name(), std::process::id());
        let names = [
            (path.display().to_string(), "stop the program that listens there or use another path"),
            (abstract_name, "find the program that uses it with \"ss -xlp\", or use another name"),
        ];
        for (name, remedy) in names {
            let address = format!("{}:{name}", kind.name());
            let opened = open(&[&address]).unwrap();
            let [listener] = &opened.listeners[..] else { panic!("{opened:?}") };
            assert_eq!((&listener.address, listener.family), (&address, Family::Unix(kind)));
            let socket = SockRef::from(&listener.socket);
            let is_listening = kind != UnixKind::Datagram;
            assert_eq!(socket.is_listener().unwrap(), is_listening, "{address}");
            let (status, error) = refused(&address);
            let expected = format!("{address}: Address already in use (os error 98); {remedy}");
            assert_eq!((status, error), (69, expected));
            drop(opened);
            assert!(!path.exists(), "our own file is removed at the end");
            open(&[&address]).expect("it is free again");
        }
        // A file that a killed process left does not block the address, whatever its kind.
        drop(UnixDatagram::bind(&path).unwrap());
        let stale = format!("{}:{}", kind.name(), path.display());
        assert!(path.exists() && open(&[&stale]).is_ok(), "{stale}");
    }
}

#[test]
fn a_missing_directory_is_named_with_the_remedy() {
    let (status, error) = refused("unix:/nonexistent/echo.sock");
    assert_eq!(status, 69);
    assert!(error.starts_with("unix:/nonexistent/echo.sock: No such file"), "{error}");
    assert!(error.ends_with("; use a directory that exists and is writable"), "{error}");
}

// Inherited sockets.

/// If this process is the one that inherits: writes down what it found, and says that the test ends
/// here.
fn is_child() -> bool {
    let Some(report) = env::var_os(REPORT) else { return false };
    let found = match open(&["127.0.0.1:0"]) {
        Ok(Opened { listeners, warnings, .. }) => {
            assert_eq!(warnings, [] as [String; 0]);
            let lines = listeners.iter().map(|listener| {
                let socket = SockRef::from(&listener.socket);
                let is_stream = !listener.family.is_datagram();
                let has_bytes = is_stream && listener.family != Family::Unix(UnixKind::Seqpacket);
                assert_eq!(has_bytes, socket.out_of_band_inline().unwrap_or(false));
                assert!(!socket.nonblocking().unwrap());
                let flags = nix::fcntl::fcntl(&listener.socket, nix::fcntl::FcntlArg::F_GETFD);
                assert_eq!(flags, Ok(nix::libc::FD_CLOEXEC));
                format!("{:?} {} ({})\n", listener.origin, listener.address, listener.name)
            });
            lines.collect()
        }
        Err(error) => format!("{} {error}\n", error.exit_status()),
    };
    fs::write(report, found).unwrap();
    true
}

/// Starts `test` once more after `setup` of the shell, which finds `sockets` as its fds 0, 1 and 2.
fn child(test: &str, setup: &str, sockets: Vec<OwnedFd>) -> String {
    let report = scratch(test);
    let mut command = Command::new("sh");
    let script = format!("{setup}; exec 0</dev/null 1>/dev/null 2>&1; exec \"$0\" \"$@\"");
    command.args(["-c", &script]).arg(env::current_exe().unwrap());
    command.args(["--exact", test, "--test-threads=1"]).env(REPORT, &report);
    let mut sockets = sockets.into_iter().map(Stdio::from);
    command.stdin(sockets.next().unwrap_or_else(Stdio::null));
    command.stdout(sockets.next().unwrap_or_else(Stdio::null));
    command.stderr(sockets.next().unwrap_or_else(Stdio::null));
    let status = command.status().unwrap();
    let found = fs::read_to_string(&report).unwrap_or_default();
    let _ = fs::remove_file(&report);
    assert!(status.success(), "{test} failed as child: {status}");
    found
}

#[test]
fn sockets_of_every_kind_are_inherited() {
    if is_child() {
        return;
    }
    let path = scratch("inherited-socket");
    let inet = TcpListener::bind("127.0.0.1:0").unwrap();
    inet.set_nonblocking(true).unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let other = TcpListener::bind(if has_ipv6() { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
    let (inet_address, other_address) = (inet.local_addr().unwrap(), other.local_addr().unwrap());
    let found = child(
        "sockets_of_every_kind_are_inherited",
        "export LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=one:unknown:echo; exec 3<&1 4<&0 5<&2",
        vec![inet.into(), unix.into(), other.into()],
    );
    fs::remove_file(&path).unwrap();
    let expected = format!(
        "Inherited unix:{} (one)\n\
         Inherited {inet_address} (inherited)\n\
         Inherited {other_address} (echo)\n",
        path.display()
    );
    assert_eq!(found, expected);
}

#[test]
fn unix_sockets_for_messages_are_inherited() {
    if is_child() {
        return;
    }
    let path = scratch("inherited-datagram");
    let datagram = UnixDatagram::bind(&path).unwrap();
    let name = format!("echo-uring-seqpacket-{}", std::process::id());
    let seqpacket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    seqpacket.bind(&SockAddr::unix(format!("\0{name}")).unwrap()).unwrap();
    seqpacket.listen(1).unwrap();
    let found = child(
        "unix_sockets_for_messages_are_inherited",
        "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=one:two; exec 3<&0 4<&1",
        vec![datagram.into(), seqpacket.into()],
    );
    fs::remove_file(&path).unwrap();
    let expected = format!(
        "Inherited unix-datagram:{} (one)\nInherited unix-seqpacket:@{name} (two)\n",
        path.display()
    );
    assert_eq!(found, expected);
}

/// Goal: status and metrics need streams, whatever the name says.
#[test]
fn an_admin_socket_for_messages_is_refused() {
    if is_child() {
        return;
    }
    let name = format!("\0echo-uring-status-{}", std::process::id());
    let seqpacket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    seqpacket.bind(&SockAddr::unix(name).unwrap()).unwrap();
    seqpacket.listen(1).unwrap();
    let found = child(
        "an_admin_socket_for_messages_is_refused",
        "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=status; exec 3<&0",
        vec![seqpacket.into()],
    );
    assert!(
        found.starts_with("69 inherited fd 3 is a seqpacket socket with the name of"),
        "{found}"
    );
}

#[test]
fn a_udp_socket_is_inherited() {
    if is_child() {
        return;
    }
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = udp.local_addr().unwrap();
    let found = child(
        "a_udp_socket_is_inherited",
        "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=echo; exec 3<&0",
        vec![udp.into()],
    );
    assert_eq!(found, format!("Inherited udp:{address} (echo)\n"));
}

#[test]
fn an_abstract_unix_socket_is_inherited() {
    if is_child() {
        return;
    }
    let name = format!("\0echo-uring-test\n{}", std::process::id());
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&name).unwrap()).unwrap();
    socket.listen(1).unwrap();
    let found = child(
        "an_abstract_unix_socket_is_inherited",
        "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=too:many:names; exec 3<&0",
        vec![socket.into()],
    );
    // Whatever the name is, it is a word in a line.
    let shown = name[1..].replace('\n', "\\n");
    assert_eq!(found, format!("Inherited unix:@{shown} (inherited)\n"));
}

#[test]
fn what_is_not_meant_for_this_process_is_left_alone() {
    if is_child() {
        return;
    }
    for variables in ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1", "LISTEN_PID=$$ LISTEN_FDS=0"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = child(
            "what_is_not_meant_for_this_process_is_left_alone",
            &format!("export {variables}; exec 3<&0"),
            vec![listener.into()],
        );
        assert!(found.starts_with("Bound 127.0.0.1:"), "{variables}: {found}");
    }
}

#[test]
fn a_senseless_count_is_refused() {
    if is_child() {
        return;
    }
    let long = "9".repeat(10_000);
    for (count, shown) in
        [("many", "many"), ("-1", "-1"), ("1000000000", "1000000000"), (&long, &long[..40])]
    {
        let setup = format!("export LISTEN_PID=$$ LISTEN_FDS={count}");
        let found = child("a_senseless_count_is_refused", &setup, Vec::new());
        assert_eq!(
            found,
            format!(
                "69 LISTEN_FDS={shown:?} is not a number of sockets from 0 to 1024; \
                 see sd_listen_fds(3)\n"
            )
        );
    }
}

#[test]
fn whatever_does_not_listen_is_refused_by_number() {
    if is_child() {
        return;
    }
    let streams =
        "; pass listening TCP and Unix sockets, and UDP and Unix datagram sockets, only\n";
    let datagram = "69 inherited fd 4 is a datagram socket without an address; \
                    pass one that is bound\n";
    let of_status = "69 inherited fd 4 is a UDP socket with the name of a service that needs \
                      stream sockets; use ListenStream= in its socket unit, or another \
                      FileDescriptorName=\n";
    let silent = "69 inherited fd 4 is a socket that does not listen; \
                  use Accept=no in the socket unit\n";
    let unbound = |domain, kind| OwnedFd::from(Socket::new(domain, kind, None).unwrap());
    let (client, _server) = UnixStream::pair().unwrap();
    let (pipe, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"x").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (socket, expected) in [
        (Some(OwnedFd::from(udp)), of_status.to_owned()),
        (Some(unbound(Domain::UNIX, Type::DGRAM)), datagram.to_owned()),
        (Some(unbound(Domain::UNIX, Type::SEQPACKET)), silent.to_owned()),
        (Some(unbound(Domain::IPV4, Type::STREAM)), silent.to_owned()),
        (Some(OwnedFd::from(client)), silent.to_owned()),
        (Some(OwnedFd::from(pipe)), format!("69 inherited fd 4 is a pipe{streams}")),
        (None, format!("69 inherited fd 4 is the file \"/dev/null\"{streams}")),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = child(
            "whatever_does_not_listen_is_refused_by_number",
            "export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=echo:status; exec 3<&0 4<&1",
            [Some(listener.into()), socket].into_iter().flatten().collect(),
        );
        assert_eq!(found, expected);
    }
    let found = child(
        "whatever_does_not_listen_is_refused_by_number",
        "export LISTEN_PID=$$ LISTEN_FDS=1; exec 3<&-",
        Vec::new(),
    );
    assert_eq!(found, format!("69 inherited fd 3 is not open{streams}"));
}
