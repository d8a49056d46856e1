//! A web server on the machine of the tests, with one file, for pods to fetch.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use anyhow::{Context, Result};
use kube::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Most bytes of a request.
const REQUEST: usize = 16 << 10;

/// Serves a file to whoever brings the right `Authorization`, for as long as it is held.
pub struct FileServer {
    /// Where pods reach it.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl FileServer {
    /// Begins to serve.
    ///
    /// # Errors
    /// When no port is free, or the API server's address is not known.
    pub async fn start(content: Vec<u8>, authorization: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("0.0.0.0:0").await.context("no port is free")?;
        let address = SocketAddr::new(own_address().await?, listener.local_addr()?.port());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Err(problem) = answer(stream, &content, authorization).await {
                    eprintln!("a request for the file was not answered: {problem:#}");
                }
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// This machine's address on the way to the API server, by which the cluster's pods reach it.
async fn own_address() -> Result<IpAddr> {
    let config = Config::infer().await.context("the cluster that KUBECONFIG names cannot be used")?;
    let host = config.cluster_url.host().context("the API server has no address")?;
    let port = config.cluster_url.port_u16().unwrap_or(443);
    let server = (host, port).to_socket_addrs()?.next().context("the API server's name is not known")?;
    // Nothing is sent: the system only chooses the address to send from.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}

async fn answer(mut stream: TcpStream, content: &[u8], authorization: &str) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < REQUEST {
        let read = stream.read_buf(&mut request).await?;
        anyhow::ensure!(read > 0, "the request is incomplete");
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let allowed = request.lines().any(|line| line.eq_ignore_ascii_case(&format!("authorization: {authorization}")));
    let (status, body) = if allowed { ("200 OK", content) } else { ("401 Unauthorized", &b"who are you?"[..]) };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    Ok(stream.shutdown().await?)
}
