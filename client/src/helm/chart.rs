//! The chart inside the program.

use std::fs;
use std::io;
use std::path::Path;

use tempfile::TempDir;

use crate::Failure;

/// Path in the chart and content.
static FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/chart.rs"));

/// The chart in a folder of its own, which ends with this value.
pub(crate) struct Chart(TempDir);

impl Chart {
    /// Writes the chart where Helm can read it.
    pub(crate) fn unpack() -> Result<Self, Failure> {
        write().map_err(|error| {
            Failure::Failed(format!(
                "the chart cannot be written to {}: {error}; name another folder with TMPDIR",
                std::env::temp_dir().display()
            ))
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

fn write() -> io::Result<Chart> {
    let folder = tempfile::Builder::new()
        .prefix("traffic-manager-chart-")
        .tempdir()?;
    for (name, content) in FILES {
        let path = folder.path().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    Ok(Chart(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_is_whole_and_goes_with_its_value() {
        let chart = Chart::unpack().unwrap();
        let folder = chart.path().to_owned();
        let text = fs::read_to_string(folder.join("Chart.yaml")).unwrap();
        assert!(text.contains(concat!("version: ", env!("CARGO_PKG_VERSION"))));
        assert!(folder.join("templates/deployment.yaml").is_file());
        assert!(folder.join("files/ignored.yaml").is_file());
        assert!(!folder.join("generate").exists());
        drop(chart);
        assert!(!folder.exists());
    }
}
