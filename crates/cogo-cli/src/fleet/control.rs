//! What other commands ask of a running `cogo up`, over a socket that only its owner can open.
//!
//! One line of JSON each way: a [`Request`], then `{"answer": …}` or `{"problem": …}`.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    time::Duration,
};

use cogo_contracts::Problem;
use rustix::fs::Mode;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use crate::{failure::Failure, fleet::Home};

const NAME: &str = "control.sock";
/// A request is a few words; an answer is the tree of a machine.
const LONGEST_REQUEST: u64 = 16 * 1024;
const LONGEST_ANSWER: u64 = 16 * 1024 * 1024;
/// A request is sent and an answer read at once, or whoever holds the connection does not mean it.
const WORD_WITHIN: Duration = Duration::from_secs(5);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Request {
    /// The tree as it is now.
    Tree {},
    /// What the target names shall finish what it has, stop and stay down.
    Drain { target: String, by: String, because: Option<String> },
    /// What was drained of the target shall be started.
    Resume { target: String, by: String },
    /// Standing orders were changed in the database.
    Heed {},
    /// What the target names shall stop and be started anew, also if it is down.
    Restart { target: String, by: String },
    /// The process shall have so many instances.
    Scale { process: String, instances: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Answer(serde_json::Value),
    Problem(Problem),
}

/// The socket of a home, by a name that is short however long that of the directory is.
struct Place {
    directory: File,
}

impl Place {
    fn of(home: &Home) -> io::Result<Self> {
        Ok(Self { directory: File::open(home.path())? })
    }

    fn path(&self) -> PathBuf {
        // a socket's name has 107 bytes at most
        PathBuf::from(format!("/proc/self/fd/{}/{NAME}", self.directory.as_raw_fd()))
    }
}

/// Where the socket is.
pub(crate) fn socket_file(home: &Home) -> PathBuf {
    home.path().join(NAME)
}

/// Opens the socket; whoever calls this holds the fleet of the directory, so an old one is nobody's.
pub(crate) fn listen(home: &Home) -> io::Result<UnixListener> {
    match fs::remove_file(socket_file(home)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let place = Place::of(home)?;
    // there must be no moment at which others may open it
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(place.path());
    rustix::process::umask(before);
    listener
}

/// Asks the `cogo up` of this directory.
pub(crate) async fn ask<T: DeserializeOwned>(home: &Home, request: &Request, within: Duration) -> Result<T, Failure> {
    let mut stream = connect(home).await?;
    let answered = async {
        let mut line = serde_json::to_string(request).map_err(io::Error::other)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stream.take(LONGEST_ANSWER)).read_line(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let Ok(answered) = tokio::time::timeout(within, answered).await else {
        return Err(Failure::timeout(format!("`cogo up` did not answer within {} s", within.as_secs()))
            .hint("what was asked may still be done: see `cogo tree` and `cogo status`"));
    };
    let answer = answered.map_err(|error| Failure::unavailable("The answer of `cogo up` broke off").because(&error))?;
    if answer.is_empty() {
        return Err(Failure::unavailable("`cogo up` ended before it answered").hint("`cogo status` shows what is left"));
    }
    let unclear = |error: serde_json::Error| {
        Failure::failed("The answer of `cogo up` cannot be understood")
            .because(&error)
            .hint("it may be of another build: `cogo down` and `cogo up` start this one")
    };
    match serde_json::from_str(&answer).map_err(unclear)? {
        Reply::Answer(value) => serde_json::from_value(value).map_err(unclear),
        Reply::Problem(problem) => Err(Failure::from_problem(problem)),
    }
}

async fn connect(home: &Home) -> Result<UnixStream, Failure> {
    let connected = match Place::of(home) {
        Ok(place) => UnixStream::connect(place.path()).await,
        Err(error) => Err(error),
    };
    connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Failure::unavailable(format!("No fleet is up in {}", home.path().display()))
                .hint("`cogo up` starts it; `--data-dir` names another directory")
        }
        io::ErrorKind::PermissionDenied => {
            Failure::new(crate::failure::Kind::Auth, "The fleet belongs to another user").because(&error)
        }
        _ => Failure::unavailable("`cogo up` cannot be reached").because(&error),
    })
}

/// Reads what is asked on a connection; none if nothing came.
pub(crate) async fn read_request(stream: &mut UnixStream) -> Option<Result<Request, Failure>> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LONGEST_REQUEST));
    match tokio::time::timeout(WORD_WITHIN, reader.read_line(&mut line)).await {
        Ok(Ok(1..)) => {}
        _ => return None,
    }
    Some(serde_json::from_str(&line).map_err(|error| {
        Failure::new(crate::failure::Kind::Usage, "The request cannot be understood")
            .because(&error)
            .hint("use the `cogo` of the build that runs the fleet")
    }))
}

/// Answers and closes; the asker may have left.
pub(crate) async fn reply(mut stream: UnixStream, outcome: Result<serde_json::Value, Failure>) {
    let reply = match outcome {
        Ok(value) => Reply::Answer(value),
        Err(failure) => Reply::Problem(failure.problem()),
    };
    if let Ok(mut line) = serde_json::to_string(&reply) {
        line.push('\n');
        let _ = tokio::time::timeout(WORD_WITHIN, stream.write_all(line.as_bytes())).await;
        let _ = stream.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::failure::Kind;

    const SOON: Duration = Duration::from_secs(10);

    async fn serve_once(listener: UnixListener, outcome: Result<serde_json::Value, Failure>) -> Option<Request> {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let asked = read_request(&mut stream).await?.ok();
        reply(stream, outcome).await;
        asked
    }

    #[tokio::test]
    async fn questions_and_answers_pass_a_private_socket_however_long_its_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::new(&directory.path().join("x".repeat(200)));
        home.prepare().expect("directories");
        let request = Request::Scale { process: "a".to_owned(), instances: 2 };
        let none = ask::<u32>(&home, &request, SOON).await.expect_err("nobody listens");
        assert_eq!(none.kind, Kind::Unavailable);
        assert!(none.text().contains("cogo up"), "{}", none.text());

        for outcome in [Ok(serde_json::json!(7)), Err(Failure::conflict("No").hint("wait"))] {
            // the second time over what the first one left
            let listener = listen(&home).expect("listen");
            let mode = fs::metadata(socket_file(&home)).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let (asked, answered) =
                tokio::join!(serve_once(listener, outcome.clone()), ask::<u32>(&home, &request, SOON));
            assert_eq!((asked, answered), (Some(request.clone()), outcome.map(|_| 7)));
        }
        let refused = ask::<u32>(&home, &request, SOON).await.expect_err("nobody listens any more");
        assert_eq!(refused.kind, Kind::Unavailable);
    }

    #[tokio::test]
    async fn requests_of_another_build_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Home::new(directory.path());
        let listener = listen(&home).expect("listen");
        let mut asker = UnixStream::connect(socket_file(&home)).await.expect("connect");
        asker.write_all(b"{\"ask\":\"dance\"}\n").await.expect("write");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let failure = read_request(&mut stream).await.expect("something was asked").expect_err("unknown");
        assert_eq!(failure.kind, Kind::Usage);
        assert!(failure.text().contains("dance"), "{}", failure.text());
    }
}
