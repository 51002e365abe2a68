//! The app's container on this machine: its environment, its volumes, and a command that runs with
//! both.

pub(crate) mod facts;

use traffic_proto::manager::SessionInfo;

use crate::Failure;
use crate::command::{self, Running};
use crate::container::facts::Facts;
use crate::environment;
use crate::flags::ContainerFlags;
use crate::mount::Mount;
use crate::report::{Pairs, event};
use crate::session::Manager;

/// Checks what can be before anything is created: traffic must not come here only to go back.
///
/// # Errors
/// A flag asks for what is not possible; the text names it and has the remedy.
pub(crate) fn check(flags: &ContainerFlags) -> Result<(), Failure> {
    command::check(&flags.command)?;
    environment::check(flags)?;
    flags.mount.check()
}

/// What runs and is mounted here.
#[derive(Debug, Default)]
pub(crate) struct Container {
    /// Command of the user's that runs as long as the attachment.
    command: Option<Running>,
    /// Volumes of the container, for the user and the command.
    mount: Option<Mount>,
}

impl Container {
    /// Mounts the volumes, writes the environment, and starts the command, as the flags say. What
    /// was begun when a later step fails is kept, for [`Self::end`].
    ///
    /// # Errors
    /// A step fails; the text names its flag.
    pub(crate) async fn begin(
        &mut self,
        flags: &ContainerFlags,
        manager: Manager,
        session: &SessionInfo,
        facts: &Facts,
    ) -> Result<(), Failure> {
        // First, since the environment says where it is.
        self.mount = Mount::start(&flags.mount, manager, session, facts).await?;
        let root = self.mount.as_ref().map(Mount::root);
        let environment = environment::of(facts, root);
        if let Some(path) = &flags.env_file {
            environment::write_file(path, flags.env_syntax, &environment)?;
        }
        if let Some(path) = &flags.env_json {
            environment::write_json(path, &environment)?;
        }
        if let Some(root) = root {
            event(&Pairs(&[
                ("mount", "ready"),
                ("folder", &root.to_string_lossy()),
            ]));
        }
        // Last: it may read the files and the environment at once.
        if !flags.command.is_empty() {
            self.command = Some(Running::start(&flags.command, &environment)?);
        }
        Ok(())
    }

    /// Follows the container to another pod, and the client to another session.
    pub(crate) fn follow(&self, manager: Manager, session: &SessionInfo, facts: &Facts) {
        if let (Some(mount), Some(files)) = (&self.mount, &facts.files) {
            mount.follow(manager, session, files.clone());
        }
    }

    /// Waits for the end of the command, if one runs; else for ever.
    pub(crate) async fn ended(&mut self) -> Failure {
        match &mut self.command {
            Some(running) => running.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Ends the command, then the volumes that it may use.
    pub(crate) async fn end(&mut self) {
        if let Some(command) = &mut self.command {
            command.end().await;
        }
        if let Some(mount) = &mut self.mount {
            mount.end().await;
        }
    }
}
