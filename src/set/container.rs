//! The PostgreSQL container of a template.

use std::cell::OnceCell;

use super::{
    Contract, Error,
    annotations::Annotations,
    arguments::{ServerArguments, number, settings},
    entries,
    error::{listed, named},
    image::{Family, is_official},
    json::Field,
    known,
    shape::{Settled, Shape},
};
use crate::names::{env::PGPORT, pod::POSTGRES_PORT};

/// The PostgreSQL container.
#[derive(Clone, Debug)]
pub(crate) struct Container<'a> {
    /// Its place in `spec.template.spec.containers`.
    pub(crate) index: usize,
    /// Its name.
    pub(crate) name: &'a str,
    /// Its image.
    pub(crate) image: &'a str,
    /// The image's family.
    pub(crate) family: Family,
    /// Whether it is Docker's official image itself, by its name.
    pub(crate) is_official: bool,
    /// The container itself.
    pub(crate) field: Field<'a>,
    /// What [`Self::environment`] found: it is asked for many times, and may be long.
    environment: OnceCell<Vec<Variable<'a>>>,
}

/// What speaks for a container to be PostgreSQL's, the surest first.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// Its image is PostgreSQL's, and it starts what the image is for.
    Server,
    /// Its image is PostgreSQL's.
    Image,
    /// It has PostgreSQL's port, or a name that people give it.
    PortOrName,
    /// It is called as the set, which may as well be the application's name.
    SetsName,
}

impl Sign {
    const ALL: [Self; 4] = [Self::Server, Self::Image, Self::PortOrName, Self::SetsName];

    /// What is said where several show it.
    fn of_several(self) -> &'static str {
        match self {
            Self::Server | Self::Image => "they have images of PostgreSQL",
            Self::PortOrName => "they have PostgreSQL's port or a usual name of it",
            Self::SetsName => "they are called as the set",
        }
    }
}

/// One entry of the container's environment.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Its value, where it is written in the template and refers to no other variable.
    pub(crate) literal: Option<&'a str>,
    /// The field of the pod that it comes from.
    pub(crate) field_path: Option<&'a str>,
}

/// One mount of the container.
#[derive(Clone, Debug)]
pub(crate) struct Mount<'a> {
    /// The volume.
    pub(crate) volume: &'a str,
    /// Where it is mounted.
    pub(crate) path: &'a str,
    /// A fixed directory of the volume.
    pub(crate) sub_path: Option<&'a str>,
    /// A directory of the volume that environment variables name.
    pub(crate) sub_path_expr: Option<&'a str>,
}

impl<'a> Variable<'a> {
    fn of(field: &Field<'a>) -> Result<Self, Error> {
        let source = field.get("valueFrom")?;
        let (literal, field_path) = if source.is_there() {
            (None, source.at(&["fieldRef", "fieldPath"])?.text()?)
        } else {
            // A variable without a value is empty; one that names others has a value that only the kubelet knows.
            (Some(field.get("value")?.text()?.unwrap_or_default()).filter(|value| !value.contains("$(")), None)
        };
        Ok(Self { name: field.get("name")?.text()?.unwrap_or_default(), literal, field_path })
    }
}

impl<'a> Container<'a> {
    /// The PostgreSQL container of a set, and who implements `PG_MODE=set` in it.
    pub(crate) fn of_set(
        object: &Field<'a>,
        annotations: Annotations<'_>,
        settled: &Settled,
        set: &str,
    ) -> Result<(Self, Contract), Error> {
        let annotation = annotations.get(&entries::CONTAINER);
        let container = Self::choose(object, annotation.as_deref(), settled.container.as_deref(), set)?;
        let contract = annotations.get(&entries::CONTRACT).unwrap_or(container.usual_contract());
        Ok((container, contract))
    }

    /// The container that the annotation names; else the one that was injected; else the only one; else the one that is PostgreSQL's by
    /// its image, then by its port or name, and then by the set's name.
    fn choose(object: &Field<'a>, annotation: Option<&str>, injected: Option<&str>, set: &str) -> Result<Self, Error> {
        let mut containers = Vec::new();
        for (index, field) in object.at(&["spec", "template", "spec", "containers"])?.items()?.into_iter().enumerate() {
            let name = field.get("name")?.text()?.unwrap_or_default();
            let image = field.get("image")?.text()?.unwrap_or_default();
            let (family, is_official) = (Family::of(image), is_official(image));
            containers.push(Self { index, name, image, family, is_official, field, environment: OnceCell::new() });
        }
        let names = || listed(containers.iter().map(|it| it.name));
        let find = |name: &str| containers.iter().find(|it| it.name == name);
        let chosen = match (annotation, containers.as_slice()) {
            (_, []) => Err(Error::NoContainer),
            (Some(name), _) => find(name).ok_or_else(|| Error::NoSuchContainer { value: named(name), names: names() }),
            (None, [only]) => Ok(only),
            (None, all) => injected.and_then(find).map_or_else(|| Self::most_likely(all, set), Ok),
        }?;
        // The record of the injection knows it by its name.
        let is_alone = containers.iter().filter(|it| it.name == chosen.name).count() == 1;
        if is_alone && !chosen.name.is_empty() {
            Ok(chosen.clone())
        } else {
            Err(Error::ContainerNames { names: names() })
        }
    }

