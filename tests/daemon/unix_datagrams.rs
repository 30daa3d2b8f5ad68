//! Datagrams over Unix sockets: every datagram from a named socket comes back, whatever ancillary
//! data it has, and none waits for a peer that does not read.

use std::fs;
use std::io::{ErrorKind, IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, bind, sendmsg};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::daemon::Launch;
use crate::machine::{Scratch, in_company, time_limit, wait_until};
use crate::tape::Tape;
use crate::udp::Server;

/// The longest datagram that a buffer holds besides its header and the name of its sender.
const LONGEST: usize = 65_922;

/// How many datagrams can wait for a Unix peer.
fn queue_max() -> u64 {
    let text = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
    1 + text.trim().parse::<u64>().unwrap()
}

/// A client that is connected to the service.
struct Client(Socket);

impl Client {
    /// With an abstract name of the kernel's choice (unix(7), autobind).
    fn to(service: &SockAddr) -> Self {
        let client = Self::unbound(service);
        bind(client.0.as_raw_fd(), &UnixAddr::new_unnamed()).unwrap();
        client
    }

    fn at(path: &Path, service: &SockAddr) -> Self {
        let client = Self::unbound(service);
        client.0.bind(&SockAddr::unix(path).unwrap()).unwrap();
        client
    }

    /// Without a name, so that it cannot be answered.
    fn unbound(service: &SockAddr) -> Self {
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
        socket.connect(service).unwrap();
        socket.set_read_timeout(Some(time_limit(20.0))).unwrap();
        Self(socket)
    }

    fn send(&self, seed: u64, length: usize) {
        let sent = self.0.send(&Tape::new(seed).bytes(0, length)).unwrap();
        assert_eq!(sent, length);
    }

    fn comes_back(&self, seed: u64, length: usize) {
        let echo = self.read().expect("an echo");
        assert!(echo == Tape::new(seed).bytes(0, length), "datagram {seed}: {} bytes", echo.len());
    }

