//! Where objects lie: a folder, a web server, S3 or Google's storage. All give an object from a position on.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Read, Seek, SeekFrom},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, aws::AmazonS3Builder, gcp::GoogleCloudStorageBuilder,
    path::Path as ObjectPath,
};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{AUTHORIZATION, ETAG, HeaderMap, IF_NONE_MATCH, IF_RANGE, RANGE},
};

use super::{RemoteError, Shown, ini};

/// The whole value of the `Authorization` header for web servers.
const AUTHORIZATION_VARIABLE: &str = "ANNEAL_HTTP_AUTHORIZATION";
/// Between two packets; a large file may take as long as it needs.
const READ_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

type Bytes = Vec<u8>;

/// A place with objects.
#[derive(Clone)]
pub(super) enum Store {
    Folder(PathBuf),
    Web { client: Client, base: Url },
    Bucket { store: Arc<dyn ObjectStore>, url: String },
}

/// What a DVC remote says beside its URL.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) profile: Option<String>,
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<String>,
}

/// An object of a listing.
pub(super) struct Object {
    pub(super) key: String,
    pub(super) size: u64,
    /// Changes when the object does.
    pub(super) tag: String,
}

/// An object on its way.
pub(super) struct Body {
    /// Position of its first byte; 0 where a web server knows no ranges.
    pub(super) from: u64,
    /// Changes when the object does.
    pub(super) tag: Option<String>,
    pub(super) content: BoxStream<'static, Result<Bytes, String>>,
}

