//! The store that backups go to: an object store of one of the clouds, or a mounted directory.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use nix::sys::stat::stat;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig,
    WriteMultipart,
};

use super::answer;
use super::encryption::{self, Identities};
use crate::backup::layout;
use crate::backup::wal::WalFile;
use crate::errors::{on_one_line, with_causes};
use crate::names;
use crate::set::backup::{self, Location};

/// How long a request is tried again before whoever asked hears that it failed. PostgreSQL asks again by itself.
const RETRIES_FOR: Duration = Duration::from_secs(20);
/// How long a store may take to accept a connection, and to say nothing, which it does as well while it is sent something: 16 MB at 60 kB/s. A
/// connection that is dead is found by the kernel after half a minute (`TCP_USER_TIMEOUT`). The whole of a request has no limit: a large object takes
/// its time.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// A large object is read in parts of so many bytes, each of which is tried again for itself.
const READ_PART: u64 = 8 << 20;
/// Where a distribution keeps the certificate authorities that it trusts.
const AUTHORITIES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// A store can't be used as it is described.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store, or the way to it. No address with a signature is in it.
    #[error("{0}")]
    Store(String),
    /// The directory's place is in the container, and would go with it.
    #[error("{} is on no volume: mount one at it or above it, or what is written there goes with the pod", .0.display())]
    NotMounted(PathBuf),
    /// The keys for what is stored.
    #[error(transparent)]
    Encryption(#[from] encryption::Error),
    /// A file.
    #[error("failed to read or make {}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether an object was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is there now.
    Yes,
    /// One of that name was there already; it is as it was.
    No,
}

/// An object in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its name below the set's prefix.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written, by the store's clock: good for telling that it changed.
    pub written: String,
}

/// What the Secret for backups says.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials(Vec<(&'static str, String)>);

/// A store, from the set's prefix on.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Key,
    identities: Arc<Identities>,
}

// === impl Error ===

impl Error {
    /// Of what the store, or the way to it, says.
    #[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
    pub(super) fn of(error: object_store::Error) -> Self {
        Self::Store(answer::in_words(&on_one_line(with_causes(&error))))
    }
}

// === impl Credentials ===

impl Credentials {
    /// What is in a directory now, one a file.
    #[must_use]
    pub fn read(directory: &Path) -> Self {
        Self(names::store::ALL.iter().filter_map(|key| Some((*key, credential(directory, key)?))).collect())
    }
}

// === impl Store ===

