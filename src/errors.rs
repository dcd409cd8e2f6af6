//! How errors are told: in one line, with their causes.

use std::error::Error;

/// An error and what caused it, its causes on one line: what it says itself may be a list for people. Of an answer of the API server only its
/// message is told: the rest repeats it.
#[must_use]
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = Some(error);
    while let Some(error) = next {
        let answer = answer_of_the_api_server(error);
        let is_last = answer.is_some();
        let words = answer.unwrap_or_else(|| error.to_string());
        if !text.contains(&words) {
            text = format!("{text}: {}", on_one_line(words));
        }
        next = if is_last { None } else { error.source() };
    }
    text
}

/// Stores answer in several lines.
#[must_use]
pub fn on_one_line(text: String) -> String {
    if text.contains(['\n', '\r']) { text.split_whitespace().collect::<Vec<_>>().join(" ") } else { text }
}

fn answer_of_the_api_server(error: &(dyn Error + 'static)) -> Option<String> {
    let boxed = || error.downcast_ref::<Box<kube::Error>>().map(AsRef::as_ref);
    match error.downcast_ref().or_else(boxed) {
        Some(kube::Error::Api(status)) => Some(status.message.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to write {what}")]
    struct Outer {
        what: &'static str,
        #[source]
        source: Box<dyn Error>,
    }

    #[test]
    fn causes_follow_in_their_order() {
        let error =
            Outer { what: "the Lease", source: Box::new(Outer { what: "anything", source: "no network".into() }) };
        assert_eq!(with_causes(&error), "failed to write the Lease: failed to write anything: no network");
    }

    #[test]
    fn a_cause_of_several_lines_is_told_on_one() {
        let error = Outer { what: "an object", source: "403:\n<Code>\r\n  AccessDenied</Code>\n".into() };
        assert_eq!(with_causes(&error), "failed to write an object: 403: <Code> AccessDenied</Code>");
    }

    #[test]
    fn a_list_for_people_stays_one() {
        let error: Box<dyn Error> = "2 sets:\n  default/one\n  default/two".into();
        assert_eq!(with_causes(error.as_ref()), "2 sets:\n  default/one\n  default/two");
    }

    #[test]
    fn of_an_answer_of_the_api_server_only_its_message_is_told() {
        let status = kube::core::Status::failure("secrets is forbidden", "Forbidden");
        let error = Outer { what: "caBundle", source: Box::new(kube::Error::Api(status.boxed())) };
        assert_eq!(with_causes(&error), "failed to write caBundle: secrets is forbidden");
    }
}
