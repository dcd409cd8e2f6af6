//! `pgset eject`: takes the injection out of manifests again.

use std::{io::Write, path::PathBuf};

use serde_json::Value;

use super::{
    CommandResult,
    inject::{Output, read_file, transform},
};
use crate::inject;

/// The flags of `pgset eject`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The file with the manifests, YAML or JSON; - for standard input
    #[arg(short, long, value_name = "FILE")]
    filename: PathBuf,
    /// How to print the result; left out, as the file is written
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> CommandResult {
    let Arguments { filename, output } = arguments;
    let text = transform(&read_file(filename)?, *output, &mut |object: &Value, _: &str| Some(inject::eject(object)))?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
