//! A commit that waits for replicas.

use crate::{lab, manifests::set};

#[test]
fn as_many_replicas_confirm_a_commit_as_the_annotation_says() {
    let lab = lab::shared();
    let ns = lab.namespace("synchronous");
    let db = ns.two_members(&set("pgset").annotation("pgset.dev/synchronous", "1"));
    db.wait_for("pgset-master", "select application_name, sync_state from pg_stat_replication", "pgset-1|quorum");
    db.master("create table visits as select 'confirmed' as what");
    db.wait_for("pgset-replica", "select what from visits", "confirmed");
}
