//! What the kernel's shell answers to a command.

use crate::error::Error;
use crate::records::{self, Record};

/// Most characters of an answer that an error shows.
const SHOWN: usize = 200;

/// An answer that is no error.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The command.
    pub command: String,
    /// What was printed until the next prompt, without the command's echo: lines for people and for programs, and whatever
    /// the kernel said by itself meanwhile.
    pub lines: Vec<String>,
}

impl Answer {
    /// # Errors
    /// [`Error::Refused`], when a line begins with `error: `: the first such one. That of a job in the background is the
    /// answer to `wait` alone.
    pub(crate) fn of(command: &str, lines: Vec<String>) -> Result<Self, Error> {
        let waits = command.split_whitespace().next() == Some("wait");
        let errors = lines.iter().filter_map(|line| line.strip_prefix("error: "));
        match errors.into_iter().find(|reason| waits || !reason.starts_with("job ")) {
            Some(reason) => Err(Error::Refused { command: command.into(), reason: reason.into() }),
            None => Ok(Self { command: command.into(), lines }),
        }
    }

    /// The first record of this topic: the line `@topic key=value …`.
    ///
    /// # Errors
    /// [`Error::Answer`] when there is none.
    pub fn record(&self, topic: &str) -> Result<Record, Error> {
        self.records(topic).next().ok_or_else(|| {
            let all = self.lines.join(" / ");
            let shown: String = all.chars().take(SHOWN).collect();
            let more = if shown == all { "" } else { "…" };
            Error::Answer(format!("{:?} was answered without a line @{topic}: {shown:?}{more}", self.command))
        })
    }

    /// All records of this topic, in order.
    pub fn records<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = Record> + 'a {
        records::of_topic(&self.lines, topic)
    }

    /// The lines for people: without records.
    pub fn text(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str).filter(|line| Record::parse(line).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(lines: &[&str]) -> Result<Answer, Error> {
        Answer::of("cpus", lines.iter().map(ToString::to_string).collect())
    }

    /// covers: T5
    #[test]
    fn an_answer_is_its_records_and_its_words() {
        let answer = answer(&["@cpu id=0", "two of them", "@cpu id=1"]).expect("no error");
        let ids: Vec<u32> = answer.records("cpu").map(|record| record.field("id").expect("a number")).collect();
        assert_eq!((ids, answer.text().collect::<Vec<_>>()), (vec![0, 1], vec!["two of them"]));
        let error = answer.record("mem").expect_err("there is none").to_string();
        assert_eq!(error, "\"cpus\" was answered without a line @mem: \"@cpu id=0 / two of them / @cpu id=1\"");
    }

    /// covers: T5
    #[test]
    fn a_refusal_is_an_error_with_its_reason() {
        let refused = answer(&["[ 1.0] x: error: y", "error: no such device", "error: 2"]).expect_err("refused");
        assert!(matches!(&refused, Error::Refused { reason, .. } if reason == "no such device"));
        assert_eq!(refused.to_string(), "\"cpus\" was refused: no such device");
        let of_a_job = "error: job 1 (attach 7): there is no NVDIMM 7";
        assert!(answer(&[of_a_job, "two CPUs"]).is_ok(), "another command's");
        assert!(Answer::of("wait 1", vec![of_a_job.into()]).is_err());
        let long = answer(&["x"; 1000]).expect("no error").record("mem").expect_err("there is none").to_string();
        assert!(long.len() < 300 && long.ends_with("\"…"), "{long}");
    }
}
