//! `pgset recover`: a moment of a set's history is restored beside its data, looked at, and becomes its data.

use std::{
    fmt::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::time::sleep;

use super::{
    backup::{Outcome, Place, Which, ended, pointer},
    cluster::{self, Unread, text},
    status::told::{bytes, plain},
};
use crate::{
    backup::in_place::{State, Told},
    names::annotation,
    set::{
        backup::Target,
        recovery::{Recovery, RecoveryOrder},
    },
};

/// How often it is looked how far it has come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The flags of `pgset recover`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The set's master restores the moment from the set's backups beside its data, which goes on as it is. Then it can be looked at in the master's
container, read-only: psql -h /pgset/run/recovered -U postgres. With --accept the set goes on from it, and what it had before stays on the master's volume
until --forget. docs/backup.md explains it.

Exit codes: 0 done, 1 refused, or not done in time, 2 it could not be told or ordered.

Examples:
  pgset recover sts/postgres --to 2026-11-24T14:03:00Z --wait    restore that moment beside the data
  pgset recover sts/postgres                                     how far it is
  pgset recover sts/postgres --accept                            go on from it: what was committed after that moment is given up
  pgset recover sts/postgres --cancel                            or do not
  pgset recover sts/postgres --forget                            let go what the set had before")]
#[expect(clippy::struct_excessive_bools, reason = "each of them is a flag")]
pub struct Arguments {
    #[command(flatten)]
    which: Which,
    /// Restore this moment beside the data: a time, a position in the WAL, a restore point's name, or latest
    #[arg(long, value_name = "MOMENT", value_parser = target, group = "task")]
    to: Option<Target>,
    /// Go on from what was restored
    #[arg(long, group = "task")]
    accept: bool,
    /// Remove what was restored
    #[arg(long, group = "task")]
    cancel: bool,
    /// Let go what the set had before it went on from what was restored
    #[arg(long, group = "task")]
    forget: bool,
    /// With --to: wait until it can be looked at
    #[arg(short, long, requires = "to")]
    wait: bool,
    /// For how long to wait; what was ordered goes on after that [default: 3600 with --to, else 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: Option<u32>,
}

type Error = Box<dyn std::error::Error>;

fn target(text: &str) -> Result<Target, &'static str> {
    Target::parse(text).ok_or(
        "a moment is a time with its zone (2026-11-24T14:03:00Z), a position in the WAL (1A/2B00028), the name of a restore point, or latest",
    )
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> ExitCode {
    let outcome = super::install_crypto_provider().map_err(Error::from).and_then(|()| {
        cluster::block_on(async {
            let place = Place::of(&arguments.which).await?;
            let set = match place.set().await? {
                Ok(set) => set,
                Err(why) => return Ok(Err(why)),
            };
            let ordered = RecoveryOrder::parse(text(&set, &pointer(annotation::RECOVER)));
            match arguments {
                Arguments { to: Some(target), .. } => arguments.order(&place, ordered, target).await,
                Arguments { accept: true, .. } => arguments.accept(&place, ordered).await,
                Arguments { cancel: true, .. } => cancel(&place, ordered).await,
                Arguments { forget: true, .. } => arguments.forget(&place, ordered).await,
                _ => tell(&place, ordered).await,
            }
        })?
    });
    ended(outcome)
}

async fn told(place: &Place) -> Result<Told, Error> {
    Ok(place.lease().await?.and_then(|lease| Told::read(&lease)).unwrap_or_default())
}

impl Arguments {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(if self.to.is_some() { 3600 } else { 300 }).into())
    }

    async fn order(&self, place: &Place, ordered: Option<RecoveryOrder>, target: &Target) -> Outcome {
        let now = Timestamp::now();
        if matches!(target, Target::Time(time) if *time > now) {
            return Ok(Err(format!("{target} has not come yet")));
        }
        if let Some(order @ (RecoveryOrder::To(_) | RecoveryOrder::Accept(_))) = ordered {
            return Ok(Err(format!("{:?} is ordered already: --cancel it first", order.to_string())));
        }
        let before = told(place).await?;
        if let Some(kept) = before.kept {
            return Ok(Err(format!(
                "{} still keeps {} from before the last recovery: let it go first (--forget)",
                before.pod,
                bytes(kept)
            )));
        }
        let order = RecoveryOrder::To(Recovery { target: target.clone(), at: to_milliseconds(now) });
        place.order(annotation::RECOVER, &order.to_string(), None).await?;
        if !self.wait {
            println!("pgset recover {} says how far it is", place.arguments());
            return Ok(Ok(()));
        }
        match self.wait_for(place, &order, State::Ready).await? {
            Ok(told) => {
                println!("{}", in_words(&told, place));
                Ok(Ok(()))
            }
            Err(why) => Ok(Err(why)),
        }
    }

    async fn accept(&self, place: &Place, ordered: Option<RecoveryOrder>) -> Outcome {
        let now = told(place).await?;
        let Some(before @ RecoveryOrder::To(recovery)) = &ordered else {
            return Ok(Err("nothing is restored beside the data: --to orders it".to_owned()));
        };
        if now.order != before.to_string() || now.state != State::Ready {
            return Ok(Err(format!("{before} is not ready to be accepted: {}", in_words(&now, place))));
        }
        let order = RecoveryOrder::Accept(recovery.clone());
        replace(place, before, Some(&order)).await?;
        println!("ordered: {} {:?}", annotation::RECOVER, order.to_string());
        match self.wait_for(place, &order, State::Accepted).await? {
            Ok(told) => {
                println!("{}", in_words(&told, place));
                // What was done does nothing any more.
                replace(place, &order, None).await?;
                Ok(Ok(()))
            }
            Err(why) => Ok(Err(why)),
        }
    }

    async fn forget(&self, place: &Place, ordered: Option<RecoveryOrder>) -> Outcome {
        if let Some(order @ RecoveryOrder::To(_)) = ordered {
            return Ok(Err(format!("{:?} is ordered: --cancel or --accept it first", order.to_string())));
        }
        let before = told(place).await?;
        let Some(kept) = before.kept else { return Ok(Err("nothing is kept from before a recovery".to_owned())) };
        let order = RecoveryOrder::Forget { at: to_milliseconds(Timestamp::now()) };
        // It stands: a member that is away now lets it go when it comes.
        place.order(annotation::RECOVER, &order.to_string(), None).await?;
        let since = Instant::now();
        while since.elapsed() < self.limit() {
            if told(place).await?.kept.is_none() {
                println!("{} lets go {}", before.pod, bytes(kept));
                return Ok(Ok(()));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(Err(format!("{} still keeps it after {} s", before.pod, self.limit().as_secs())))
    }

    /// Waits until the master says that it is so, and says what keeps it from it.
    async fn wait_for(
        &self,
        place: &Place,
        order: &RecoveryOrder,
        state: State,
    ) -> Result<Result<Told, String>, Error> {
        let (since, order) = (Instant::now(), order.to_string());
        let (mut last, mut trouble) = (None, None);
        while since.elapsed() < self.limit() {
            let told = told(place).await?;
            if told.order == order {
                if told.state == state {
                    return Ok(Ok(told));
                }
                if told.state == State::Refused {
                    return Ok(Err(told.trouble.unwrap_or_else(|| "it is refused".to_owned())));
                }
                if last != Some(told.state) {
                    println!("{}", in_words(&told, place));
                    last = Some(told.state);
                }
                if told.trouble != trouble {
                    trouble.clone_from(&told.trouble);
                    told.trouble.iter().for_each(|why| eprintln!("pgset: not yet, and tried again: {}", plain(why)));
                }
            }
            sleep(LOOK_EVERY).await;
        }
        let why = trouble.unwrap_or_else(|| "the log of the master says more".to_owned());
        Ok(Err(format!("{order} is not done after {} s, and goes on: {why}", self.limit().as_secs())))
    }
}

async fn cancel(place: &Place, ordered: Option<RecoveryOrder>) -> Outcome {
    let Some(order @ (RecoveryOrder::To(_) | RecoveryOrder::Accept(_))) = ordered else {
        return Ok(Err("no recovery is ordered".to_owned()));
    };
    replace(place, &order, None).await?;
    println!(
        "taken back: {:?}; what was restored is removed, unless the set goes on from it already",
        order.to_string()
    );
    Ok(Ok(()))
}

async fn tell(place: &Place, ordered: Option<RecoveryOrder>) -> Outcome {
    let told = told(place).await?;
    println!("{}", in_words(&told, place));
    if let Some(order) = ordered.map(|order| order.to_string()).filter(|order| *order != told.order) {
        println!("ordered, and not heard of yet: {order}");
    }
    Ok(Ok(()))
}

/// Another order in the place of this one, and of no other.
async fn replace(place: &Place, before: &RecoveryOrder, after: Option<&RecoveryOrder>) -> Result<(), Error> {
    let path = pointer(annotation::RECOVER);
    let change = match after {
        Some(after) => json!({"op": "replace", "path": path, "value": after.to_string()}),
        None => json!({"op": "remove", "path": path}),
    };
    let steps = json!([{"op": "test", "path": path, "value": before.to_string()}, change]);
    match place.cluster().patch(&place.path(), &steps).await {
        Ok(_) => Ok(()),
        Err(Unread::Refused(why)) => Err(format!(
            "{} can't be written, or is another than {:?} by now: {why}",
            annotation::RECOVER,
            before.to_string()
        )
        .into()),
        Err(why) => Err(format!(
            "failed to write {}, which takes the right to patch statefulsets.apps: {why}",
            annotation::RECOVER
        )
        .into()),
    }
}

/// As it stands in an order.
fn to_milliseconds(now: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}

fn in_words(told: &Told, place: &Place) -> String {
    words(told, &place.arguments())
}

/// For people.
pub(super) fn words(told: &Told, arguments: &str) -> String {
    let Told { pod, order, state, brought, size, last_commit, trouble, kept } = told;
    let (pod, order) = (plain(pod), plain(order));
    let commit = last_commit.map_or_else(String::new, |at| format!(", with the last commit of {at}"));
    let mut text = match state {
        State::None => "no recovery".to_owned(),
        State::Restoring => match (brought, size) {
            (Some(brought), Some(size)) => {
                format!("{order}: {pod} restores a base backup, {} of {}", bytes(*brought), bytes(*size))
            }
            _ => format!("{order}: {pod} restores a base backup"),
        },
        State::Replaying => format!("{order}: {pod} repeats the WAL"),
        State::Ready => format!(
            "{order}: ready to be looked at on {pod}{commit} (psql -h /pgset/run/recovered -U postgres in its container); \
             pgset recover {arguments} --accept or --cancel"
        ),
        State::Accepting => format!("{order}: {pod} is about to go on from it"),
        State::Accepted => format!("the set went on from a recovery on {pod}"),
        State::Refused => format!("{order}: refused"),
    };
    if let Some(why) = trouble {
        text.push_str(": ");
        text.push_str(&plain(why));
    }
    if let Some(kept) = kept {
        let kept = bytes(*kept);
        // Writing to a string can't fail.
        let _ = write!(text, "; {pod} keeps {kept} from before the last one: pgset recover {arguments} --forget");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_has_come_is_told_in_words() {
        let told = |state| Told {
            pod: "db-0".into(),
            order: "to latest at 2026-12-01T03:00:00Z".into(),
            state,
            ..Told::default()
        };
        let says = |told: &Told| words(told, "sts/db -n shop");
        assert_eq!(words(&Told::default(), ""), "no recovery");
        let brought = Told { brought: Some(1 << 20), size: Some(5 << 20), ..told(State::Restoring) };
        assert!(says(&brought).ends_with("restores a base backup, 1.0 MB of 5.0 MB"), "{}", says(&brought));
        let ready = Told { last_commit: "2026-12-01T02:59:59Z".parse().ok(), ..told(State::Ready) };
        let text = says(&ready);
        assert!(
            text.contains("last commit of 2026-12-01T02:59:59Z") && text.contains("sts/db -n shop --accept"),
            "{text}"
        );
        let kept = Told { kept: Some(3 << 30), ..told(State::Accepted) };
        assert!(says(&kept).contains("db-0 keeps 3.0 GB from before the last one"), "{}", says(&kept));
        let refused = Told { trouble: Some("no\nroom".into()), ..told(State::Refused) };
        assert!(says(&refused).ends_with(": refused: no room"), "{}", says(&refused));
    }
}
