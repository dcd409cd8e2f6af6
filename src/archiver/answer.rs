//! What a store says that does not do what was asked, in few words: first the cause. Nothing of it that lets anybody in, and nothing that differs
//! from one try to the next, so that who was told once is not told again.

/// A store's own message is cut after so many letters.
const LONGEST: usize = 200;

/// Of what `object_store` says: its text has the request, how long it took, and the store's answer, which may be a page of XML.
pub(super) fn in_words(text: &str) -> String {
    let text = &without_queries(text);
    let request = between(text, "Error performing ", " in ").unwrap_or("a request");
    if let Some((_, answer)) = text.split_once("non-2xx status code: ") {
        let (status, body) = answer.split_once(": ").unwrap_or((answer, ""));
        return format!("the store answers {status}{} to {request}", details(body));
    }
    if let Some((_, body)) = text.split_once("Server returned error response: ") {
        return format!("the store answers with an error{} to {request}", details(body));
    }
    match (text.contains("Error performing "), text.split_once(" - ")) {
        (true, Some((_, why))) => format!("the store does not answer {request}: {why}"),
        _ => text.clone(),
    }
}

/// The error's name and its message. The rest may repeat what was signed.
fn details(body: &str) -> String {
    let code = between(body, "<Code>", "</Code>");
    let message = between(body, "<Message>", "</Message>").or_else(|| {
        let (_, rest) = body.split_once("\"message\":")?;
        between(rest, "\"", "\"")
    });
    let words: Vec<String> =
        [code, message].into_iter().flatten().map(|it| it.chars().take(LONGEST).collect()).collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(": ")) }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found.trim())
}

/// The text without the queries of the addresses in it: Azure's hold what lets anybody in.
fn without_queries(text: &str) -> String {
    let clean = |word: &str| match word.split_once('?') {
        Some((address, _)) if address.contains("://") => format!("{address}?…"),
        _ => word.to_owned(),
    };
    text.split(' ').map(clean).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_refuses_is_told_by_its_cause_and_without_what_was_signed() {
        let text = "Generic S3 error: Error performing PUT https://s3.example/b/db/wal/1.zst in 2.3ms, after 3 retries, max_retries: 10, \
                    retry_timeout: 20s  - Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch\
                    </Code><Message>Check your key.</Message><CanonicalRequest>x-amz-security-token:secret</CanonicalRequest></Error>: source";
        assert_eq!(
            in_words(text),
            "the store answers 403 Forbidden (SignatureDoesNotMatch: Check your key.) to PUT https://s3.example/b/db/wal/1.zst"
        );
        let google = "Error performing GET https://g/b in 1s - Server returned non-2xx status code: 503 Service Unavailable: {\"error\": \
                      {\"code\": 503, \"message\": \"Try later.\", \"errors\": []}}";
        assert_eq!(in_words(google), "the store answers 503 Service Unavailable (Try later.) to GET https://g/b");
        let bare = "Error performing GET https://g/b in 1s - Server returned non-2xx status code: 502 Bad Gateway: ";
        assert_eq!(in_words(bare), "the store answers 502 Bad Gateway to GET https://g/b");
    }

    #[test]
    fn two_tries_that_fail_for_one_cause_are_told_by_the_same_words() {
        let tried = |after: &str| {
            in_words(&format!(
                "Generic S3 error: Error performing GET http://h/b in {after}  - HTTP error: error sending request: refused"
            ))
        };
        assert_eq!(
            tried("2.3ms"),
            "the store does not answer GET http://h/b: HTTP error: error sending request: refused"
        );
        assert_eq!(tried("2.3ms"), tried("20.1s, after 9 retries, max_retries: 10, retry_timeout: 20s"));
    }

    #[test]
    fn no_message_holds_a_signed_address() {
        let text = "failed: https://x.blob.core.windows.net/c/a?sv=2024&sig=secret in 3s, what now?";
        let clean = in_words(text);
        assert!(!clean.contains("secret") && clean.ends_with("in 3s, what now?"), "{clean}");
    }
}
