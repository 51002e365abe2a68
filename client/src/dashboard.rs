//! `dashboard`: the manager's page, through the port-forward where there is a cluster.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use crate::Failure;
use crate::flags::Dashboard;
use crate::report::{line, note};
use crate::session::{self, Way};

/// Pause after a failed accept.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Prints the address of the manager's page and, where it takes a port-forward, serves it until
/// interrupted.
///
/// # Errors
/// No manager is reached, or the port is taken.
pub async fn dashboard(flags: &Dashboard) -> Result<(), Failure> {
    let way = Way::open(&flags.manager).await?;
    session::connect(&way, session::START_TIMEOUT).await?;
    let cluster = match &way {
        Way::Address(address) => {
            let address = address.trim_start_matches("http://").trim_end_matches('/');
            show(&format!("http://{address}/"), flags).await;
            return Ok(());
        }
        Way::Cluster(cluster) => cluster,
    };
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, flags.port));
    let taken = |error| Failure::Failed(format!("--port {}: {error}; choose another", flags.port));
    let listener = TcpListener::bind(wanted).await.map_err(taken)?;
    let address = listener.local_addr().map_err(taken)?;
    show(&format!("http://{address}/"), flags).await;
    note("Press Ctrl-C to end.");
    let (manager, tasks) = (cluster.manager(), TaskTracker::new());
    loop {
        let Ok((browser, _)) = listener.accept().await else {
            sleep(ACCEPT_DELAY).await;
            continue;
        };
        let manager = manager.clone();
        tasks.spawn(async move {
            if let Err(error) = carry(browser, &manager).await {
                note(format_args!("warning: {error}"));
            }
        });
    }
}

async fn carry(mut browser: TcpStream, manager: &crate::cluster::Port) -> std::io::Result<()> {
    let mut forwarded = manager.open().await?;
    // Browsers close as they like.
    let _ = copy_bidirectional(&mut browser, &mut forwarded).await;
    Ok(())
}

/// Prints the address, and opens it if that was asked for.
async fn show(url: &str, flags: &Dashboard) {
    line(url);
    if !flags.open {
        return;
    }
    let opener = if cfg!(target_os = "macos") {
        "open"
    } else {
        "xdg-open"
    };
    let opened = tokio::process::Command::new(opener)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .await;
    if !opened.is_ok_and(|status| status.success()) {
        note(format_args!(
            "{opener} does not open it; paste the address into a browser"
        ));
    }
}
