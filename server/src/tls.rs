//! TLS of the listener and of the client: certificates from files in PEM.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

use crate::watched::{Watched, WatchedError};

/// The server's side of TLS, renewed when its files are.
pub type ServerTls = Watched<ServerConfig>;

/// Reads the certificate chain and its key. With a CA, clients must show a certificate that it signed.
///
/// # Errors
/// A sentence that names the file that is missing or unfit.
pub fn server(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<ServerTls, WatchedError> {
    let files = [Some(certificate), Some(key), client_ca];
    Watched::read(files.into_iter().flatten().map(PathBuf::from).collect(), server_config)
}

fn server_config(files: &[(&Path, Vec<u8>)]) -> Result<ServerConfig, String> {
    let [(certificate, chain), (key_file, key), client_ca @ ..] = files else {
        return Err("TLS needs a certificate and a key".to_owned());
    };
    let chain = certificates(certificate, chain)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
        format!("{} holds no private key in PEM ({error}); give the file tls.key", key_file.display())
    })?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match client_ca {
        [] => builder.with_no_client_auth(),
        [(file, ca), ..] => {
            let roots = Arc::new(roots(file, ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|error| format!("{} cannot judge clients: {error}", file.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        format!("{} and {} do not fit each other: {error}", certificate.display(), key_file.display())
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The client's side: trusts the CA in the file, or those of the system where there is none.
///
/// # Errors
/// A sentence that names the file.
pub fn client(ca: Option<&Path>) -> Result<ClientConfig, String> {
    let trusted = if let Some(file) = ca {
        let content = std::fs::read(file).map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
        roots(file, &content)?
    } else {
        let mut roots = RootCertStore::empty();
        // What is broken among them is no reason not to trust the others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(trusted).with_no_client_auth())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(file: &Path, content: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let unfit = |why: String| format!("{} holds no certificate in PEM{why}; give the file tls.crt", file.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(unfit(String::new())),
        Err(error) => Err(unfit(format!(" ({error})"))),
    }
}

fn roots(file: &Path, content: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, content)? {
        roots.add(certificate).map_err(|error| format!("{} holds no CA: {error}", file.display()))?;
    }
    Ok(roots)
}
