//! The machine-readable lines of the console: `@topic key=value key=value`.

use crate::error::Error;
use std::fmt;

/// One such line, taken apart.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// The word after the `@`.
    pub topic: String,
    fields: Vec<(String, String)>,
}

impl Record {
    /// Takes a console line apart; `None` when it is not a record. A word without `=` is left out, so that one garbled
    /// word does not hide the rest.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix('@')?.split_whitespace();
        let topic = words.next().filter(|_| !line[1..].starts_with(char::is_whitespace))?.to_string();
        let fields = words
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        Some(Self { topic, fields })
    }

    /// The value of the first field of that name.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value as what the caller takes it for: a number, a truth (`0` or `1`), text.
    ///
    /// # Errors
    /// [`Error::Answer`] when there is no such field, or its value is nothing of that type; the record is named.
    pub fn field<T: Field>(&self, key: &str) -> Result<T, Error> {
        let Some(value) = self.get(key) else { return Err(Error::Answer(format!("there is no {key}= in \"{self}\""))) };
        T::read(value).ok_or_else(|| Error::Answer(format!("{key}={value} is no {} in \"{self}\"", T::WHAT)))
    }

    /// The value as a number: decimal, or hexadecimal after `0x`. `None` when it is not there or not a number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        let value = self.get(key)?;
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => value.parse().ok(),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.topic)?;
        self.fields.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))
    }
}

/// What the value of a field can be read as.
pub trait Field: Sized {
    /// What it is called where a value is none.
    const WHAT: &'static str;

    /// The value; `None` where the word is none.
    fn read(word: &str) -> Option<Self>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Field for $number {
            const WHAT: &'static str = concat!("number (", stringify!($number), ")");

            fn read(word: &str) -> Option<Self> {
                match word.strip_prefix("0x") {
                    Some(digits) => Self::from_str_radix(digits, 16).ok(),
                    None => word.parse().ok(),
                }
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, u128, usize, i64);

impl Field for bool {
    const WHAT: &'static str = "0 or 1";

    fn read(word: &str) -> Option<Self> {
        match word {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }
    }
}

impl Field for String {
    const WHAT: &'static str = "text";

    fn read(word: &str) -> Option<Self> {
        Some(word.into())
    }
}

/// Every record of a topic among console lines, in order.
pub fn of_topic<'a>(console: &'a [String], topic: &'a str) -> impl Iterator<Item = Record> + 'a {
    console.iter().filter_map(|line| Record::parse(line)).filter(move |record| record.topic == topic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn a_record_comes_apart_and_goes_together_again() {
        let line = "@nvdimm id=0 base=0x100000000 size=1073741824 name=pmem0";
        let record = Record::parse(line).expect("a record");
        assert_eq!(record.topic, "nvdimm");
        assert_eq!(record.number("base"), Some(0x1_0000_0000));
        assert_eq!(record.number("size"), Some(1 << 30));
        assert_eq!(record.get("name"), Some("pmem0"));
        assert_eq!(record.number("name"), None);
        assert_eq!(record.get("absent"), None);
        assert_eq!(record.to_string(), line);
    }

    /// covers: T5
    #[test]
    fn a_field_is_of_the_type_that_the_caller_takes_it_for_or_an_error_that_names_it() {
        let record = Record::parse("@cpu id=3 base=0x1f online=1 state=idle big=300").expect("a record");
        assert_eq!(record.field::<u32>("id").expect("a number"), 3);
        assert_eq!(record.field::<usize>("base").expect("a number"), 31);
        assert!(record.field::<bool>("online").expect("a truth"));
        assert_eq!(record.field::<String>("state").expect("text"), "idle");
        let error = |error: Error| error.to_string();
        assert_eq!(
            error(record.field::<u8>("big").expect_err("too large")),
            format!("big=300 is no number (u8) in \"{record}\"")
        );
        assert_eq!(
            error(record.field::<bool>("id").expect_err("no truth")),
            format!("id=3 is no 0 or 1 in \"{record}\"")
        );
        assert_eq!(error(record.field::<u8>("x").expect_err("none")), format!("there is no x= in \"{record}\""));
    }

    #[test]
    fn what_is_not_a_record_is_not_taken_for_one() {
        for line in ["", "@", "@ topic a=1", " @topic a=1", "[    0.000000] mm: @topic a=1", "ok 1 mm.table"] {
            assert_eq!(Record::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn a_garbled_word_does_not_hide_the_others() {
        let record = Record::parse("@cpu id=1 onl\u{fffd}ne state=online =x").expect("a record");
        assert_eq!((record.number("id"), record.get("state")), (Some(1), Some("online")));
    }

    #[test]
    fn only_the_topic_asked_for_is_found() {
        let console: Vec<_> = ["@cpu id=0", "noise", "@cpux id=7", "@cpu id=1"].map(String::from).into();
        let ids: Vec<_> = of_topic(&console, "cpu").filter_map(|record| record.number("id")).collect();
        assert_eq!(ids, [0, 1]);
    }

    /// The topics that a source file prints: what follows `report!(` or `answer!(` and an opening quote.
    fn topics(source: &str) -> impl Iterator<Item = String> + '_ {
        let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = code.collect::<Vec<_>>().join(" ");
        let prints: Vec<_> = code.replace("answer!(", "report!(").split("report!(").skip(1).map(String::from).collect();
        prints.into_iter().filter_map(|print| {
            let word: String = print
                .trim_start()
                .strip_prefix('"')?
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect();
            (!word.is_empty()).then_some(word)
        })
    }

    fn sources(directory: &Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push(std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn every_topic_that_the_kernel_prints_is_in_the_docs_and_no_other() {
        let mut all = Vec::new();
        sources(&paths::root().join("kernel/src"), &mut all);
        let printed: BTreeSet<_> = all.iter().flat_map(|source| topics(source)).collect();
        let docs = std::fs::read_to_string(paths::root().join("docs/console.md")).unwrap();
        let rows = docs.lines().filter_map(|line| line.strip_prefix("| `@")?.split_once('`'));
        let described: BTreeSet<_> =
            rows.map(|(topic, _)| topic.to_string()).filter(|topic| !topic.is_empty()).collect();
        assert!(printed.len() > 20, "{printed:?}");
        assert_eq!(printed, described);
    }
}
