//! TLS, client certificates and bearer tokens.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anneal_api::{failure::FailureClass, termination::TerminationMessage};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;

use crate::{
    process::{Server, binary, dogs, eventually, finish, picture_file},
    wire::{get, predict},
};

const TOKEN: &str = "a-token-of-some-length";

/// A CA, and what it signed, in files as a Secret has them.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a CA");
        let folder = TempDir::new().expect("a folder");
        fs::write(folder.path().join("ca.crt"), issuer.pem()).expect("a file");
        let authority = Self { folder, issuer };
        authority.sign("tls");
        authority
    }

    /// Writes a new certificate for 127.0.0.1 and its key.
    fn sign(&self, name: &str) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.file(&format!("{name}.crt")), certificate.pem()).expect("a file");
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).expect("a file");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self, command: &mut Command) {
        command.arg("--tls-cert").arg(self.file("tls.crt")).arg("--tls-key").arg(self.file("tls.key"));
    }

    /// GET /readyz over TLS, with a client's certificate where one is named: the answer and the server's certificate.
    fn get(&self, server: &Server, client: Option<&str>) -> std::io::Result<(String, Vec<u8>)> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.file("ca.crt")).expect("a CA");
        roots.add(ca).expect("a CA");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = vec![CertificateDer::from_pem_file(self.file(&format!("{name}.crt"))).expect("it")];
                let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, TcpStream::connect(("127.0.0.1", server.port))?);
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let shown = stream.conn.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
        Ok((answer, shown.unwrap_or_default()))
    }

    fn ready(&self, server: &Server, client: Option<&str>) {
        eventually("the server is ready", || self.get(server, client).ok()?.0.contains(" 200 ").then_some(()));
    }
}

fn ask(server: &Server, scheme: &str, more: &[&Path]) -> (Option<i32>, String) {
    let image = picture_file();
    let mut command = binary();
    command.args(["predict", "--timeout", "5s", "--url", &format!("{scheme}://127.0.0.1:{}", server.port)]);
    command.args(more).arg(image.path());
    let (output, _) = finish(command);
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn a_server_with_a_certificate_answers_who_trusts_its_ca_and_nobody_else() {
    let authority = Authority::new();
    let server = Server::start(dogs(), |command| authority.serve(command));
    authority.ready(&server, None);
    let ca = authority.file("ca.crt");
    let (code, text) = ask(&server, "https", &[Path::new("--ca"), &ca]);
    assert!(code == Some(0) && text.contains("dog"), "{text}");
    let (code, text) = ask(&server, "https", &[]);
    assert!(code == Some(1) && text.contains("certificate"), "{text}");
    let (code, text) = ask(&server, "http", &[]);
    assert!(code == Some(1) && text.contains("gave no answer"), "{text}");
}

#[test]
fn a_renewed_certificate_is_shown_without_a_restart() {
    let authority = Authority::new();
    let server = Server::start(dogs(), |command| authority.serve(command));
    authority.ready(&server, None);
    let shown = || authority.get(&server, None).expect("an answer").1;
    let before = shown();
    // Half of the pair: the old one stays in use.
    fs::write(authority.file("tls.crt"), "").expect("written");
    assert_eq!(shown(), before);
    authority.sign("tls");
    eventually("the new certificate is shown", || (shown() != before).then_some(()));
}

#[test]
fn with_a_client_ca_only_clients_that_it_signed_get_in() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = Server::start(dogs(), |command| {
        authority.serve(command);
        command.arg("--tls-client-ca").arg(authority.file("ca.crt"));
    });
    authority.sign("client");
    authority.ready(&server, Some("client"));
    assert!(authority.get(&server, None).is_err(), "no certificate at all");
    fs::copy(stranger.file("tls.crt"), authority.file("stranger.crt")).expect("copied");
    fs::copy(stranger.file("tls.key"), authority.file("stranger.key")).expect("copied");
    assert!(authority.get(&server, Some("stranger")).is_err(), "the certificate of another CA");
}

#[test]
fn without_a_token_only_probes_and_metrics_are_answered_and_a_new_token_needs_no_restart() {
    let folder = TempDir::new().expect("a folder");
    let (file, wrong) = (folder.path().join("tokens"), folder.path().join("wrong"));
    fs::write(&file, format!("{TOKEN}\n")).expect("written");
    fs::write(&wrong, "another-token-of-some-length\n").expect("written");
    let server = Server::ready(dogs(), |command| {
        command.arg("--token-file").arg(&file);
    });
    assert_eq!(server.ask(&get("/metrics")).status, 200);
    for request in [get("/model/info"), get("/v2/models/x"), predict("image/png", &vec![b'x'; 1 << 20])] {
        let answer = server.ask(&request);
        assert_eq!(answer.status, 401, "{answer:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert!(answer.text().contains("Authorization: Bearer"), "{}", answer.text());
    }
    let (flag, token) = (Path::new("--token-file"), file.as_path());
    assert_eq!(ask(&server, "http", &[flag, token]).0, Some(0));
    let (code, text) = ask(&server, "http", &[flag, &wrong]);
    assert!(code == Some(1) && text.contains("401"), "{text}");
    fs::write(&file, format!("{TOKEN}\nanother-token-of-some-length\n")).expect("written");
    eventually("the new token opens", || (ask(&server, "http", &[flag, &wrong]).0 == Some(0)).then_some(()));
}

#[test]
fn files_that_cannot_work_end_the_start_with_a_sentence() {
    let authority = Authority::new();
    authority.sign("other");
    let (certificate, key) = (authority.file("tls.crt"), authority.file("tls.key"));
    let (short, missing) = (authority.file("short"), authority.file("missing"));
    fs::write(&short, "secret").expect("written");
    let other = authority.file("other.key");
    let tls = |certificate: &Path, key: &Path| {
        vec![PathBuf::from("--tls-cert"), certificate.into(), "--tls-key".into(), key.into()]
    };
    for (arguments, sentence) in [
        (tls(&missing, &key), "missing cannot be read"),
        (tls(&short, &key), "holds no certificate"),
        (tls(&certificate, &certificate), "holds no private key"),
        (tls(&certificate, &other), "do not fit each other"),
        (vec!["--token-file".into(), short.clone()], "no token"),
    ] {
        let mut command = binary();
        command.args(["--listen", "127.0.0.1:0", "--checkpoint"]).arg(dogs()).args(arguments);
        let (output, message) = finish(command);
        assert_eq!(output.status.code(), Some(FailureClass::BadConfig.exit_code()), "{sentence}");
        let Some(TerminationMessage::Failure(failure)) = message else { panic!("{message:?}") };
        assert!(failure.message.contains(sentence), "{} lacks {sentence:?}", failure.message);
    }
}
