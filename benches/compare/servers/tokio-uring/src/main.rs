//! Peer: tokio-uring, a task and a buffer per connection.

use std::io;

use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    tokio_uring::start(serve())
}

async fn serve() -> io::Result<()> {
    let arguments = echo_door::arguments()?;
    let listener = TcpListener::from_std(arguments.listener()?);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio_uring::spawn(async move {
            // A peer that resets ends its own connection and nothing else.
            let _ = echo(stream, arguments.buffer).await;
        });
    }
}

/// Until the peer has sent its last byte; dropping the stream then sends our FIN.
async fn echo(stream: TcpStream, buffer_length: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_length];
    loop {
        let (count, filled) = stream.read(buffer).await;
        let count = count?;
        if count == 0 {
            return Ok(());
        }
        let (written, emptied) = stream.write_all(filled.slice(..count)).await;
        written?;
        buffer = emptied.into_inner();
    }
}
