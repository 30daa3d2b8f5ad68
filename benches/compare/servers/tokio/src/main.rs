//! Peer: tokio on its current-thread runtime, a task and a buffer per connection, as its own echo
//! example has it.

use std::io::{self, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve())
}

async fn serve() -> io::Result<()> {
    let arguments = echo_door::arguments()?;
    let listener = arguments.listener()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = match listener.accept().await {
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
            outcome => outcome?,
        };
        tokio::spawn(async move {
            // A peer that resets ends its own connection and nothing else.
            let _ = echo(stream, arguments.buffer).await;
        });
    }
}

/// Until the peer has sent its last byte; dropping the stream then sends our FIN.
async fn echo(mut stream: TcpStream, buffer_length: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_length];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
    }
}
