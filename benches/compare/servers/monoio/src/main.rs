//! Peer: monoio on its io_uring driver (never its epoll one), a task and a buffer per connection.

use std::io;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
    runtime.block_on(serve())
}

async fn serve() -> io::Result<()> {
    let arguments = echo_door::arguments()?;
    let listener = TcpListener::from_std(arguments.listener()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        monoio::spawn(async move {
            // A peer that resets ends its own connection and nothing else.
            let _ = echo(stream, arguments.buffer).await;
        });
    }
}

/// Until the peer has sent its last byte; dropping the stream then sends our FIN.
async fn echo(mut stream: TcpStream, buffer_length: usize) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(buffer_length);
    loop {
        let (count, filled) = stream.read(buffer).await;
        if count? == 0 {
            return Ok(());
        }
        let (written, emptied) = stream.write_all(filled).await;
        written?;
        buffer = emptied;
        buffer.clear();
    }
}
