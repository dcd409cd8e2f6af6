//! Where the data of the members is: the README's table of data volumes.

use serde_json::{Value, json};

use super::{
    Contract, DataSource, Error,
    annotations::Annotations,
    container::{Container, Mount},
    entries,
    error::{listed, named},
    image::Family,
    json::Field,
    known,
    shape::{Settled, Shape},
    volumes::{Kind, Volume, volumes},
};
use crate::names::{env, pod};

/// Where the data is, and what has to be added so that each member has its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placement {
    /// The public view.
    pub(crate) data: DataSource,
    /// Where the members' directories are parted.
    pub(crate) sub_path_owner: SubPathOwner,
    /// Whether pgset has to set PGDATA.
    pub(crate) pgdata: Pgdata,
    /// The volume itself, to see whether it is still the same after an edit.
    pub(crate) source: Value,
    /// What the volume is, if it is lost with the pod.
    pub(crate) temporary: Option<&'static str>,
    /// Whether a volume that the image declares hides the mount from where PGDATA would be without pgset.
    pub(crate) hidden: Hidden,
}

/// Where the members' directories are parted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SubPathOwner {
    /// By pgset, with a sub-path of the pod's name.
    Ours,
    /// By the user, with a sub-path of his own that names the pod.
    Users,
    /// By the agent: the mount stays as it is, one member has its data in PGDATA, where it is without pgset, and the others have
    /// theirs in [`pod::MEMBERS_DIRECTORY`] of the mount.
    InPlace {
        /// The one member.
        member: String,
    },
    /// Nothing to part: each member has a volume of its own, or the image does it.
    None,
}

/// Who sets PGDATA, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pgdata {
    /// The user, to a value that is known unless it comes from elsewhere.
    Users(Option<String>),
    /// The image, as usual.
    Images(String),
    /// pgset, because the image's usual directory is not on the volume.
    Ours(String),
    /// The container's environment, which only the kubelet knows, if that is on the volume; else it is this: the image's name does
    /// not say which version it is, and this is right for every one.
    Fallback(String),
}

impl Pgdata {
    /// The directory, unless only the kubelet knows.
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Self::Users(pgdata) => pgdata.as_deref(),
            Self::Images(pgdata) | Self::Ours(pgdata) | Self::Fallback(pgdata) => Some(pgdata),
        }
    }
}

/// Whether a volume that the image declares lies between the mount and PGDATA: what is written there is lost with the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hidden {
    /// None that is known.
    No,
    /// If the image is what its name only suggests.
    Perhaps,
    /// The official image declares one.
    Surely,
}

impl Placement {
    /// Finds the data of a set that carries no injection.
    pub(crate) fn find<'a>(
        object: &Field<'a>,
        container: &Container<'a>,
        contract: Contract,
        annotations: Annotations<'_>,
        first_member: &str,
        settled: &Settled,
    ) -> Result<Self, Error> {
        let search = Search {
            container,
            contract,
            first_member,
            settled,
            mounts: container.mounts()?,
            volumes: volumes(object)?,
            pgdata: match container.variable(env::PGDATA)? {
                None => PgdataSource::Nothing,
                Some(variable) => variable.literal.map_or(PgdataSource::Elsewhere, PgdataSource::Path),
            },
        };
        match (annotations.get(&entries::CLAIM), annotations.get(&entries::VOLUME)) {
            (Some(claim), volume) => search.claim(&claim, volume.as_deref()),
            (None, Some(volume)) => search.placed(search.named(&volume)?),
            (None, None) => match search.usual() {
                Some(found) => search.placed(found),
                None => Err(search.nothing()),
            },
        }
    }
}

struct Search<'c, 'a> {
    container: &'c Container<'a>,
    contract: Contract,
    first_member: &'c str,
    settled: &'c Settled,
    mounts: Vec<Mount<'a>>,
    volumes: Vec<(&'a str, Volume)>,
    pgdata: PgdataSource<'a>,
}

/// What the user wrote as PGDATA.
#[derive(Clone, Copy, Debug)]
enum PgdataSource<'a> {
    Nothing,
    /// A value that only the kubelet knows.
    Elsewhere,
    Path(&'a str),
}

impl<'a> Search<'_, 'a> {
    fn usual_directory(&self) -> String {
        match self.contract {
            Contract::Agent => self.container.family.usual_pgdata(),
            // Whatever its name, an image that implements the contract makes /pgdata/<pod>.
            Contract::Image => Family::Crunchy.usual_pgdata(),
        }
    }

    fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|(candidate, _)| *candidate == name).map(|(_, volume)| volume)
    }

    fn can_hold_data(&self, mount: &Mount<'_>) -> bool {
        self.volume(mount.volume).is_some_and(|volume| !matches!(volume.kind, Kind::Projection(_)))
    }

    /// The mount that holds `directory`: the nearest one at or above it.
    fn above(&self, directory: &str) -> Option<&Mount<'a>> {
        let candidates =
            self.mounts.iter().filter(|mount| self.can_hold_data(mount) && contains_path(mount.path, directory));
        candidates.max_by_key(|mount| mount.path.len())
    }

    /// The mount at PGDATA, or at one of the directories that images keep their data in.
    fn usual(&self) -> Option<&Mount<'a>> {
        if let (PgdataSource::Path(pgdata), Contract::Agent) = (self.pgdata, self.contract) {
            return self.above(pgdata);
        }
        let usual = self.usual_directory();
        let known = [
            usual.as_str(),
            "/var/lib/postgresql",
            "/var/lib/postgresql/data",
            "/var/lib/pgsql/data",
            "/bitnami/postgresql",
            "/pgdata",
        ];
        let below = |directory: &&str| {
            self.mounts.iter().find(|mount| self.can_hold_data(mount) && contains_path(directory, mount.path))
        };
        known.iter().find_map(|directory| self.above(directory)).or_else(|| known.iter().find_map(below))
    }

    /// The mount of the volume that the annotation names.
    fn named(&self, volume: &str) -> Result<&Mount<'a>, Error> {
        let mounts: Vec<_> = self.mounts.iter().filter(|mount| mount.volume == volume).collect();
        if let Some(Volume { kind: Kind::Projection(kind), .. }) = self.volume(volume) {
            return Err(Error::NotForData { volume: named(volume), kind: (*kind).to_owned() });
        }
        let at_pgdata = self.usual().and_then(|usual| mounts.iter().find(|mount| mount.path == usual.path)).copied();
        at_pgdata.or_else(|| mounts.first().copied()).ok_or_else(|| {
            let mounted = listed(self.mounts.iter().map(|mount| mount.volume));
            Error::NotMounted {
                volume: named(volume),
                container: named(self.container.name),
                mounted: if mounted.is_empty() { "none".to_owned() } else { mounted },
            }
        })
    }

    /// Why no mount holds the data: what there is, is told first.
    fn nothing(&self) -> Error {
        let container = named(self.container.name);
        if let Some(mount) = self.mounts.iter().find(|mount| self.volume(mount.volume).is_none()) {
            return Error::Undeclared { container, volume: named(mount.volume), mount_path: named(mount.path) };
        }
        let is_kept = |volume: &Volume| matches!(volume.kind, Kind::PerMember | Kind::Shared);
        let kept = self.elsewhere(is_kept);
        let is_mounted = |name: &str| self.mounts.iter().any(|mount| mount.volume == name);
        let mut unused = self.volumes.iter().filter(|(name, volume)| is_kept(volume) && !is_mounted(name));
        let unused = unused.next().filter(|_| kept.is_none());
        let usual_mount = self.container.family.usual_mount();
        match (kept.or_else(|| self.elsewhere(|_| true)), self.pgdata, unused) {
            (_, pgdata, Some((volume, _))) => {
                let place = if let PgdataSource::Path(pgdata) = pgdata { pgdata } else { usual_mount };
                Error::NeverMounted { container, volume: named(volume), place: named(place) }
            }
            (Some(mount), PgdataSource::Path(pgdata), None) => {
                Error::PgdataElsewhere { container, pgdata: named(pgdata), mount_path: named(mount.path) }
            }
            (Some(mount), _, None) => {
                let (mount_path, usual) = (named(mount.path.trim_end_matches('/')), self.usual_directory());
                let is_unsure = known::arguments(self.container.image).is_none()
                    || !matches!(self.pgdata, PgdataSource::Nothing)
                    || self.container.has_unseen_environment().unwrap_or_default();
                Error::DataElsewhere {
                    container,
                    volume: named(mount.volume),
                    mount_path,
                    usual,
                    usual_mount,
                    is_unsure,
                }
            }
            (None, _, None) => Error::NoData { container, place: self.place(), usual: usual_mount.to_owned() },
        }
    }

    /// Where a mount was looked for.
    fn place(&self) -> String {
        match self.pgdata {
            PgdataSource::Path(pgdata) => format!("at and above PGDATA, {}", named(pgdata)),
            _ => format!("at and above {} and the other usual places", self.usual_directory()),
        }
    }

    /// A mount that may have been meant for the data, of a volume of some kind.
    fn elsewhere(&self, is_meant: impl Fn(&Volume) -> bool) -> Option<&Mount<'a>> {
        self.mounts.iter().find(|mount| {
            let is_for_data = self.can_hold_data(mount) && !NEVER_DATA.iter().any(|it| contains_path(it, mount.path));
            is_for_data && self.volume(mount.volume).is_some_and(&is_meant)
        })
    }

    /// `pgset.dev/claim`: nothing else may hold the data.
    fn claim(&self, claim: &str, volume: Option<&str>) -> Result<Placement, Error> {
        let own = volume.and_then(|volume| self.mounts.iter().find(|mount| mount.volume == volume));
        let at = self.mounts.iter().find(|mount| contains_path(mount.path, pod::DATA_PATH) && mount.path != "/");
        if let Some(mount) = own.or_else(|| self.usual()).or(at) {
            return Err(Error::ClaimAndVolume {
                claim: claim.to_owned(),
                volume: named(mount.volume),
                mount_path: named(mount.path),
            });
        }
        Ok(Placement {
            data: DataSource::Claim { claim: claim.to_owned() },
            sub_path_owner: SubPathOwner::Ours,
            pgdata: self.pgdata_on(pod::DATA_PATH, &SubPathOwner::Ours)?,
            source: json!({ "persistentVolumeClaim": { "claimName": claim } }),
            temporary: None,
            hidden: Hidden::No,
        })
    }

    fn placed(&self, mount: &Mount<'a>) -> Result<Placement, Error> {
        let volume = self.volume(mount.volume).cloned();
        // A mount without a volume is refused by the API server itself.
        let Volume { kind, source } = volume.unwrap_or(Volume { kind: Kind::PerMember, source: Value::Null });
        let shared = kind == Kind::Shared && self.contract == Contract::Agent;
        let sub_path_owner = if shared { self.sub_path_owner(mount)? } else { SubPathOwner::None };
        let (volume, mount_path) = (mount.volume.to_owned(), mount.path.to_owned());
        Ok(Placement {
            data: if shared {
                DataSource::Shared { volume, mount_path }
            } else {
                DataSource::Own { volume, mount_path }
            },
            pgdata: self.pgdata_on(mount.path, &sub_path_owner)?,
            sub_path_owner,
            source,
            temporary: if let Kind::PerPod(kind) = kind { Some(kind) } else { None },
            hidden: self.hidden(mount.path),
        })
    }

    /// How the members' directories on a shared volume are parted.
    fn sub_path_owner(&self, mount: &Mount<'_>) -> Result<SubPathOwner, Error> {
        let (container, volume) = (named(self.container.name), named(mount.volume));
        let mount_path = named(mount.path);
        match (mount.sub_path, mount.sub_path_expr) {
            (_, None) if self.is_in_place(mount) => {
                let member = self.settled.in_place.as_deref().unwrap_or(self.first_member).to_owned();
                Ok(SubPathOwner::InPlace { member })
            }
            (None, None) => Ok(SubPathOwner::Ours),
            (Some(sub_path), _) => {
                let sub_path = named(sub_path.trim_matches('/'));
                Err(Error::FixedSubPath { container, volume, mount_path, sub_path })
            }
            (None, Some(expression)) => {
                let mut tells_apart = expression.contains(&format!("$({})", env::POD_NAME));
                // No path is longer, and a search for each of many variables in a long text would take its time.
                let sought = if expression.len() > LONGEST_PATH { &[] } else { self.container.environment()? };
                for variable in sought {
                    let per_member = variable.field_path.is_some_and(|path| PER_MEMBER.contains(&path));
                    tells_apart |= per_member && expression.contains(&format!("$({})", variable.name));
                }
                if tells_apart {
                    return Ok(SubPathOwner::Users);
                }
                Err(Error::SharedSubPath { container, volume, mount_path, expression: named(expression) })
            }
        }
    }

    /// Whether the set has its data on this mount without pgset as well: then it stays there, so that annotating, leaving, and making
    /// the set anew from its file all find it.
    fn is_in_place(&self, mount: &Mount<'_>) -> bool {
        if self.settled.shape < Shape::Recorded || self.settled.is_parted {
            return false;
        }
        let has_data = match self.pgdata {
            // A directory elsewhere is refused in a moment.
            PgdataSource::Path(_) | PgdataSource::Elsewhere => true,
            PgdataSource::Nothing => contains_path(mount.path, &self.usual_directory()),
        };
        has_data || self.settled.in_place.is_some()
    }

    /// Who sets PGDATA for data on this mount.
    fn pgdata_on(&self, mount_path: &str, sub_path_owner: &SubPathOwner) -> Result<Pgdata, Error> {
        let usual = self.usual_directory();
        if self.contract == Contract::Image {
            return Ok(Pgdata::Images(usual));
        }
        let mount_path = mount_path.trim_end_matches('/');
        match self.pgdata {
            PgdataSource::Elsewhere => Ok(Pgdata::Users(None)),
            PgdataSource::Path(pgdata) if !contains_path(mount_path, pgdata) => Err(Error::PgdataElsewhere {
                container: named(self.container.name),
                pgdata: named(pgdata),
                mount_path: named(mount_path),
            }),
            PgdataSource::Path(pgdata)
                if self.settled.shape >= Shape::Recorded && self.hidden(mount_path) == Hidden::Surely =>
            {
                Err(Error::PgdataHidden {
                    container: named(self.container.name),
                    pgdata: named(pgdata),
                    mount_path: named(mount_path),
                    other: named(&format!("{mount_path}/{}", pod::UNHIDDEN_DIRECTORY)),
                })
            }
            PgdataSource::Path(pgdata) => Ok(Pgdata::Users(Some(pgdata.to_owned()))),
            PgdataSource::Nothing => self.pgdata_by_pgset(mount_path, sub_path_owner, usual),
        }
    }

    /// The same where the user wrote none.
    fn pgdata_by_pgset(&self, mount_path: &str, sub_path_owner: &SubPathOwner, usual: String) -> Result<Pgdata, Error> {
        let ours = || Ok(Pgdata::Ours(format!("{mount_path}/{}", pod::DATA_DIRECTORY)));
        if self.settled.shape >= Shape::Recorded {
            // What it was once it stays, whatever the image is called by now.
            if let Some(pgdata) = self.settled.pgdata.as_deref().filter(|pgdata| contains_path(mount_path, pgdata)) {
                return Ok(Pgdata::Ours(pgdata.to_owned()));
            }
            if let Some(pgdata) = self.pgdata_of_official(mount_path).filter(|_| *sub_path_owner != SubPathOwner::Ours)
            {
                return Ok(pgdata);
            }
        }
        // The kubelet makes a sub-path's directory as root, with mode 0777: PostgreSQL wants one of its own below.
        if mount_path == usual && *sub_path_owner == SubPathOwner::Ours {
            return ours();
        }
        if contains_path(mount_path, &usual) {
            // Red Hat's is not in the image's environment: its script sets it.
            let is_scripts = matches!(self.container.family, Family::RedHat(_));
            return Ok(if is_scripts { Pgdata::Ours(usual) } else { Pgdata::Images(usual) });
        }
        if *sub_path_owner != SubPathOwner::Ours && self.container.has_unseen_environment()? {
            return Err(Error::PgdataUnseen {
                container: named(self.container.name),
                mount_path: named(mount_path),
                usual,
            });
        }
        ours()
    }

    /// PGDATA on a mount at or above the official image's usual directories, where the image's own would be wrong or can't be told.
    fn pgdata_of_official(&self, mount_path: &str) -> Option<Pgdata> {
        let Family::Official(major) = self.container.family else { return None };
        let unhidden = || format!("{mount_path}/{}", pod::UNHIDDEN_DIRECTORY);
        match major {
            // As every version below 18 has it; and from 18 on it is on the mount as well.
            None if mount_path == BEFORE_18 => Some(Pgdata::Fallback(BEFORE_18.to_owned())),
            Some(18..) if mount_path == BEFORE_18 => Some(Pgdata::Ours(BEFORE_18.to_owned())),
            None if contains_path(mount_path, BEFORE_18) => Some(Pgdata::Fallback(unhidden())),
            Some(_) if self.hidden(mount_path) != Hidden::No => Some(Pgdata::Ours(unhidden())),
            _ => None,
        }
    }

    /// Whether a volume that the image declares hides a mount from where PGDATA is, by the user or by the image.
    fn hidden(&self, mount_path: &str) -> Hidden {
        let (Family::Official(major), Contract::Agent) = (self.container.family, self.contract) else {
            return Hidden::No;
        };
        let mount_path = mount_path.trim_end_matches('/');
        let usual = self.usual_directory();
        let pgdata = match self.pgdata {
            PgdataSource::Path(pgdata) => pgdata,
            PgdataSource::Nothing => &usual,
            PgdataSource::Elsewhere => return Hidden::No,
        };
        let declared = if major.is_some_and(|major| major >= 18) { FROM_18 } else { BEFORE_18 };
        let is_between =
            contains_path(mount_path, declared) && mount_path != declared && contains_path(declared, pgdata);
        // Who writes PGDATA for an image of his own knows what it declares.
        let is_known = self.container.is_official || matches!(self.pgdata, PgdataSource::Nothing);
        match major {
            _ if !is_between || !is_known => Hidden::No,
            Some(_) => Hidden::Surely,
            None => Hidden::Perhaps,
        }
    }
}