impl Store {
    /// Opens a store with these credentials; without any, by what the pod is in its cloud.
    pub fn open(location: &Location, Credentials(given): &Credentials) -> Result<Self> {
        let options = options(given)?;
        let identities = match given.iter().find(|(key, _)| *key == names::store::AGE_IDENTITY) {
            Some((_, text)) => Arc::new(Identities::parse(text)?),
            None => Arc::default(),
        };
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 10, retry_timeout: RETRIES_FOR };
        let objects: Arc<dyn ObjectStore> = match &location.store {
            backup::Store::S3 { bucket } => {
                let builder =
                    configured(AmazonS3Builder::from_env(), given, |it, key, value| it.with_config(key, value));
                let builder = builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry);
                Arc::new(builder.with_conditional_put(S3ConditionalPut::ETagMatch).build().map_err(Error::of)?)
            }
            backup::Store::Google { bucket } => {
                let mut builder = GoogleCloudStorageBuilder::from_env();
                for (_, value) in given.iter().filter(|(key, _)| *key == names::store::GOOGLE_KEY) {
                    builder = builder.with_service_account_key(value);
                }
                let builder = builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry);
                Arc::new(builder.build().map_err(Error::of)?)
            }
            backup::Store::Azure { container } => {
                let builder =
                    configured(MicrosoftAzureBuilder::from_env(), given, |it, key, value| it.with_config(key, value));
                let builder = builder.with_container_name(container).with_client_options(options).with_retry(retry);
                Arc::new(builder.build().map_err(Error::of)?)
            }
            backup::Store::Directory => {
                let path = Path::new("/").join(&location.prefix);
                check_mounted(&path)?;
                fs::create_dir_all(&path).map_err(|source| Error::File { path: path.clone(), source })?;
                let directory = LocalFileSystem::new_with_prefix(&path).map_err(Error::of)?.with_fsync(true);
                // Of a backup that goes its folder goes as well.
                let directory = directory.with_automatic_cleanup(true);
                return Ok(Self { objects: Arc::new(directory), prefix: Key::default(), identities });
            }
        };
        Ok(Self { objects, prefix: Key::from(location.prefix.as_str()), identities })
    }

    /// A store in memory.
    #[cfg(test)]
    pub(super) fn in_memory() -> Self {
        let objects = Arc::new(object_store::memory::InMemory::new());
        Self { objects, prefix: Key::from("prefix"), identities: Arc::default() }
    }

    /// The same store, for whoever has these keys.
    #[cfg(test)]
    pub(super) fn with_identities(&self, identities: Identities) -> Self {
        Self { identities: Arc::new(identities), ..self.clone() }
    }

    /// The keys for what is stored.
    #[must_use]
    pub fn identities(&self) -> &Arc<Identities> {
        &self.identities
    }

    fn key(&self, name: &str) -> Key {
        self.prefix.parts().chain(Key::from(name).parts()).collect()
    }

    /// Makes an object unless there is one.
    pub async fn create(&self, name: &str, content: Vec<u8>) -> Result<Created> {
        match self.objects.put_opts(&self.key(name), PutPayload::from(content), PutMode::Create.into()).await {
            Ok(_) => Ok(Created::Yes),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Created::No)
            }
            Err(error) => Err(Error::of(error)),
        }
    }

    /// Writes an object, whether or not there is one.
    pub async fn put(&self, name: &str, content: Vec<u8>) -> Result<()> {
        self.objects.put(&self.key(name), PutPayload::from(content)).await.map(drop).map_err(Error::of)
    }

    /// Begins to write an object that is too large for the memory.
    pub async fn write(&self, name: &str, part_size: usize) -> Result<WriteMultipart> {
        let upload = self.objects.put_multipart(&self.key(name)).await.map_err(Error::of)?;
        Ok(WriteMultipart::new_with_chunk_size(upload, part_size))
    }

    /// A whole object; absent if there is none.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        found(async { Ok(self.objects.get(&self.key(name)).await?.bytes().await?.to_vec()) }.await)
    }

    /// A part of an object; absent if there is none, or it is too short.
    async fn part(&self, name: &str, range: Range<u64>) -> Result<Option<Vec<u8>>> {
        found(self.objects.get_range(&self.key(name), range).await.map(|bytes| bytes.to_vec()))
    }

    /// The last bytes of an object, all of it if it is shorter; absent if there is none.
    pub async fn end_of(&self, name: &str, bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some(size) = self.size(name).await? else { return Ok(None) };
        self.part(name, size.saturating_sub(bytes)..size).await
    }

    /// The first bytes of an object, all of it if it is shorter; absent if there is none.
    pub async fn beginning_of(&self, name: &str, bytes: u64) -> Result<Option<Vec<u8>>> {
        let Some(size) = self.size(name).await? else { return Ok(None) };
        self.part(name, 0..size.min(bytes)).await
    }

    /// The size of an object; absent if there is none.
    pub async fn size(&self, name: &str) -> Result<Option<u64>> {
        found(self.objects.head(&self.key(name)).await.map(|meta| meta.size))
    }

    /// An object in pieces; absent if there is none.
    pub async fn read(&self, name: &str) -> Result<Option<BoxStream<'static, Result<Vec<u8>>>>> {
        let Some(size) = self.size(name).await? else { return Ok(None) };
        let (objects, key) = (self.objects.clone(), self.key(name));
        let parts = (0..size).step_by(usize::try_from(READ_PART).unwrap_or(usize::MAX));
        let part = move |from: u64| {
            let (objects, key) = (objects.clone(), key.clone());
            async move { objects.get_range(&key, from..size.min(from + READ_PART)).await.map(|bytes| bytes.to_vec()) }
        };
        Ok(Some(futures::stream::iter(parts).then(part).map_err(Error::of).boxed()))
    }

    /// All objects in a folder and below it, by their names.
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>> {
        let depth = self.prefix.parts_count();
        let listed = self.objects.list(Some(&self.key(folder)));
        let object = |meta: object_store::ObjectMeta| Object {
            key: meta.location.parts().skip(depth).map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"),
            size: meta.size,
            written: meta.last_modified.to_string(),
        };
        let mut objects: Vec<_> = listed.map_ok(object).try_collect().await.map_err(Error::of)?;
        objects.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(objects)
    }

    /// The files of the WAL that are there.
    pub async fn wal_files(&self) -> Result<Vec<WalFile>> {
        let listed = self.list(layout::WAL).await?;
        Ok(listed.iter().filter_map(|object| layout::wal_file(object.key.rsplit('/').next()?)).collect())
    }

    /// Deletes an object; one that is gone already is no error.
    pub async fn delete(&self, name: &str) -> Result<()> {
        found(self.objects.delete(&self.key(name)).await).map(drop)
    }
}

