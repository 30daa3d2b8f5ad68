//! Peer: a blocking thread per connection, the oldest way there is. The buffer is the thread's own.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;

/// Room for the buffer is on the heap, so a thread needs little stack; with the usual 2 MiB,
/// thousands of them would reserve more addresses than some machines grant.
const STACK_LENGTH: usize = 64 * 1024;

fn main() -> io::Result<()> {
    let arguments = echo_door::arguments()?;
    let listener = arguments.listener()?;
    loop {
        let (stream, _) = match listener.accept() {
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            outcome => outcome?,
        };
        let serve = move || {
            // A peer that resets ends its own connection and nothing else.
            let _ = echo(stream, arguments.buffer);
        };
        thread::Builder::new().stack_size(STACK_LENGTH).spawn(serve)?;
    }
}

/// Until the peer has sent its last byte; dropping the stream then sends our FIN.
fn echo(mut stream: TcpStream, buffer_length: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_length];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => stream.write_all(&buffer[..count])?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