impl Store {
    /// The store of a URL, and the rest of the URL as a key in it.
    pub(super) fn open(url: &str, options: &Options) -> Result<(Self, String), RemoteError> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (place, key) = rest.split_once('/').unwrap_or((rest, ""));
        match scheme {
            "file" => Ok((Self::Folder(PathBuf::from("/")), rest.trim_start_matches('/').to_owned())),
            "http" | "https" => {
                let wrong = |problem: String| RemoteError::Unsupported(Shown::of(url), problem);
                let base = format!("{scheme}://{place}/").parse().map_err(|error| wrong(format!("{error}")))?;
                Ok((Self::Web { client: client(url)?, base }, key.to_owned()))
            }
            "s3" => Ok((Self::bucket(url, place, s3(url, place, options)?), key.trim_matches('/').to_owned())),
            "gs" => {
                provide_tls();
                let built = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(place)
                    .with_client_options(ClientOptions::new().with_timeout_disabled())
                    .build();
                let store = built.map_err(|error| RemoteError::Unsupported(Shown::of(url), error.to_string()))?;
                Ok((Self::bucket(url, place, Arc::new(store)), key.trim_matches('/').to_owned()))
            }
            _ => Err(RemoteError::Unsupported(
                Shown::of(url),
                "this kind of storage is not known; use http(s)://, s3://, gs:// or a folder".to_owned(),
            )),
        }
    }

    fn bucket(url: &str, place: &str, store: Arc<dyn ObjectStore>) -> Self {
        let scheme = url.split_once("://").map_or("s3", |(scheme, _)| scheme);
        Self::Bucket { store, url: format!("{scheme}://{place}/") }
    }

    /// The URL of an object, for messages.
    pub(super) fn shown(&self, key: &str) -> Shown {
        match self {
            Self::Folder(root) => Shown(root.join(key).display().to_string()),
            Self::Web { base, .. } => Shown::of(&format!("{base}{key}")),
            Self::Bucket { url, .. } => Shown(format!("{url}{key}")),
        }
    }

    /// Where an object lies in the file system, if it does.
    pub(super) fn file(&self, key: &str) -> Option<PathBuf> {
        match self {
            Self::Folder(root) => Some(root.join(key)),
            _ => None,
        }
    }

    /// The objects below a prefix.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Object>, RemoteError> {
        let Self::Bucket { store, .. } = self else {
            return Err(RemoteError::Unsupported(self.shown(prefix), "only a bucket can be listed".to_owned()));
        };
        let below = ObjectPath::parse(prefix).map_err(|error| self.failed(prefix, &error.into()))?;
        let found = store.list(Some(&below)).map_ok(|meta| Object {
            key: meta.location.to_string(),
            size: meta.size,
            tag: meta.e_tag.unwrap_or_else(|| meta.last_modified.to_rfc3339()),
        });
        found.try_collect().await.map_err(|error| match Refusal::of(&error) {
            // A prefix that nothing lies below is an empty list.
            Some(Refusal { status: 404, words }) => RemoteError::NoBucket(self.shown(""), words),
            _ => self.failed(prefix, &error),
        })
    }

    /// An object from a position on. With a tag, only if it is still the same object; another one comes from its start.
    pub(super) async fn get(&self, key: &str, from: u64, tag: Option<&str>) -> Result<Body, RemoteError> {
        match self {
            Self::Folder(root) => self.open_file(&root.join(key), key, from),
            Self::Web { client, base } => {
                let mut request = client.get(self.url(base, key)?);
                if from > 0 {
                    request = request.header(RANGE, format!("bytes={from}-"));
                    if let Some(tag) = tag {
                        request = request.header(IF_RANGE, tag);
                    }
                }
                let answer = request.send().await;
                let answer = answer.map_err(|error| RemoteError::Unreachable(self.shown(key), chain(&error)))?;
                self.web_body(key, from, answer)
            }
            Self::Bucket { store, .. } => {
                let path = ObjectPath::parse(key).map_err(|error| self.failed(key, &error.into()))?;
                let mut options = GetOptions::default();
                if from > 0 {
                    options.range = Some(GetRange::Offset(from));
                    options.if_match = tag.map(str::to_owned);
                }
                let found = store.get_opts(&path, options).await.map_err(|error| self.failed(key, &error))?;
                let (from, tag) = (found.range.start, found.meta.e_tag.clone());
                let content = found.into_stream();
                let content = content.map(|part| part.map(|bytes| bytes.to_vec()).map_err(|error| chain(&error)));
                Ok(Body { from, tag, content: content.boxed() })
            }
        }
    }

    /// Whether an object is still the one with this tag.
    pub(super) async fn is_still(&self, key: &str, tag: &str) -> Result<bool, RemoteError> {
        match self {
            Self::Folder(_) => Ok(false),
            Self::Web { client, base } => {
                // By GET, for a URL may be signed for that alone; the content of an answer is not waited for.
                let answer = client.get(self.url(base, key)?).header(IF_NONE_MATCH, tag).send().await;
                let answer = answer.map_err(|error| RemoteError::Unreachable(self.shown(key), chain(&error)))?;
                if answer.status() == StatusCode::NOT_MODIFIED {
                    return Ok(true);
                }
                self.web_body(key, 0, answer).map(|_| false)
            }
            Self::Bucket { store, .. } => {
                let options = GetOptions { if_none_match: Some(tag.to_owned()), ..GetOptions::default() };
                let path = ObjectPath::parse(key).map_err(|error| self.failed(key, &error.into()))?;
                match store.get_opts(&path, options).await {
                    Ok(_) => Ok(false),
                    Err(object_store::Error::NotModified { .. }) => Ok(true),
                    Err(error) => Err(self.failed(key, &error)),
                }
            }
        }
    }

    fn url(&self, base: &Url, key: &str) -> Result<Url, RemoteError> {
        let url = base.join(&format!("./{key}"));
        url.map_err(|error| RemoteError::Unsupported(self.shown(key), error.to_string()))
    }

    fn web_body(&self, key: &str, from: u64, answer: Response) -> Result<Body, RemoteError> {
        let status = answer.status();
        let from = match status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => from,
            StatusCode::NOT_FOUND | StatusCode::GONE => return Err(RemoteError::Missing(self.shown(key))),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(RemoteError::Refused(self.shown(key), status.to_string()));
            }
            _ => return Err(RemoteError::Unreachable(self.shown(key), status.to_string())),
        };
        // A weak tag does not promise the same bytes.
        let tag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).filter(|tag| !tag.starts_with("W/"));
        let tag = tag.map(str::to_owned);
        let content = answer.bytes_stream();
        let content = content.map(|part| part.map(|bytes| bytes.to_vec()).map_err(|error| chain(&error)));
        Ok(Body { from, tag, content: content.boxed() })
    }

    fn open_file(&self, path: &FilePath, key: &str, from: u64) -> Result<Body, RemoteError> {
        let problem = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => RemoteError::Missing(self.shown(key)),
            _ => RemoteError::Unusable(self.shown(key), error.to_string()),
        };
        let mut file = fs::File::open(path).map_err(problem)?;
        file.seek(SeekFrom::Start(from)).map_err(problem)?;
        let parts = std::iter::from_fn(move || {
            let mut part = Vec::with_capacity(1 << 16);
            match (&mut file).take(1 << 16).read_to_end(&mut part) {
                Ok(0) => None,
                Ok(_) => Some(Ok(part)),
                Err(error) => Some(Err(error.to_string())),
            }
        });
        Ok(Body { from, tag: None, content: futures::stream::iter(parts).boxed() })
    }

    /// A small object as a whole, or `None` where it does not exist.
    pub(super) async fn read(&self, key: &str, most: usize) -> Result<Option<Vec<u8>>, RemoteError> {
        let mut body = match self.get(key, 0, None).await {
            Err(RemoteError::Missing(_)) => return Ok(None),
            body => body?,
        };
        let mut content = Vec::new();
        while let Some(part) = body.content.next().await {
            content.extend(part.map_err(|problem| RemoteError::Unreachable(self.shown(key), problem))?);
            if content.len() > most {
                let problem = format!("it is longer than {most} bytes, so it is no such file");
                return Err(RemoteError::Unusable(self.shown(key), problem));
            }
        }
        Ok(Some(content))
    }

    fn failed(&self, key: &str, error: &object_store::Error) -> RemoteError {
        use object_store::Error as E;
        match (error, Refusal::of(error)) {
            (E::NotFound { .. }, _) => RemoteError::Missing(self.shown(key)),
            (_, Some(Refusal { status: 401 | 403, words })) => RemoteError::Refused(self.shown(key), words),
            (E::PermissionDenied { .. } | E::Unauthenticated { .. }, _) => {
                RemoteError::Refused(self.shown(key), chain(error))
            }
            (E::InvalidPath { .. } | E::NotSupported { .. }, _) => {
                RemoteError::Unsupported(self.shown(key), chain(error))
            }
            _ => RemoteError::Unreachable(self.shown(key), chain(error)),
        }
    }
}

