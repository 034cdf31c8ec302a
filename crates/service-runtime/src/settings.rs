//! Settings: defaults, then `<config dir>/<name>.toml`, then the environment; a bad or unknown value stops the start.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    path::PathBuf,
};

use cogo_telemetry::LogFormat;
use config::{Config, Environment, File, FileFormat};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::ChildAccess;

/// Keys of the seed documents keep their names in the environment; every other key is `COGO_<KEY>`.
const BARE_NAMES: [&str; 12] = [
    "database_url",
    "supabase_url",
    "supabase_service_role_key",
    "agent_service",
    "agent_role",
    "agent_shard",
    "bus_poll_ms",
    "reclaim_after_ms",
    "retention_days",
    "metrics_port",
    "otel_exporter_otlp_endpoint",
    "rust_log",
];

/// A value that no log and no dump shows.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// Why a process does not start.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A value does not parse or the file does not read; the text names the key.
    #[error("Setting not usable: {0}")]
    Value(String),
    /// A key that this process does not know.
    #[error("Unknown setting {key} in {origin}; known are: {known}")]
    Unknown {
        /// The key as written.
        key: String,
        /// Where it stands.
        origin: String,
        /// What would be accepted.
        known: String,
    },
}

/// What every process can be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameSettings {
    /// `postgres://` address of the database.
    pub database_url: Secret,
    /// Most database connections of the process, 2 to 500; those that listen, and two kept by each bus, come on top.
    pub max_connections: u32,
    /// Part of a split domain that this process serves.
    pub agent_shard: u16,
    /// Which replica this is; one owner per name and slot.
    pub agent_slot: u32,
    /// Key by which this process joins the fleet; empty where its name needs none.
    pub agent_key: Secret,
    /// Longest wait between two looks at the queue in ms, 10 to 3600000: the price of a lost wake-up.
    pub bus_poll_ms: u64,
    /// Lease of a claim in ms, 1000 to 3600000: a message of a worker that vanished is taken back after it.
    pub reclaim_after_ms: u64,
    /// Messages worked on at once, 1 to 5000.
    pub concurrency: u16,
    /// What errors of handlers lead to, instead of what the code says: `<kind>: <words>`, see `RetryPolicy`.
    pub retry_rules: Vec<String>,
    /// Time in ms, at most 600000, between the wish to stop and dropping what still runs.
    pub grace_ms: u64,
    /// Directories below which files may be read; none: the working directory of the process.
    pub allowed_roots: Vec<String>,
    /// Time in ms, 1000 to 3600000, after which the database breaks off a statement.
    pub statement_timeout_ms: u64,
    /// Address that HTTP binds to; one that others can reach needs keys, or `insecure_bind`.
    pub bind: IpAddr,
    /// Serves others without keys, where the network itself keeps strangers out, as between containers.
    pub insecure_bind: bool,
    /// Port of HTTP; absent: the process's own.
    pub port: Option<u16>,
    /// Added to the process's own port, to run a second fleet on one machine.
    pub port_offset: u16,
    /// From where agents of level 3 may connect, for a process that owns some: `off`, `local` (this machine) or
    /// `anywhere`. Each needs the key of its name in any case.
    pub children: ChildAccess,
    /// Time in ms, 1000 to 3600000, without a connection after which such an agent leaves the registry.
    pub child_absence_ms: u64,
    /// Collector for spans and metrics; absent: none.
    pub otel_exporter_otlp_endpoint: Option<String>,
    /// `host:port` of a StatsD server for figures over UDP; absent: none.
    pub statsd_addr: Option<String>,
    /// Log filter.
    pub rust_log: String,
    /// `auto`, `human` or `json`.
    pub log_format: LogFormat,
}

impl Default for FrameSettings {
    fn default() -> Self {
        Self {
            database_url: Secret::default(),
            max_connections: 8,
            agent_shard: 0,
            agent_slot: 0,
            agent_key: Secret::default(),
            bus_poll_ms: 15_000,
            reclaim_after_ms: 30_000,
            concurrency: 8,
            retry_rules: Vec::new(),
            grace_ms: 10_000,
            allowed_roots: Vec::new(),
            statement_timeout_ms: 30_000,
            insecure_bind: false,
            bind: IpAddr::from([127, 0, 0, 1]),
            port: None,
            port_offset: 0,
            children: ChildAccess::Local,
            child_absence_ms: 30_000,
            otel_exporter_otlp_endpoint: None,
            statsd_addr: None,
            rust_log: "info".to_owned(),
            log_format: LogFormat::Auto,
        }
    }
}

/// For services that have no settings of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoSettings {}

/// Everything a process was told, and by whom.
#[derive(Debug)]
pub(crate) struct Loaded<S> {
    pub(crate) frame: FrameSettings,
    pub(crate) service: S,
    /// Key → effective value (secrets masked) and where it comes from.
    pub(crate) origins: BTreeMap<String, (String, String)>,
}

