//! Goal: impossible requests are refused at once, on stderr, with the documented exit status.

use crate::program::run;
use crate::servers::closed_port;

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [
        "",
        "127.0.0.1",
        "::1:7",
        "unix:",
        "http://127.0.0.1:7777",
        "udp:127.0.0.1:7",
        "udp://127.0.0.1",
        "udp://127.0.0.1:7 --mode churn",
        "udp://127.0.0.1:7 --mode stream",
        "udp://127.0.0.1:7 --require-close",
        "udp://127.0.0.1:7 --size 65508",
        "udp://127.0.0.1:7 --size 65528",
        "udp://127.0.0.1:7 --burst 129",
        "udp://127.0.0.1:7 --burst 4 --size 64..65",
        "udp://127.0.0.1:7 --burst 4 --size 0",
        "udp://127.0.0.1:7 --burst 55 --size 1200",
        "udp://127.0.0.1:7 --burst 4 --depth 3",
        "tcp://127.0.0.1:7 --burst 4",
        "tcp://127.0.0.1:7 --dont-fragment",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:7 --size 0",
        "tcp://127.0.0.1:7 --duration never",
        "tcp://127.0.0.1:7 --mode ping",
        "tcp://127.0.0.1:7 --rate -1",
        "tcp://127.0.0.1:7 --interval 1us",
        "tcp://127.0.0.1:7 --seed 9007199254740992",
        "tcp://127.0.0.1:7 --hdr /tmp/../tmp/x --plot /tmp/x",
        "tcp://127.0.0.1:7 -c 2 --threads 3",
        "tcp://127.0.0.1:7 --mode churn --depth 2",
        "tcp://127.0.0.1:7 --source ::1",
        "unix:/tmp/x --source 127.0.0.1",
        "unix-seqpacket:",
        "unix-seqpacket:/tmp/x --source 127.0.0.1",
        "unix-seqpacket:/tmp/x --size 0",
        "unix-seqpacket:/tmp/x --size 1GiB",
        "unix-seqpacket:/tmp/x --burst 4",
        "unix-seqpacket:/tmp/x --dont-fragment",
        "unix-seqpacket:/tmp/x --proxy-protocol v2 --proxy-source 10.0.0.1",
        "unix-datagram:@",
        "unix-datagram:/tmp/x --source 127.0.0.1",
        "unix-datagram:/tmp/x --size 65528",
        "unix-datagram:/tmp/x --burst 4",
        "unix-datagram:/tmp/x --dont-fragment",
        "unix-datagram:/tmp/x --mode churn",
        "unix-datagram:/tmp/x --mode stream",
        "unix-datagram:/tmp/x --require-close",
        "unix-datagram:/tmp/x --proxy-protocol v2 --proxy-source 10.0.0.1",
        "tcp://127.0.0.1:7 --hdr /nonexistent/file",
        "tcp://127.0.0.1:7 --plot /nonexistent/file",
        "diff only-one.json",
    ] {
        let run = run(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{arguments}: {run:#?}");
        assert!(!run.stderr.is_empty(), "{arguments}: no word on stderr");
    }
}

#[test]
fn no_connection_is_status_3() {
    let (_reserved, closed) = closed_port();
    for arguments in [
        format!("tcp://{closed} -d 1s"),
        format!("tcp://{closed} -d 1s --mode churn --json"),
        format!("tcp://localhost:{} -d 1s", closed.port()),
        // No such name can exist (RFC 6761).
        "no-such-name.invalid:7 -d 1s".to_owned(),
        "unix:/nonexistent/socket -d 1s".to_owned(),
        "unix-seqpacket:/nonexistent/socket -d 1s".to_owned(),
        "unix-datagram:/nonexistent/socket -d 1s".to_owned(),
        // This address is reserved (RFC 5737).
        format!("tcp://{closed} -d 1s --source 192.0.2.1"),
    ] {
        let run = run(&arguments);
        assert_eq!(run.code, Some(3), "{arguments}: {run:#?}");
        let told = run.stderr.contains("cannot connect") || run.stdout.contains("refused");
        assert!(told, "{arguments}: {run:#?}");
    }
}

#[test]
fn help_and_version_are_results() {
    for argument in ["--help", "--version"] {
        let run = run(argument);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:#?}");
        assert!(run.stdout.contains("echo-load"), "{run:#?}");
    }
}
