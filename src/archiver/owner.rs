//! Whose a prefix is: the first set's that writes there, and encrypted from the first day on that it has a key.

use tracing::info;

use super::encryption::Identity;
use super::store::{self, Created, Store};
use crate::backup::assignment::Assignment;
use crate::backup::index::{FORMAT, Owner};
use crate::backup::layout::OWNER;
use crate::election::SystemIdentifier;
use crate::errors::with_causes;
use crate::names::store::AGE_IDENTITY;

/// Takes a prefix that is nobody's, and refuses one that is somebody else's, or whose key is missing.
pub(super) async fn take(store: &Store, assignment: &Assignment, system: SystemIdentifier) -> Result<(), String> {
    let told = |error: store::Error| with_causes(&error);
    let recipient = store.identities().first().map(Identity::recipient);
    let (namespace, set) = (assignment.namespace.clone(), assignment.set.clone());
    let me = Owner { format: FORMAT, namespace, set, system, recipient };
    let content = serde_json::to_vec_pretty(&me).map_err(|error| error.to_string())?;
    let found = if let Some(found) = store.get(OWNER).await.map_err(told)? {
        found
    } else {
        if store.create(OWNER, content.clone()).await.map_err(told)? == Created::Yes {
            info!("this prefix is the set's from now on");
            return Ok(());
        }
        store.get(OWNER).await.map_err(told)?.unwrap_or_default()
    };
    let owner = serde_json::from_slice::<Owner>(&found).map_err(|error| {
        format!("{OWNER} in the store can't be read ({error}): give this set a prefix of its own (pgset.dev/backup)")
    })?;
    if owner == me {
        return Ok(());
    }
    if (Owner { recipient: me.recipient.clone(), ..owner.clone() }) != me {
        let Owner { namespace, set, system, .. } = owner;
        return Err(format!(
            "the prefix belongs to the database {system} of the set {namespace}/{set} (its {OWNER} says so): give this set one of its own (pgset.dev/backup)"
        ));
    }
    // A key that got lost must not make what is written from now on readable for everybody.
    if let (Some(recipient), None) = (owner.recipient, me.recipient) {
        return Err(format!(
            "what is there is encrypted for {recipient}, and the Secret for backups has no key ({AGE_IDENTITY}): put the key in, or give the set \
             another prefix (pgset.dev/backup)"
        ));
    }
    info!("what is written from now on is encrypted for another key");
    store.put(OWNER, content).await.map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archiver::{assignment, encryption};

    #[tokio::test]
    async fn a_prefix_is_of_the_first_set_that_writes_there() {
        let store = Store::in_memory();
        let mine = assignment::tests::assignment(Some("s3://bucket/db"));
        take(&store, &mine, SystemIdentifier(1)).await.unwrap();
        take(&store, &mine, SystemIdentifier(1)).await.unwrap();
        let why = take(&store, &mine, SystemIdentifier(2)).await.unwrap_err();
        assert!(why.contains("shop/db"), "a database made anew is another one: {why}");
        let other = Assignment { set: "other".into(), ..mine };
        assert!(take(&store, &other, SystemIdentifier(1)).await.is_err());
    }

    #[tokio::test]
    async fn what_was_encrypted_once_is_not_written_in_the_clear_because_the_key_is_gone() {
        let plain = Store::in_memory();
        let mine = assignment::tests::assignment(Some("s3://bucket/db"));
        take(&plain, &mine, SystemIdentifier(1)).await.unwrap();
        for identities in [encryption::tests::identities(), encryption::tests::rotated()] {
            let store = plain.with_identities(identities);
            take(&store, &mine, SystemIdentifier(1)).await.unwrap();
            take(&store, &mine, SystemIdentifier(1)).await.unwrap();
        }
        let why = take(&plain, &mine, SystemIdentifier(1)).await.unwrap_err();
        assert!(why.contains("AGE_IDENTITY") && why.contains("age1"), "{why}");
    }
}