/// Where settings come from; tests give their own.
pub(crate) struct Sources {
    pub(crate) environment: HashMap<String, String>,
    pub(crate) file: Option<(PathBuf, String)>,
}

impl Sources {
    /// The process's environment and, if it exists, `<COGO_CONFIG_DIR or deploy/config>/<name>.toml`.
    pub(crate) fn of_process(name: &str) -> Result<Self, SettingsError> {
        let environment: HashMap<String, String> = std::env::vars().collect();
        let directory = environment.get("COGO_CONFIG_DIR").map_or("deploy/config", String::as_str);
        let path = PathBuf::from(directory).join(format!("{name}.toml"));
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => Some((path, text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(SettingsError::Value(format!("{}: {error}", path.display()))),
        };
        Ok(Self { environment, file })
    }
}

/// Puts the layers together.
pub(crate) fn load<S>(name: &str, sources: &Sources) -> Result<Loaded<S>, SettingsError>
where
    S: DeserializeOwned + Serialize + Default,
{
    let defaults = defaults::<S>()?;
    let known: BTreeSet<&str> = defaults.keys().map(String::as_str).collect();
    let lists: Vec<&str> = defaults.iter().filter(|(_, value)| value.is_array()).map(|(key, _)| key.as_str()).collect();

    let mut builder = Config::builder();
    let mut origins: BTreeMap<String, String> =
        known.iter().map(|&key| (key.to_owned(), "default".to_owned())).collect();
    if let Some((path, text)) = &sources.file {
        let origin = path.display().to_string();
        let table: toml::Table = text.parse().map_err(|error| SettingsError::Value(format!("{origin}: {error}")))?;
        for key in table.keys() {
            if !known.contains(key.as_str()) {
                return Err(unknown(key, &origin, &known));
            }
            origins.insert(key.clone(), origin.clone());
        }
        builder = builder.add_source(File::from_str(text, FileFormat::Toml));
    }
    let environment = from_environment(name, &sources.environment, &known, &mut origins)?;
    let mut layer = Environment::default().source(Some(environment));
    if !lists.is_empty() {
        layer = layer.try_parsing(true).list_separator(",");
        for key in &lists {
            layer = layer.with_list_parse_key(key);
        }
    }
    let merged = builder.add_source(layer).build().map_err(|error| SettingsError::Value(error.to_string()))?;
    let mut values = defaults;
    let overrides: HashMap<String, config::Value> =
        merged.clone().try_deserialize().map_err(|error| SettingsError::Value(error.to_string()))?;
    let frame = read::<FrameSettings>(&merged, &values, &overrides, &origins)?;
    let service = read::<S>(&merged, &values, &overrides, &origins)?;
    for (key, value) in overrides {
        values.insert(key, Value::String(value.to_string()));
    }
    let origins = origins.into_iter().map(|(key, origin)| {
        let shown = if is_secret(&key) { "***".to_owned() } else { values.get(&key).map_or_else(String::new, plain) };
        (key, (shown, origin))
    });
    Ok(Loaded { frame, service, origins: origins.collect() })
}

/// The environment variable that sets a key for every process of the fleet.
pub(crate) fn variable(key: &str) -> String {
    let upper = key.to_uppercase();
    if BARE_NAMES.contains(&key) { upper } else { format!("COGO_{upper}") }
}

fn from_environment(
    name: &str,
    environment: &HashMap<String, String>,
    known: &BTreeSet<&str>,
    origins: &mut BTreeMap<String, String>,
) -> Result<config::Map<String, String>, SettingsError> {
    let own_prefix = format!("COGO_{}_", name.to_uppercase().replace('-', "_"));
    let mut layer = config::Map::new();
    for key in known {
        if let Some(value) = environment.get(&variable(key)) {
            layer.insert((*key).to_owned(), value.clone());
            origins.insert((*key).to_owned(), variable(key));
        }
    }
    for (variable, value) in environment {
        let Some(key) = variable.strip_prefix(&own_prefix) else { continue };
        let key = key.to_lowercase();
        if !known.contains(key.as_str()) {
            return Err(unknown(variable, "the environment", known));
        }
        origins.insert(key.clone(), variable.clone());
        layer.insert(key, value.clone());
    }
    Ok(layer)
}

fn defaults<S: Serialize + Default>() -> Result<Map<String, Value>, SettingsError> {
    let mut all = object(&FrameSettings::default())?;
    all.extend(object(&S::default())?);
    Ok(all)
}

fn object(settings: &impl Serialize) -> Result<Map<String, Value>, SettingsError> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(SettingsError::Value(format!("settings are not an object but {other}"))),
        Err(error) => Err(SettingsError::Value(error.to_string())),
    }
}

