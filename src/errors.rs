//! How errors are told: in one line, with their causes.

/// An error and what caused it, on one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // Some errors repeat their cause, some causes their effect.
        if !text.contains(&words) && !words.starts_with(&last) {
            text = format!("{text}: {words}");
        }
        last = words;
        source = cause.source();
    }
    text
}
