//! A client's settings from a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::client::{Client, ClientBuilder};
use crate::error::Error;
use crate::options::Profile;
use crate::tls::{self, Credentials};

/// The file; its keys are explained at [`Client::from_config`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    seeds: Vec<String>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    profile: Option<String>,
    timeout_ms: Option<u64>,
}

pub(crate) fn read(path: &Path) -> Result<ClientBuilder, Error> {
    let wrong = |why: &dyn std::fmt::Display| Error::misuse(format!("{}: {why}", path.display()));
    let file: File = toml::from_str(&text(path)?).map_err(|error| wrong(&error))?;
    let beside = path.parent().unwrap_or(Path::new("."));
    let [ca, cert, key] = [&file.ca, &file.cert, &file.key].map(|named| text(&beside.join(named)));
    tls::check_key_file(&beside.join(&file.key)).map_err(|error| wrong(&error))?;
    let credentials = Credentials::from_pem(ca?.as_bytes(), cert?.as_bytes(), key?.as_bytes());
    let mut builder = Client::builder(file.seeds).credentials(credentials.map_err(|error| wrong(&error))?);
    if let Some(profile) = file.profile {
        builder = builder.profile(profile.parse::<Profile>().map_err(|error| wrong(&error))?);
    }
    if let Some(timeout_ms) = file.timeout_ms {
        builder = builder.timeout(Duration::from_millis(timeout_ms));
    }
    Ok(builder)
}

/// Where `quorate dev` leaves the settings for its clients.
pub(crate) fn dev_file() -> Result<PathBuf, Error> {
    let dir = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let state = || dir("XDG_STATE_HOME").or_else(|| Some(dir("HOME")?.join(".local/state")));
    let dev = dir("QUORATE_DEV_DIR").or_else(|| Some(state()?.join("quorate/dev")));
    let dev =
        dev.ok_or_else(|| Error::misuse("neither QUORATE_DEV_DIR nor HOME says where `quorate dev` keeps its files"))?;
    Ok(dev.join("client.toml"))
}

fn text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| Error::misuse(format!("{} cannot be read: {error}", path.display())))
}