/// The answer of a server that did not do as asked.
struct Refusal {
    /// Its status.
    status: u16,
    /// The status in words, and the server's own word for it where it gave one.
    words: String,
}

impl Refusal {
    /// The answer that is among the causes of an error. What a list was refused with has no kind of its own, and the type that
    /// holds the status cannot be named outside of its crate: it is in the text.
    fn of(error: &object_store::Error) -> Option<Self> {
        let mut next: Option<&dyn std::error::Error> = Some(error);
        while let Some(cause) = next {
            let text = cause.to_string();
            if let Some(answer) = text.strip_prefix("Server returned non-2xx status code: ") {
                let (status, content) = answer.split_once(": ").unwrap_or((answer, ""));
                let code = content.split_once("<Code>").and_then(|(_, rest)| Some(rest.split_once("</Code>")?.0));
                let words = [Some(status), code].into_iter().flatten().collect::<Vec<_>>().join(", ");
                return Some(Self { status: status.get(..3)?.parse().ok()?, words });
            }
            next = cause.source();
        }
        None
    }
}

fn s3(url: &str, bucket: &str, options: &Options) -> Result<Arc<dyn ObjectStore>, RemoteError> {
    provide_tls();
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(ClientOptions::new().with_timeout_disabled());
    // The environment wins over the remote's options: it is what the operator and the user of this run set.
    let unset = |name: &str| env::var_os(name).is_none();
    let given = env::var("AWS_ENDPOINT_URL").ok();
    if given.is_none()
        && let Some(endpoint) = &options.endpoint
    {
        builder = builder.with_endpoint(endpoint);
    }
    // Whoever names an endpoint without TLS means it.
    if given.as_ref().or(options.endpoint.as_ref()).is_some_and(|endpoint| endpoint.starts_with("http://")) {
        builder = builder.with_allow_http(true);
    }
    if let Some(region) = options.region.as_ref().filter(|_| unset("AWS_REGION") && unset("AWS_DEFAULT_REGION")) {
        builder = builder.with_region(region);
    }
    if unset("AWS_ACCESS_KEY_ID") {
        let profile = shared_profile(options.profile.as_deref());
        let from_file = |key: &str| profile.as_ref().and_then(|keys| keys.get(key)).cloned();
        let id = options.access_key_id.clone().or_else(|| from_file("aws_access_key_id"));
        let secret = options.secret_access_key.clone().or_else(|| from_file("aws_secret_access_key"));
        if let (Some(id), Some(secret)) = (id, secret) {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
            if let Some(token) = from_file("aws_session_token") {
                builder = builder.with_token(token);
            }
        }
    }
    match builder.build() {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => Err(RemoteError::Unsupported(Shown::of(url), error.to_string())),
    }
}

