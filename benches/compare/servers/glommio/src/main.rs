//! Peer: glommio, one executor without a core of its own (the comparison binds the process), a task
//! and a buffer per connection.
//!
//! It opens its listening socket itself, since its sockets cannot be made from others without
//! unsafe code. Hence it has its own backlog as well.

use std::io;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

fn main() -> io::Result<()> {
    let arguments = echo_door::arguments()?;
    let executor = LocalExecutorBuilder::new(Placement::Unbound).make().map_err(plain)?;
    executor.run(async move {
        let listener = TcpListener::bind(arguments.listen).map_err(plain)?;
        loop {
            let stream = listener.accept().await.map_err(plain)?;
            stream.set_nodelay(true).map_err(plain)?;
            let connection = async move {
                // A peer that resets ends its own connection and nothing else.
                let _ = echo(stream, arguments.buffer).await;
            };
            glommio::spawn_local(connection).detach();
        }
    })
}

fn plain(error: glommio::GlommioError<()>) -> io::Error {
    io::Error::from(error)
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
