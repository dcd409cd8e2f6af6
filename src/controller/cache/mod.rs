//! What the controller keeps of the cluster: of ten thousand sets there are a hundred thousand objects and more.
//!
//! The plain way, typed objects in reflector stores with nothing in them but what is read, takes 35 kB a set with its two pods: 350 MB
//! with ten thousand. So what stands beside the sets is kept as JSON text without the names, which sets share: 2.4 kB instead of 33
//! (5.8 kB without sharing). The sets themselves are kept plainly, parsed, at 2 kB each.

pub mod index;
pub mod interner;
pub mod labels;
pub mod object;
pub mod pod;
pub mod set;