/// The profile of AWS's shared credentials file, where there is one.
fn shared_profile(profile: Option<&str>) -> Option<BTreeMap<String, String>> {
    let path = env::var_os("AWS_SHARED_CREDENTIALS_FILE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".aws/credentials")))?;
    let mut sections = ini::Sections::new();
    ini::parse(&fs::read_to_string(path).ok()?, &mut sections);
    let name = env::var("AWS_PROFILE").ok().or_else(|| profile.map(str::to_owned));
    sections.remove(name.as_deref().unwrap_or("default"))
}

/// Both clients take whichever provider the process has.
pub(crate) fn provide_tls() {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn client(url: &str) -> Result<Client, RemoteError> {
    provide_tls();
    let wrong = |problem: String| RemoteError::Unsupported(Shown::of(url), problem);
    let mut headers = HeaderMap::new();
    if let Some(value) = env::var(AUTHORIZATION_VARIABLE).ok().filter(|value| !value.is_empty()) {
        let mut value = reqwest::header::HeaderValue::from_str(value.trim())
            .map_err(|_| wrong(format!("{AUTHORIZATION_VARIABLE} is no value of a header")))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let client = Client::builder()
        .user_agent(concat!("anneal-trainer/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .default_headers(headers)
        .build();
    client.map_err(|error| wrong(chain(&error)))
}

/// An error with its causes, without the queries of URLs, which may be signatures, and without what a server had to say at
/// length.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words = error.to_string();
        if !text.contains(&words) {
            text = if text.is_empty() { words } else { format!("{text}: {words}") };
        }
        next = error.source();
    }
    let text = text.split('<').next().unwrap_or_default();
    let words = text.split(' ').map(|word| word.split('?').next().unwrap_or_default());
    words.collect::<Vec<_>>().join(" ").trim_end_matches([' ', ':']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Cause(String, #[source] Option<Box<Cause>>);

    fn cause(text: &str, of: Option<Cause>) -> Cause {
        Cause(text.to_owned(), of.map(Box::new))
    }

    #[test]
    fn an_error_is_told_with_its_status_and_without_signatures_and_pages() {
        let answer = "Server returned non-2xx status code: 503 Slow Down: <?xml version=\"1.0\"?><Error>…</Error>";
        let request = format!("Error performing GET http://s3/photos?X-Amz-Signature=secret in 2ms - {answer}");
        let told = chain(&cause(&request, Some(cause(answer, None))));
        let asked = "Error performing GET http://s3/photos in 2ms";
        assert_eq!(told, format!("{asked} - Server returned non-2xx status code: 503 Slow Down"));
    }
}
