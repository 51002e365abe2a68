//! The token by which the manager knows this agent. The kubelet renews its file; calls carry what it
//! holds. Without the file calls go as they are: the manager says if it wants more.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::sync::lock;

/// Interval at which the file is read; the kubelet renews it minutes before the old one ends.
const READ_INTERVAL: Duration = Duration::from_secs(10);

/// A client of the manager whose calls carry the token.
pub(crate) type Manager = ManagerClient<Calls>;

/// The connection to the manager; each call carries the token.
pub(crate) type Calls = InterceptedService<Channel, ManagerToken>;

/// The token's file, and what it held.
#[derive(Clone)]
pub(crate) struct ManagerToken {
    file: Arc<Path>,
    read: Arc<Mutex<Option<ReadToken>>>,
}

struct ReadToken {
    at: Instant,
    value: Option<MetadataValue<Ascii>>,
}

impl ManagerToken {
    pub(crate) fn of(file: PathBuf) -> Self {
        Self {
            file: file.into(),
            read: Arc::default(),
        }
    }

    /// Returns a connection whose calls carry it.
    pub(crate) fn calls(&self, channel: Channel) -> Calls {
        InterceptedService::new(channel, self.clone())
    }

    fn value(&self) -> Option<MetadataValue<Ascii>> {
        let mut read = lock(&self.read);
        if let Some(known) = read.as_ref().filter(|it| it.at.elapsed() < READ_INTERVAL) {
            return known.value.clone();
        }
        let value = bearer(&self.file);
        *read = Some(ReadToken {
            at: Instant::now(),
            value: value.clone(),
        });
        value
    }
}

/// Reads the file, which lies in memory.
fn bearer(file: &Path) -> Option<MetadataValue<Ascii>> {
    let token = std::fs::read_to_string(file).ok()?;
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.trim()).parse().ok()?;
    // Kept out of logs and of the table of header compression.
    value.set_sensitive(true);
    Some(value)
}

impl Interceptor for ManagerToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = self.value() {
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(token: &mut ManagerToken) -> Option<String> {
        let request = token.call(Request::new(())).unwrap();
        let value = request.metadata().get("authorization").cloned();
        value.map(|it| {
            assert!(!format!("{it:?}").contains("secret"), "{it:?}");
            it.to_str().unwrap().to_owned()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn calls_carry_what_the_file_holds_now() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let mut token = ManagerToken::of(file.clone());
        assert_eq!(sent(&mut token), None);
        std::fs::write(&file, "secret-1\n").unwrap();
        assert_eq!(sent(&mut token), None, "it is not read for each call");
        tokio::time::advance(READ_INTERVAL).await;
        assert_eq!(sent(&mut token).as_deref(), Some("Bearer secret-1"));
        std::fs::write(&file, "secret-2").unwrap();
        tokio::time::advance(READ_INTERVAL).await;
        assert_eq!(sent(&mut token).as_deref(), Some("Bearer secret-2"));
        std::fs::write(&file, "not\na header").unwrap();
        tokio::time::advance(READ_INTERVAL).await;
        assert_eq!(sent(&mut token), None);
    }
}
