//! Stands in for `cluster` where the program is built without Kubernetes (feature `kubernetes`):
//! there is no cluster, so no value of these types, and a command that would need one says so.

use std::convert::Infallible;
use std::{fmt, io};

use clap::Subcommand;
use tokio::io::DuplexStream;
use tonic::metadata::{Ascii, Binary, MetadataValue};

use crate::Failure;
use crate::flags::cluster::ClusterFlags;

/// No command takes a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {}

impl ClusterCommand {
    /// Runs the command.
    ///
    /// # Errors
    /// None.
    pub async fn run(&self) -> Result<(), Failure> {
        match *self {}
    }

    /// Returns true if it ends in an orderly way by itself when the user interrupts it.
    pub fn cleans_up(&self) -> bool {
        match *self {}
    }
}

/// No cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) context: String,
    pub(crate) namespace: String,
    pub(crate) login: Login,
    none: Infallible,
}

impl Cluster {
    pub(crate) async fn open(_: &ClusterFlags) -> Result<Self, Failure> {
        Err(Failure::Usage(
            "built without Kubernetes: name an address, such as --manager localhost:8081, or build \
             with the feature kubernetes"
                .into(),
        ))
    }

    pub(crate) fn manager(&self) -> Port {
        match self.none {}
    }

    pub(crate) fn pod(&self, _: &str, _: &str, _: u16) -> Port {
        match self.none {}
    }

    pub(crate) async fn agents(&self, _: &str, _: &str) -> Result<Vec<String>, Failure> {
        match self.none {}
    }
}

/// No port.
#[derive(Clone)]
pub(crate) struct Port(Infallible);

impl Port {
    pub(crate) async fn open(&self) -> io::Result<DuplexStream> {
        match self.0 {}
    }
}

impl fmt::Display for Port {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}

/// Returns true if this is the error of a manager that is installed and not ready: never here.
pub(crate) fn is_not_ready(_: &(dyn std::error::Error + 'static)) -> bool {
    false
}

/// No login.
#[derive(Clone)]
pub(crate) struct Login(Infallible);

impl Login {
    pub(crate) async fn token(&self) -> Result<Option<MetadataValue<Ascii>>, String> {
        match self.0 {}
    }

    pub(crate) fn certificate(&self, _: u64) -> Result<Option<Certificate>, String> {
        match self.0 {}
    }
}

/// No certificate.
pub(crate) struct Certificate(Infallible);

impl Certificate {
    pub(crate) fn proof(&self) -> Option<MetadataValue<Binary>> {
        match self.0 {}
    }
}
