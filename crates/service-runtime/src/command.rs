//! What a process answers on its command line instead of running.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use crate::{Service, settings::variable};

/// Exit code of bad usage or settings (sysexits.h EX_CONFIG).
const BAD_SETTINGS: u8 = 78;
/// How long `--healthcheck` waits for an answer.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) fn say(text: &str) -> ExitCode {
    // a closed pipe is the reader's choice
    let _ = writeln!(std::io::stdout(), "{text}");
    ExitCode::SUCCESS
}

pub(crate) fn refuse(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(BAD_SETTINGS)
}

pub(crate) fn help<'a, S: Service>(keys: impl Iterator<Item = &'a String>) -> String {
    let variables: Vec<String> = keys.map(|key| format!("  {}", variable(key))).collect();
    format!(
        "cogo-{name}: a process of COGO (domain {domain}, port {port})\n\n\
         usage: cogo-{name} [--version | --help | --check-config | --healthcheck]\n\n\
         Settings come from $COGO_CONFIG_DIR/{name}.toml (default deploy/config/{name}.toml), then from the environment:\n\
         {variables}\n\n\
         example: DATABASE_URL=postgres://localhost/cogo cogo-{name} --check-config",
        name = S::NAME,
        domain = S::DOMAIN,
        port = S::PORT,
        variables = variables.join("\n"),
    )
}

/// Prints each setting, what won and why; secrets are masked.
pub(crate) fn check(origins: &BTreeMap<String, (String, String)>) -> ExitCode {
    let width = origins.keys().map(String::len).max().unwrap_or(0);
    let lines: Vec<String> =
        origins.iter().map(|(key, (value, origin))| format!("{key:width$} = {value}  ({origin})")).collect();
    say(&lines.join("\n"))
}

/// Asks the running process on this machine whether it is ready.
pub(crate) fn healthcheck(address: SocketAddr) -> ExitCode {
    match status_of_ready(reachable(address)) {
        Ok(200) => say("ready"),
        Ok(status) => refuse_health(&format!("not ready: /readyz answered {status}")),
        Err(error) => refuse_health(&format!("not ready: {address}: {error}")),
    }
}

fn refuse_health(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::FAILURE
}

fn status_of_ready(address: SocketAddr) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::Error::other("the answer is not HTTP"))
}

/// A process that binds to every address is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(IpAddr::from([127, 0, 0, 1]), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), address.port())
        }
        _ => address,
    }
}
