//! The alerts speak of series that there are, and say what to do.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails

use serde_json::Value;

const ALERTS: &str = include_str!("../deploy/alerts.yaml");
const METRICS: &str = include_str!("../docs/metrics.md");

fn rules() -> Vec<Value> {
    let alerts: Value = serde_saphyr::from_str(ALERTS).unwrap();
    let groups = alerts["spec"]["groups"].as_array().unwrap().iter();
    groups.flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

#[test]
fn every_series_of_an_alert_is_one_that_the_documents_tell() {
    for rule in rules() {
        let expression = rule["expr"].as_str().unwrap();
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let series: Vec<_> = words.filter(|word| word.starts_with("pgset_")).collect();
        assert!(!series.is_empty(), "{expression}");
        for name in series {
            assert!(METRICS.contains(&format!("`{name}`")), "{name} of {} is not in docs/metrics.md", rule["alert"]);
        }
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_where_to_look() {
    for rule in rules() {
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{rule}");
        for text in ["summary", "description"] {
            assert!(!rule["annotations"][text].as_str().unwrap().is_empty(), "{rule}");
        }
    }
}