    /// Reads what is there: datagrams of this length, of the seeds from 0 on. Returns how many.
    fn read_all(&self, length: usize) -> u64 {
        self.0.set_nonblocking(true).unwrap();
        let mut count = 0;
        loop {
            match self.read() {
                Ok(echo) => assert!(echo == Tape::new(count).bytes(0, length), "echo {count}"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return count,
                Err(error) => panic!("{error}"),
            }
            count += 1;
        }
    }

    fn read(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; LONGEST + 1];
        let length = (&self.0).read(&mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// A service at a path and at an abstract name.
struct Service {
    server: Server,
    addresses: [SockAddr; 2],
    scratch: Scratch,
}

impl Service {
    fn start() -> Self {
        let scratch = Scratch::new();
        let path = scratch.path("service");
        let name = format!("echo-uring-{}", path.display());
        let config = format!(
            "[server]\nworkers = 2\n\
             [[listener]]\nname = \"path\"\naddress = \"unix-datagram:{}\"\n\
             [[listener]]\nname = \"name\"\naddress = \"unix-datagram:@{name}\"\n",
            path.display()
        );
        let server = Server::launch(Launch { config, ..Launch::default() });
        let addresses =
            [SockAddr::unix(path).unwrap(), SockAddr::unix(format!("\0{name}")).unwrap()];
        Self { server, addresses, scratch }
    }
}

#[test]
fn datagrams_come_back_to_a_socket_with_a_name() {
    let _quiet = in_company();
    let service = Service::start();
    for (index, address) in service.addresses.iter().enumerate() {
        let path = service.scratch.path(&format!("client{index}"));
        for client in [Client::to(address), Client::at(&path, address)] {
            for (seed, length) in (0..).zip([1, 0, 0, 100, 8_192, LONGEST, 0, 65_507, 17]) {
                client.send(seed, length);
                client.comes_back(seed, length);
            }
        }
    }
    service.server.balance();
    let listeners = service.server.listeners();
    for (listener, name) in listeners.iter().zip(["path", "name"]) {
        assert_eq!(
            (&listener["name"], &listener["protocol"]),
            (&name.into(), &"unix-datagram".into())
        );
        assert_eq!(
            (&listener["datagrams_received"], &listener["datagrams_sent"]),
            (&18.into(), &18.into())
        );
    }
    assert_eq!(service.server.warnings(), [""; 0]);
    service.server.stop();
}

/// As `ListenDatagram=/path` passes it, which stays when the daemon ends.
#[test]
fn an_inherited_socket_is_served_by_one_process_after_another() {
    let _quiet = in_company();
    let scratch = Scratch::new();
    let path = scratch.path("inherited");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = SockAddr::unix(&path).unwrap();
    let client = Client::to(&address);
    for seed in 0..2 {
        // Datagrams sent while no process serves wait for the next one.
        client.send(seed, 50);
        let strangers = vec![OwnedFd::from(socket.try_clone().unwrap())];
        let server = Server::launch(Launch { strangers, ..Launch::default() });
        client.comes_back(seed, 50);
        assert_eq!(server.listeners()[0]["address"], format!("unix-datagram:{}", path.display()));
        server.stop();
    }
    assert!(path.exists(), "the socket is not the daemon's");
}

#[test]
fn datagrams_without_a_return_address_are_dropped_and_counted() {
    let _quiet = in_company();
    let service = Service::start();
    let address = &service.addresses[0];
    Client::unbound(address).send(1, 10);
    service.server.wait_for_dropped("source", 1);
    let client = Client::to(address);
    client.send(2, LONGEST + 1);
    service.server.wait_for_dropped("truncated", 1);
    // The peer has been closed.
    service.server.hold();
    Client::to(address).send(3, 10);
    let path = service.scratch.path("gone");
    Client::at(&path, address).send(4, 10);
    fs::remove_file(&path).unwrap();
    service.server.go_on();
    service.server.wait_for_dropped("unroutable", 2);
    client.send(5, 10);
    client.comes_back(5, 10);
    service.server.stop();
}

/// Goal: a peer that does not read delays nothing, and every datagram that comes back is whole. (A
/// send that waits would deliver an empty datagram and lose the payload, seen on Linux 6.1 to
/// 6.18.)
#[test]
fn a_full_peer_loses_datagrams_and_gets_no_empty_ones() {
    let _quiet = in_company();
    let service = Service::start();
    let address = &service.addresses[1];
    // This peer is not connected to the service, so its queue is bounded.
    let (idle, reader) =
        (Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap(), Client::to(address));
    bind(idle.as_raw_fd(), &UnixAddr::new_unnamed()).unwrap();
    let sent = 2 * queue_max() + 10;
    for seed in 0..sent {
        idle.send_to(&Tape::new(seed).bytes(0, 200), address).unwrap();
        reader.send(1_000 + seed, 300);
        reader.comes_back(1_000 + seed, 300);
    }
    service.server.balance();
    let dropped = service.server.dropped("send-buffer");
    let idle = Client(idle);
    let echoes = idle.read_all(200);
    assert_eq!((echoes + dropped, echoes), (sent, queue_max()));
    // It reads again, and is served again.
    idle.0.send_to(&Tape::new(sent).bytes(0, 200), address).unwrap();
    idle.0.set_nonblocking(false).unwrap();
    idle.0.set_read_timeout(Some(time_limit(20.0))).unwrap();
    idle.comes_back(sent, 200);
    service.server.stop();
}

/// The queue of a peer connected to the service has no bound: unread datagrams fill the send buffer
/// of the service. When the peer closes, the others are served again.
#[test]
fn a_connected_peer_that_does_not_read_fills_the_send_buffer_until_it_goes() {
    let _quiet = in_company();
    let service = Service::start();
    let address = &service.addresses[0];
    let (idle, other) = (Client::to(address), Client::to(address));
    let mut sent = 0;
    while service.server.dropped("send-buffer") == 0 {
        (0..20).for_each(|more| idle.send(sent + more, 60_000));
        sent += 20;
        service.server.balance();
    }
    let dropped = service.server.dropped("send-buffer");
    let echoes = idle.read_all(60_000);
    assert_eq!(echoes + dropped, sent);
    drop(idle);
    other.send(1, 100);
    other.comes_back(1, 100);
    service.server.stop();
}

/// Goal: peers cannot fill the daemon's table of files. Method: each datagram passes descriptors.
#[test]
fn descriptors_that_come_along_are_closed() {
    let _quiet = in_company();
    let service = Service::start();
    let client = Client::to(&service.addresses[0]);
    let before = service.server.daemon.process.open_files();
    let file = fs::File::open("/dev/null").unwrap();
    let passed = [file.as_raw_fd(); 250];
    for seed in 0..100 {
        let (payload, rights) =
            (Tape::new(seed).bytes(0, 20), [ControlMessage::ScmRights(&passed)]);
        let sent = sendmsg::<UnixAddr>(
            client.0.as_raw_fd(),
            &[IoSlice::new(&payload)],
            &rights,
            MsgFlags::empty(),
            None,
        );
        assert_eq!(sent, Ok(20));
        client.comes_back(seed, 20);
    }
    let after = service.server.daemon.process.open_files();
    assert_eq!(after, before, "of 25,000 descriptors some are open");
    service.server.stop();
}

/// Goal: the service cannot be made to answer itself forever. Method: when the reply is sent, the
/// path of the sender leads to the service.
#[test]
fn a_path_that_leads_to_the_service_itself_starts_no_endless_exchange() {
    let _quiet = in_company();
    let service = Service::start();
    let [by_path, by_name] = &service.addresses;
    let own = by_path.as_pathname().unwrap().to_owned();
    for (index, address) in [by_path, by_name].into_iter().enumerate() {
        let path = service.scratch.path(&format!("loop{index}"));
        service.server.hold();
        let client = Client::at(&path, address);
        client.send(1, 10);
        fs::remove_file(&path).unwrap();
        symlink(&own, &path).unwrap();
        service.server.go_on();
        service.server.wait_for_dropped("own-address", index as u64 + 1);
        wait_until("the exchange to end", time_limit(10.0), || {
            service.server.figure("datagrams_received") == 2 * (index as u64 + 1)
        });
    }
    service.server.stop();
}
