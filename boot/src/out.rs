//! Standard output, whose reader may have gone away (`| head`). That is no reason to end what is under way: it goes on without.

use std::fmt::Arguments;

/// Prints a line, as `println!` does.
macro_rules! outln {
    () => { $crate::out::line(format_args!("")) };
    ($($words:tt)*) => { $crate::out::line(format_args!($($words)*)) };
}
pub(crate) use outln;

/// Prints these words and ends the line.
#[cfg(not(test))]
pub(crate) fn line(words: Arguments<'_>) {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{words}").and_then(|()| stdout.flush());
}

/// The same into what is kept of a test's words.
#[cfg(test)]
pub(crate) fn line(words: Arguments<'_>) {
    println!("{words}");
}
