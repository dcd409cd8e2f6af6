//! Tests of what is served when the replicas' clocks differ; no API server takes part.

use kube::client::Body;

use super::*;

const NOW: u64 = 1_800_000_000;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// A replica with a clock of its own.
struct Replica {
    upkeep: CertificateRotator,
    reports: watch::Receiver<Report>,
    ahead: u64,
}

impl Replica {
    fn new(ahead: u64) -> Self {
        let (service, _) = tower_test::mock::pair::<axum::http::Request<Body>, axum::http::Response<Body>>();
        let (report, reports) = watch::channel(Report::default());
        let settings = Settings::new("pgset-system", "pgset");
        let mut upkeep =
            CertificateRotator::new(Client::new(service, "default"), settings, Arc::new(Resolver::new()), report);
        upkeep.configuration = Seen::Absent;
        Self { upkeep, reports, ahead }
    }

    fn makes(&self, before: Option<(&Material, Due)>, now: u64) -> Material {
        let (names, now) = (&self.upkeep.settings.names, now + self.ahead);
        match before {
            None => Material::new(names, now).unwrap(),
            Some((before, due)) => before.renewed(due, names, now).unwrap(),
        }
    }

    /// Finds this in the Secret: what it then tells.
    fn finds(&mut self, material: &Material, now: u64) -> Report {
        let failed = self.upkeep.serve(material, now + self.ahead).err();
        self.upkeep.tell(failed);
        self.reports.borrow().clone()
    }

    fn serves(&self, material: &Material) -> bool {
        self.upkeep.resolver.served().is_some_and(|served| served.is(&material.certificate().unwrap()))
    }
}

#[tokio::test]
async fn replicas_whose_clocks_differ_by_minutes_serve_what_either_of_them_makes() {
    let (mut slow, mut fast) = (Replica::new(0), Replica::new(50 * MINUTE));
    let first = fast.makes(None, NOW);
    let leaf = fast.makes(Some((&first, Due::Leaf)), NOW);
    let authority = fast.makes(Some((&leaf, Due::Authority)), NOW);
    let by_the_slow = slow.makes(Some((&authority, Due::Leaf)), NOW);
    for made in [first, leaf, authority, by_the_slow] {
        for replica in [&mut slow, &mut fast] {
            assert_eq!(replica.finds(&made, NOW).failure, None);
            assert!(replica.serves(&made));
        }
    }
}

#[tokio::test]
async fn a_replica_keeps_its_certificate_until_the_new_one_is_valid_by_its_own_clock() {
    for due in [Due::Leaf, Due::Authority] {
        let (mut slow, fast) = (Replica::new(0), Replica::new(3 * HOUR));
        let first = slow.makes(None, NOW);
        slow.finds(&first, NOW);
        let new = fast.makes(Some((&first, due)), NOW);

        let told = slow.finds(&new, NOW).failure.unwrap();
        assert!(slow.serves(&first), "{due:?}");
        assert!(told.contains("not valid before 2027-01-15T10:00:00Z") && told.contains("clocks"), "{told}");
        assert_eq!(slow.finds(&new, NOW + HOUR).failure, Some(told), "and told once, not at every look");

        assert_eq!(slow.finds(&new, NOW + 2 * HOUR).failure, None);
        assert!(slow.serves(&new), "{due:?}");
    }
}

#[tokio::test]
async fn a_replica_that_has_no_other_serves_none_rather_than_one_that_is_not_valid_yet() {
    let (mut slow, fast) = (Replica::new(0), Replica::new(3 * HOUR));
    let made = fast.makes(None, NOW);
    assert!(slow.finds(&made, NOW).failure.is_some());
    assert!(!slow.serves(&made));
}
