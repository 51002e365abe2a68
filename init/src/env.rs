//! Environment variables.

use std::ffi::OsString;

use crate::error::Error;

/// Reader of a variable of the environment; a map in tests.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Value of a variable that is set to something, without white space around it.
///
/// Errors: the value is no text.
pub fn value(env: Env<'_>, key: &str) -> Result<Option<String>, Error> {
    let Some(raw) = env(key) else {
        return Ok(None);
    };
    let text = raw.into_string().map_err(|raw| {
        Error::Config(format!(
            "{key}={:?}: is no UTF-8 text; write it anew",
            raw.to_string_lossy()
        ))
    })?;
    let text = text.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}
