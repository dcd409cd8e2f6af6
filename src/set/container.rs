//! The PostgreSQL container of a template.

use std::cell::OnceCell;

use super::{
    Error,
    error::{listed, named},
    image::{Family, is_official},
    json::Field,
};
use crate::names::pod;

/// The PostgreSQL container.
#[derive(Clone, Debug)]
pub(crate) struct Container<'a> {
    /// Its place in `spec.template.spec.containers`.
    pub(crate) index: usize,
    /// Its name.
    pub(crate) name: &'a str,
    /// The image's family.
    pub(crate) family: Family,
    /// Whether it is Docker's official image itself, by its name.
    pub(crate) is_official: bool,
    /// The container itself.
    pub(crate) field: Field<'a>,
    /// What [`Self::environment`] found: it is asked for many times, and may be long.
    environment: OnceCell<Vec<Variable<'a>>>,
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
    /// The container that the annotation names; else the only one; else the one named `postgres`, or as the set.
    pub(crate) fn choose(object: &Field<'a>, annotation: Option<&str>, set: &str) -> Result<Self, Error> {
        let mut containers = Vec::new();
        for (index, field) in object.at(&["spec", "template", "spec", "containers"])?.items()?.into_iter().enumerate() {
            let name = field.get("name")?.text()?.unwrap_or_default();
            let image = field.get("image")?.text()?.unwrap_or_default();
            let (family, is_official) = (Family::of(image), is_official(image));
            containers.push(Self { index, name, family, is_official, field, environment: OnceCell::new() });
        }
        let names = || listed(containers.iter().map(|it| it.name));
        let find = |name: &str| containers.iter().find(|it| it.name == name).cloned();
        let chosen = match (annotation, containers.as_slice()) {
            (_, []) => Err(Error::NoContainer),
            (Some(name), _) => find(name).ok_or_else(|| Error::NoSuchContainer { value: named(name), names: names() }),
            (None, [only]) => Ok(only.clone()),
            (None, _) => find("postgres").or_else(|| find(set)).ok_or_else(|| Error::WhichContainer { names: names() }),
        }?;
        // The record of the injection knows it by its name.
        let is_alone = containers.iter().filter(|it| it.name == chosen.name).count() == 1;
        if is_alone && !chosen.name.is_empty() { Ok(chosen) } else { Err(Error::ContainerNames { names: names() }) }
    }

    /// The port that PostgreSQL listens on.
    pub(crate) fn port(&self) -> Result<u16, Error> {
        let mut ports = Vec::new();
        for port in self.field.get("ports")?.items()? {
            let number = port.get("containerPort")?.number(1, 65535)?.and_then(|number| u16::try_from(number).ok());
            ports.push((port.get("name")?.text()?.unwrap_or_default(), number.unwrap_or(pod::POSTGRES_PORT)));
        }
        let by_name = |name: &str| ports.iter().find(|(candidate, _)| *candidate == name);
        let chosen = ["postgres", "postgresql", "pg", "db"].into_iter().find_map(by_name);
        Ok(match (chosen, ports.as_slice()) {
            (Some((_, port)), _) | (None, [(_, port)]) => *port,
            _ => pod::POSTGRES_PORT,
        })
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
