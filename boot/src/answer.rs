//! What the kernel's shell answers to a command.

use crate::error::Error;
use crate::records::{self, Record};

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
    /// [`Error::Refused`], when a line begins with `error: `: the first such one.
    pub(crate) fn of(command: &str, lines: Vec<String>) -> Result<Self, Error> {
        match lines.iter().find_map(|line| line.strip_prefix("error: ")) {
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
            Error::Answer(format!(
                "{:?} was answered without a line @{topic}: {:?}",
                self.command,
                self.lines.join(" / ")
            ))
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
    }
}