/// Deserializes the part that `T` knows: its defaults with the overrides laid over them, key by key so that an error
/// can name the key and who set it.
fn read<T: DeserializeOwned + Serialize + Default>(
    merged: &Config,
    defaults: &Map<String, Value>,
    overrides: &HashMap<String, config::Value>,
    origins: &BTreeMap<String, String>,
) -> Result<T, SettingsError> {
    let mut builder = Config::builder();
    for key in object(&T::default())?.keys() {
        let default = defaults.get(key).cloned().unwrap_or(Value::Null);
        if overrides.contains_key(key) {
            let value: config::Value = merged.get(key).map_err(|error| SettingsError::Value(error.to_string()))?;
            builder = builder.set_override(key, value).map_err(|error| SettingsError::Value(error.to_string()))?;
        } else if !default.is_null() {
            let value: config::Value =
                serde_json::from_value(default).map_err(|error| SettingsError::Value(error.to_string()))?;
            builder = builder.set_override(key, value).map_err(|error| SettingsError::Value(error.to_string()))?;
        }
    }
    let config = builder.build().map_err(|error| SettingsError::Value(error.to_string()))?;
    config.try_deserialize().map_err(|error| {
        let text = error.to_string();
        let set_by: Vec<String> =
            overrides.keys().filter_map(|key| origins.get(key).map(|origin| format!("{key} from {origin}"))).collect();
        SettingsError::Value(format!("{text} (set: {})", set_by.join(", ")))
    })
}

fn unknown(key: &str, origin: &str, known: &BTreeSet<&str>) -> SettingsError {
    let known = known.iter().copied().collect::<Vec<_>>().join(", ");
    SettingsError::Unknown { key: key.to_owned(), origin: origin.to_owned(), known }
}

fn is_secret(key: &str) -> bool {
    key == "database_url" || ["key", "keys", "secret", "password", "token"].iter().any(|word| key.ends_with(word))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Own {
        limit: u32,
        api_key: Option<String>,
    }

    fn given(environment: &[(&str, &str)], file: Option<&str>) -> Result<Loaded<Own>, SettingsError> {
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let file = file.map(|text| (PathBuf::from("rag-embed.toml"), text.to_owned()));
        load("rag-embed", &Sources { environment, file })
    }

    #[test]
    fn environment_beats_file_and_file_beats_default() {
        let loaded = given(
            &[("BUS_POLL_MS", "20"), ("COGO_RAG_EMBED_LIMIT", "9"), ("COGO_LIMIT", "8"), ("UNRELATED", "x")],
            Some("bus_poll_ms = 10\nconcurrency = 3"),
        )
        .unwrap();
        assert_eq!(
            (loaded.frame.bus_poll_ms, loaded.frame.concurrency, loaded.frame.grace_ms, loaded.service.limit),
            (20, 3, 10_000, 9)
        );
        assert_eq!(loaded.origins["bus_poll_ms"], ("20".to_owned(), "BUS_POLL_MS".to_owned()));
    }

    #[test]
    fn service_without_settings_knows_those_of_the_frame() {
        let environment = HashMap::from([("COGO_PORT_OFFSET".to_owned(), "7".to_owned())]);
        let loaded = load::<NoSettings>("rag-dispatcher", &Sources { environment, file: None }).unwrap();
        assert_eq!(loaded.frame.port_offset, 7);
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let loaded = given(&[("COGO_ALLOWED_ROOTS", "/a,/b")], None).unwrap();
        assert_eq!(loaded.frame.allowed_roots, ["/a", "/b"]);
        let loaded =
            given(&[("COGO_ALLOWED_ROOTS", "/a"), ("RUST_LOG", "debug"), ("COGO_API_KEY", "123")], None).unwrap();
        assert_eq!(loaded.frame.allowed_roots, ["/a"]);
        assert_eq!(loaded.service.api_key.as_deref(), Some("123"));
    }

    #[test]
    fn bad_and_unknown_values_stop_the_start_with_the_key() {
        for (environment, file, expected) in [
            (&[("BUS_POLL_MS", "soon")][..], None, "bus_poll_ms"),
            (&[("COGO_RAG_EMBED_LIMITT", "1")][..], None, "COGO_RAG_EMBED_LIMITT"),
            (&[][..], Some("limitt = 1"), "limitt"),
            (&[][..], Some("limit = \"x\""), "limit"),
            (&[][..], Some("limit = "), "rag-embed.toml"),
        ] {
            let error = given(environment, file).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let loaded = given(&[("DATABASE_URL", "postgres://u:hunter2@h/d"), ("COGO_API_KEY", "hunter2")], None).unwrap();
        assert!(!format!("{:?}{:?}", loaded.origins, loaded.frame).contains("hunter2"));
        assert_eq!(loaded.frame.database_url.reveal(), "postgres://u:hunter2@h/d");
    }
}