    /// Of several, the one that the signs single out, the surest sign first.
    fn most_likely<'c>(containers: &'c [Self], set: &str) -> Result<&'c Self, Error> {
        let mut candidates: Vec<&Self> = containers.iter().collect();
        let mut why = "none of them is it by its image, its port or its name";
        for sign in Sign::ALL {
            let mut found = Vec::new();
            for candidate in &candidates {
                if candidate.shows(sign, set)? {
                    found.push(*candidate);
                }
            }
            match found.as_slice() {
                [] => {}
                [only] => return Ok(only),
                _ => (why, candidates) = (sign.of_several(), found),
            }
        }
        Err(Error::WhichContainer { names: listed(candidates.iter().map(|it| it.name)), why })
    }

    /// Who implements `PG_MODE=set` where no annotation says so.
    fn usual_contract(&self) -> Contract {
        match self.family {
            Family::Crunchy => Contract::Image,
            Family::Official(_) | Family::RedHat(_) | Family::TimescaleHa(_) => Contract::Agent,
        }
    }

    fn shows(&self, sign: Sign, set: &str) -> Result<bool, Error> {
        const NAMES: [&str; 6] = ["postgres", "postgresql", "pgsql", "db", "database", "pg"];
        Ok(match sign {
            Sign::Server => known::is_postgresql(self.image) && self.starts_server()?,
            Sign::Image => known::is_postgresql(self.image),
            Sign::PortOrName => {
                self.ports()?.iter().any(|(_, port)| *port == POSTGRES_PORT) || NAMES.contains(&self.name)
            }
            Sign::SetsName => self.name == set,
        })
    }

    /// Whether its command is PostgreSQL's: a job beside the server may have the server's image.
    fn starts_server(&self) -> Result<bool, Error> {
        Ok(matches!(self.server_arguments()?, ServerArguments::Of(_)))
    }

    /// What its command and arguments start.
    pub(crate) fn server_arguments(&self) -> Result<ServerArguments<'a>, Error> {
        Ok(ServerArguments::of(&self.command()?, &self.arguments()?))
    }

    /// The ports that the container names, with their names.
    fn ports(&self) -> Result<Vec<(&'a str, u16)>, Error> {
        let mut ports = Vec::new();
        for port in self.field.get("ports")?.items()? {
            let number = port.get("containerPort")?.number(1, 65535)?.and_then(|number| u16::try_from(number).ok());
            ports.push((port.get("name")?.text()?.unwrap_or_default(), number.unwrap_or(POSTGRES_PORT)));
        }
        Ok(ports)
    }

    /// The port that PostgreSQL listens on.
    pub(crate) fn port(&self, shape: Shape) -> Result<u16, Error> {
        let ports = self.ports()?;
        let by_name = |name: &str| ports.iter().find(|(candidate, _)| *candidate == name);
        let chosen = ["postgres", "postgresql", "pg", "db"].into_iter().find_map(by_name);
        let declared = match (chosen, ports.as_slice()) {
            (Some((_, port)), _) | (None, [(_, port)]) => Some(*port),
            _ => None,
        };
        let told = if shape >= Shape::Recorded { self.told_port()? } else { None };
        let is_free = |told: &u16| declared.is_none() || ports.iter().any(|(_, port)| port == told);
        Ok(told.filter(is_free).or(declared).unwrap_or(POSTGRES_PORT))
    }

    /// The port that PostgreSQL is told by its arguments, or else by `PGPORT`.
    pub(crate) fn told_port(&self) -> Result<Option<u16>, Error> {
        let ServerArguments::Of(arguments) = self.server_arguments()? else { return Ok(None) };
        let by_arguments = settings(&arguments).into_iter().rev().find(|(key, _)| key == "port");
        let by_variable = || Ok(self.variable(PGPORT)?.and_then(|variable| variable.literal).and_then(number));
        by_arguments.map_or_else(by_variable, |(_, value)| Ok(number(&value)))
    }

    /// The environment that the template writes.
    pub(crate) fn environment(&self) -> Result<&[Variable<'a>], Error> {
        if let Some(known) = self.environment.get() {
            return Ok(known);
        }
        let found: Vec<_> = self.field.get("env")?.items()?.iter().map(Variable::of).collect::<Result<_, Error>>()?;
        Ok(self.environment.get_or_init(|| found))
    }

    /// A variable of the environment: of several with one name, the last counts, as for the kubelet.
    pub(crate) fn variable(&self, name: &str) -> Result<Option<&Variable<'a>>, Error> {
        Ok(self.environment()?.iter().rev().find(|variable| variable.name == name))
    }

    /// Whether more variables come from a `ConfigMap` or Secret, so that their names can't be seen here.
    pub(crate) fn has_unseen_environment(&self) -> Result<bool, Error> {
        Ok(!self.field.get("envFrom")?.items()?.is_empty())
    }

    /// What the container mounts.
    pub(crate) fn mounts(&self) -> Result<Vec<Mount<'a>>, Error> {
        let mount = |field: Field<'a>| {
            Ok(Mount {
                volume: field.get("name")?.text()?.unwrap_or_default(),
                path: field.get("mountPath")?.text()?.unwrap_or_default(),
                sub_path: field.get("subPath")?.text()?,
                sub_path_expr: field.get("subPathExpr")?.text()?,
            })
        };
        self.field.get("volumeMounts")?.items()?.into_iter().map(mount).collect()
    }

    /// The command that replaces the image's entry point.
    pub(crate) fn command(&self) -> Result<Vec<&'a str>, Error> {
        self.field.get("command")?.texts()
    }

    /// The arguments after the entry point.
    pub(crate) fn arguments(&self) -> Result<Vec<&'a str>, Error> {
        self.field.get("args")?.texts()
    }
}
