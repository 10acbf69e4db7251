//! QEMU's monitor: one command and its answer at a time.

use crate::error::Error;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the monitor may take for one answer: it is a thread of QEMU's that no guest can keep busy.
const PATIENCE: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, Error>;

fn broken(error: io::Error) -> Error {
    Error::Monitor(error.to_string())
}

/// A connection to the monitor of a QEMU that runs.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What it has told of itself, and nobody has asked for.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects and agrees on capabilities.
    ///
    /// # Errors
    /// When nobody listens, or the other side does not speak QMP.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(broken)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        let greeting = qmp.receive()?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Monitor(format!("it greets with {greeting}")));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it answers. Events that come in between are kept.
    ///
    /// # Errors
    /// When the connection ends, or the command is refused, with QEMU's words.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).map_err(broken)?;
        loop {
            let mut answer = self.receive()?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("refused").into();
                return Err(Error::Qmp { command: command.into(), reason });
            }
            self.events.push(answer);
        }
    }

    /// Runs a command of the monitor for people, and returns its text.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn monitor(&mut self, line: &str) -> Result<String> {
        let text = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(text.as_str().unwrap_or_default().replace('\r', ""))
    }

    /// Waits for the event of this name, the first that nobody has taken, and returns its data. Those before it are passed
    /// over.
    ///
    /// # Errors
    /// When the connection ends, or it does not come in time.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            let next = if self.events.is_empty() { self.receive()? } else { self.events.remove(0) };
            if next.get("event").and_then(Value::as_str) == Some(name) {
                return Ok(next.get("data").cloned().unwrap_or_default());
            }
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).map_err(broken)? == 0 {
            return Err(Error::Monitor("it closed the connection".into()));
        }
        serde_json::from_str(&line).map_err(|error| Error::Monitor(format!("it says {line:?}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// A monitor that greets, agrees, and then answers each request with the next of `answers`.
    fn monitor(answers: &'static [&'static str]) -> Result<Value> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("qmp");
        let listener = UnixListener::bind(&socket).expect("bound");
        let server = thread::spawn(move || -> io::Result<()> {
            let (stream, _) = listener.accept()?;
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut writer = stream;
            writer.write_all(b"{\"QMP\": {}}\n")?;
            for answer in [&["{\"return\": {}}"], answers].concat() {
                let mut request = String::new();
                reader.read_line(&mut request)?;
                writer.write_all(format!("{answer}\n").as_bytes())?;
            }
            Ok(())
        });
        let result = Qmp::connect(&socket).and_then(|mut qmp| qmp.execute("query-status", json!({})));
        server.join().expect("no panic").expect("it listens");
        result
    }

    #[test]
    fn events_before_the_answer_are_passed_over() {
        let answer = monitor(&["{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}}"]).expect("an answer");
        assert_eq!(answer["status"], "paused");
    }

    #[test]
    fn a_refusal_and_garbage_are_errors_with_their_words() {
        let refused = monitor(&["{\"error\": {\"class\": \"x\", \"desc\": \"no such thing\"}}"]).expect_err("refused");
        assert!(matches!(&refused, Error::Qmp { reason, .. } if reason == "no such thing"), "{refused}");
        let garbled = monitor(&["{\"return\": "]).expect_err("garbled");
        assert!(garbled.to_string().contains("return"));
        assert!(monitor(&[]).is_err());
    }
}
