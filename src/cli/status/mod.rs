//! `pgset status`: who leads a set, what each member does, and what it waits for.
//!
//! The edge ([`look`]) reads, the [`view`] is a pure function of what was read, and is [`told`].

pub(super) mod lease;
pub(super) mod look;
mod rows;
pub(super) mod told;
pub(super) mod view;
mod waits;

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{signal::ctrl_c, time::sleep};

use self::{
    look::{Looker, Scope},
    view::{Health, View},
};
use super::{
    cluster::{self, Cluster, Connection},
    set_name::SetName,
};
use crate::errors::with_causes;

/// How often `--watch` looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// It could not be told.
const UNTOLD: u8 = 2;

/// The flags of `pgset status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 healthy (one member leads, all others stream, nothing is waited for), 1 something is waited for, 2 it could not be told.
It only reads: the StatefulSet, its pods, its Lease and its Events. docs/status.md explains every column, state and reason.

Examples:
  pgset status                        all sets of the context's namespace
  pgset status sts/postgres -n shop   one
  pgset status sts/postgres --watch   until Ctrl-C, drawn anew when something changes
  pgset status -A -o json             all sets of the cluster, for programs")]
pub struct Arguments {
    /// The set: sts/NAME [default: all of the namespace]
    #[arg(value_name = "sts/NAME")]
    set: Option<SetName>,
    /// The namespace [default: the one of the context]
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// The sets of all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["set", "namespace"])]
    all_namespaces: bool,
    /// Go on looking, every second, and tell what changes; Ctrl-C ends it. With -o json, an object on a line for each change
    #[arg(short, long)]
    watch: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A row for each member, and below what the set waits for
    Table,
    /// One JSON object
    Json,
}

type Error = Box<dyn std::error::Error>;

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    match tell(arguments) {
        Ok(Health::Healthy) => ExitCode::SUCCESS,
        Ok(Health::Waiting) => ExitCode::FAILURE,
        Ok(Health::Unknown) => ExitCode::from(UNTOLD),
        Err(error) => super::failed(error.as_ref(), UNTOLD),
    }
}

fn tell(arguments: &Arguments) -> Result<Health, Error> {
    super::install_crypto_provider()?;
    cluster::block_on(async {
        let cluster = Cluster::connect(&arguments.connection).await?;
        let namespace = arguments.namespace.clone().unwrap_or_else(|| cluster.namespace().to_owned());
        let scope = match &arguments.set {
            Some(SetName(name)) => Scope::Set { namespace, name: name.clone() },
            None if arguments.all_namespaces => Scope::Everywhere,
            None => Scope::Namespace(namespace),
        };
        let place = scope.to_string();
        let mut looker = Looker::new(&cluster, scope, arguments.watch);
        let views = look(&mut looker).await?;
        if arguments.watch {
            return watch(&mut looker, views, arguments.output, &place).await;
        }
        print(&match arguments.output {
            Output::Table => to_text(&views, &place),
            Output::Json => format!("{}\n", serde_json::to_string_pretty(&to_json(&views))?),
        })?;
        Ok(health(&views))
    })?
}

async fn look(looker: &mut Looker<'_>) -> Result<Vec<View>, look::Error> {
    Ok(looker.look().await?.iter().map(View::of).collect())
}

/// Tells what changes until somebody has seen enough. An API server that does not answer is a reason to go on looking.
async fn watch(looker: &mut Looker<'_>, first: Vec<View>, output: Output, place: &str) -> Result<Health, Error> {
    let mut end = std::pin::pin!(ctrl_c());
    let is_screen = output == Output::Table && std::io::stdout().is_terminal();
    let mut screen = Screen::default();
    let mut told: Option<Vec<View>> = None;
    let mut trouble: Option<String> = None;
    let mut seen = Ok(first);
    loop {
        let failed = match seen {
            Ok(views) => {
                let essence: Vec<View> = views.iter().map(View::essence).collect();
                let is_news = told.as_ref() != Some(&essence) || trouble.is_some();
                if is_screen {
                    // Ages are worth a stroke too, where nothing scrolls away.
                    print(&screen.draw(&to_text(&views, place)))?;
                } else if is_news {
                    print(&match output {
                        Output::Table => format!("{}\n", to_text(&views, place)),
                        Output::Json => format!("{}\n", to_json(&views)),
                    })?;
                }
                told = Some(essence);
                None
            }
            Err(why) => Some(with_causes(&why)),
        };
        if let Some(why) = failed.as_ref().filter(|why| trouble.as_ref() != Some(why)) {
            eprintln!("pgset: {why}; looking again");
            screen = Screen::default();
        }
        trouble = failed;
        seen = tokio::select! {
            _ = &mut end => return Ok(told.map_or(Health::Unknown, |views| health(&views))),
            seen = async {
                sleep(LOOK_EVERY).await;
                look(looker).await
            } => seen,
        };
    }
}

/// A terminal that is drawn on anew from its top.
#[derive(Default)]
struct Screen {
    is_drawn: bool,
}

// === impl Screen ===

impl Screen {
    /// Each line is overwritten in its place and what is left below is wiped, so that nothing flickers.
    fn draw(&mut self, text: &str) -> String {
        let start = if self.is_drawn { "\x1b[H" } else { "\x1b[H\x1b[2J" };
        self.is_drawn = true;
        format!("{start}{}\x1b[J", text.replace('\n', "\x1b[K\n"))
    }
}

/// The worst of all sets.
fn health(views: &[View]) -> Health {
    let has = |health| views.iter().any(|view| view.health() == health);
    [Health::Waiting, Health::Unknown].into_iter().find(|health| has(*health)).unwrap_or(Health::Healthy)
}

fn to_text(views: &[View], place: &str) -> String {
    if views.is_empty() {
        return format!("there is no set {place}\n");
    }
    views.iter().map(View::to_text).collect::<Vec<_>>().join("\n")
}

/// The shape that `docs/status.md` promises.
fn to_json(views: &[View]) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "healthy": health(views) == Health::Healthy,
        "sets": views.iter().map(View::to_json).collect::<Vec<_>>(),
    })
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_wiped_once_and_overwritten_from_then_on() {
        let mut screen = Screen::default();
        assert_eq!(screen.draw("a\n"), "\x1b[H\x1b[2Ja\x1b[K\n\x1b[J");
        assert_eq!(screen.draw("b\n"), "\x1b[Hb\x1b[K\n\x1b[J");
    }

    #[test]
    fn no_set_at_all_is_healthy_and_said() {
        assert_eq!(health(&[]), Health::Healthy);
        assert_eq!(to_text(&[], "in the namespace shop"), "there is no set in the namespace shop\n");
        assert_eq!(to_json(&[])["sets"], json!([]));
    }
}
