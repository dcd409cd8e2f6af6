//! What happens to a whole node, with all that runs on it: `tests/lab/node` does it. Of a lab with one node nothing can be taken away.

use std::path::Path;

use crate::lab::{Namespace, kubectl, run};
use crate::node::{FIRST, nodes, tool};

/// A node that may be struck.
#[derive(Clone, Debug)]
pub struct Node(String);

/// What a node is cut off from. Nobody is told: what is sent is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// From everything, both ways.
    All,
    /// What it sends is dropped, and it hears.
    From,
    /// What is sent to it is dropped, and it is heard.
    To,
    ApiServer,
    /// From all other nodes and their pods, clients too.
    Others,
}

/// Undoes what was done to a node, at the latest when it is dropped: a test that fails leaves none struck.
#[must_use]
pub struct Undo {
    node: Node,
    command: Option<&'static str>,
    is_cordoned: bool,
}

/// How many may be struck.
pub fn strikable() -> usize {
    nodes().expect("kubectl get nodes").iter().filter(|node| *node != FIRST).count()
}

impl Node {
    /// The node of a pod, if that may be struck.
    pub fn of(ns: &Namespace<'_>, pod: &str) -> Result<Self, String> {
        let object = ns.try_get(&format!("pod {pod}"))?;
        match object["spec"]["nodeName"].as_str() {
            Some(FIRST) => Err(format!("{pod} is on the control plane's node")),
            Some(node) => Ok(Self(node.to_owned())),
            None => Err(format!("{pod} is on no node")),
        }
    }

    pub fn cut(&self, what: Cut) -> Result<Undo, String> {
        let what = match what {
            Cut::All => "all",
            Cut::From => "from",
            Cut::To => "to",
            Cut::ApiServer => "api-server",
            Cut::Others => "nodes",
        };
        command(&["cut", &self.0, what])?;
        Ok(self.undone_by("heal"))
    }

    /// All its processes stand still, as on a virtual machine that does.
    pub fn freeze(&self) -> Result<Undo, String> {
        command(&["freeze", &self.0])?;
        Ok(self.undone_by("thaw"))
    }

    /// As if its power failed. It is Ready again when this is undone.
    pub fn kill(&self) -> Result<Undo, String> {
        let undo = self.undone_by("start");
        command(&["kill", &self.0])?;
        Ok(undo)
    }

    fn undone_by(&self, command: &'static str) -> Undo {
        Undo { node: self.clone(), command: Some(command), is_cordoned: false }
    }
}

fn command(words: &[&str]) -> Result<(), String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/node");
    tool(&program.display().to_string(), words)
}

impl Undo {
    /// No pod starts there any more, until this is undone.
    pub fn cordon(&mut self) -> Result<(), String> {
        self.is_cordoned = true;
        self.kubectl("cordon")
    }

    pub fn now(mut self) -> Result<(), String> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), String> {
        let Some(word) = self.command.take() else { return Ok(()) };
        let undone = command(&[word, &self.node.0]);
        if self.is_cordoned {
            self.kubectl("uncordon")?;
        }
        undone
    }

    fn kubectl(&self, word: &str) -> Result<(), String> {
        run(kubectl().args([word, &self.node.0]), None).map(drop).map_err(|said| said.err)
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Err(why) = self.undo() {
            eprintln!("{}: {why}", self.node.0);
        }
    }
}
