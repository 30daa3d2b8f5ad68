//! Peer: compio on io_uring, a task and a buffer per connection.

use std::io;

use compio::BufResult;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::Runtime;

fn main() -> io::Result<()> {
    Runtime::new()?.block_on(serve())
}

async fn serve() -> io::Result<()> {
    let arguments = echo_door::arguments()?;
    let listener = TcpListener::from_std(arguments.listener()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let connection = async move {
            // A peer that resets ends its own connection and nothing else.
            let _ = echo(stream, arguments.buffer).await;
        };
        compio::runtime::spawn(connection).detach();
    }
}

/// Until the peer has sent its last byte; dropping the stream then sends our FIN.
async fn echo(mut stream: TcpStream, buffer_length: usize) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(buffer_length);
    loop {
        let BufResult(count, filled) = stream.read(buffer).await;
        if count? == 0 {
            return Ok(());
        }
        let BufResult(written, emptied) = stream.write_all(filled).await;
        written?;
        buffer = emptied;
        buffer.clear();
    }
}