/// A builder that has been told those keys that it knows.
fn configured<B, K: FromStr>(builder: B, given: &[(&str, String)], tell: fn(B, K, &str) -> B) -> B {
    let known = given.iter().filter_map(|(key, value)| Some((key.to_ascii_lowercase().parse().ok()?, value)));
    known.fold(builder, |builder, (key, value)| tell(builder, key, value))
}

fn found<T>(outcome: object_store::Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(Error::of(error)),
    }
}

fn credential(directory: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(key)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Images of PostgreSQL seldom have certificate authorities, so that the well-known ones come with this program.
fn options(given: &[(&str, String)]) -> Result<ClientOptions> {
    let is_plain = given.iter().any(|(_, value)| value.starts_with("http://") || value.contains("\"http://"));
    let mut options = ClientOptions::new()
        .with_connect_timeout(CONNECT_LIMIT)
        .with_timeout_disabled()
        .with_read_timeout(SILENCE_LIMIT)
        .with_no_system_certificates(true)
        .with_allow_http(is_plain);
    let own = given.iter().filter(|(key, _)| *key == names::store::CA_BUNDLE).map(|(_, value)| value.clone());
    let of_image = AUTHORITIES.iter().filter_map(|path| fs::read_to_string(path).ok());
    for bundle in own.chain(of_image) {
        for certificate in Certificate::from_pem_bundle(bundle.as_bytes()).map_err(Error::of)? {
            options = options.with_root_certificate(certificate);
        }
    }
    for authority in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        options = options.with_root_certificate(Certificate::from_der(authority).map_err(Error::of)?);
    }
    Ok(options)
}

/// Refuses a directory that is on the container's own file system.
fn check_mounted(path: &Path) -> Result<()> {
    let device = |path: &Path| stat(path).map(|found| found.st_dev);
    let there = path.ancestors().find_map(|ancestor| device(ancestor).ok());
    if there.is_none() || there == device(Path::new("/")).ok() {
        return Err(Error::NotMounted(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_there_is_never_overwritten_by_a_create() {
        let store = Store::in_memory();
        assert_eq!(store.create("wal/a.zst", b"one".to_vec()).await.unwrap(), Created::Yes);
        assert_eq!(store.create("wal/a.zst", b"two".to_vec()).await.unwrap(), Created::No);
        assert_eq!(store.get("wal/a.zst").await.unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(store.end_of("wal/a.zst", 2).await.unwrap().as_deref(), Some(&b"ne"[..]));
        assert_eq!(store.end_of("wal/b.zst", 2).await.unwrap(), None);
        let listed: Vec<_> = store.list("wal").await.unwrap().into_iter().map(|it| it.key).collect();
        assert_eq!(listed, ["wal/a.zst"]);
        store.delete("wal/a.zst").await.unwrap();
        store.delete("wal/a.zst").await.unwrap();
        assert_eq!(store.get("wal/a.zst").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_large_object_comes_whole_in_its_parts() {
        let store = Store::in_memory();
        for size in [0, 1, READ_PART - 1, READ_PART, READ_PART + 1, 2 * READ_PART + 7] {
            let content: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).unwrap()).collect();
            store.put("large", content.clone()).await.unwrap();
            let parts: Vec<_> = store.read("large").await.unwrap().unwrap().try_collect().await.unwrap();
            assert!(parts.concat() == content, "{size} bytes");
        }
        assert!(store.read("none").await.unwrap().is_none());
    }

    #[test]
    fn a_directory_of_the_container_itself_is_refused() {
        let location = Location::parse("file:///no-such-mount/db").unwrap();
        let why = Store::open(&location, &Credentials::read(Path::new("/none"))).unwrap_err();
        assert!(matches!(why, Error::NotMounted(_)), "{why}");
        assert!(!Path::new("/no-such-mount").exists());
    }
}