/// Where the official image declares a volume: before 18 it is PGDATA itself.
pub(crate) const BEFORE_18: &str = "/var/lib/postgresql/data";
/// The same from 18 on, with a directory below it for each major version.
const FROM_18: &str = "/var/lib/postgresql";

/// Where volumes are mounted for other things than data.
const NEVER_DATA: [&str; 9] =
    ["/docker-entrypoint-initdb.d", "/dev/shm", "/tmp", "/run", "/var/run", "/var/log", "/etc", "/scripts", "/backup"];

/// Linux' `PATH_MAX`.
const LONGEST_PATH: usize = 4096;

/// Fields of a pod that differ between the members of a set and stay the same when a pod is made anew.
const PER_MEMBER: [&str; 3] = [
    "metadata.name",
    "metadata.labels['statefulset.kubernetes.io/pod-name']",
    "metadata.labels['apps.kubernetes.io/pod-index']",
];

/// Whether `directory` is `mount` or lies below it. The root holds nothing: a mount there can't be meant.
pub(crate) fn contains_path(mount: &str, directory: &str) -> bool {
    let mount = mount.trim_end_matches('/');
    let rest = directory.strip_prefix(mount);
    !mount.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_holds_what_is_at_or_below_it() {
        assert!(contains_path("/pgdata", "/pgdata"));
        assert!(contains_path("/pgdata/", "/pgdata/data"));
        assert!(!contains_path("/pgdata", "/pgdata2"));
        assert!(!contains_path("/pgdata/data", "/pgdata"));
        assert!(!contains_path("/", "/pgdata"));
        assert!(!contains_path("", "/pgdata"));
    }
}
