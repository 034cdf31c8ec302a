//! A disk that is full: what is acknowledged stays, the rest is refused, and there is work again when there is room.

use std::{fs, path::Path, process::Command, time::Duration};

use cogo_bus_core::Completion;
use cogo_db::PoolSettings;
use cogo_pg_local::{Cluster, Settings, StopMode};

use crate::support::{Stage, claim, message, plain};

const DATABASE: &str = "cogo";
const LEASE: Duration = Duration::from_secs(60);
/// A new cluster with all migrations takes about half of it.
const DISK: &str = "size=150m,mode=0755";

/// Set to 1 where this user may not mount.
const NO_MOUNT: &str = "COGO_NO_MOUNT";

#[expect(clippy::disallowed_methods, reason = "a test has no settings, and only its caller knows the machine")]
fn has_no_mount() -> bool {
    std::env::var(NO_MOUNT).is_ok_and(|value| value == "1")
}

/// A small disk in memory; unmounted when dropped.
struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    /// None where somebody has said that one may not mount.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let told = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(directory.path()).output();
        if told.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self { directory });
        }
        // a check that passes by itself where it cannot be made is missed by nobody
        assert!(has_no_mount(), "a small disk cannot be mounted, say so by {NO_MOUNT}=1: {told:?}");
        None
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.directory.path().join("ballast")
    }

    /// Leaves this much room.
    fn fill(&self, leave: u64) {
        let path = self.directory.path();
        let free = || {
            let stat = rustix::fs::statvfs(path).unwrap();
            stat.f_bavail * stat.f_frsize
        };
        let mut ballast = fs::File::create(self.ballast()).unwrap();
        while free() > leave {
            let chunk = usize::try_from((free() - leave).min(1 << 20)).unwrap();
            if std::io::Write::write_all(&mut ballast, &vec![1; chunk]).is_err() {
                return;
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.directory.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

async fn cluster_on(directory: &Path) -> Cluster {
    let mut settings = Settings::new(directory.join("cluster"));
    settings.extra = [
        ("max_connections", "40"),
        ("shared_buffers", "16MB"),
        ("min_wal_size", "32MB"),
        ("max_wal_size", "64MB"),
        ("wal_recycle", "off"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let cluster = Cluster::start(&settings).await.unwrap();
    cluster.create_database_if_missing(DATABASE).await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_loses_nothing_that_was_acknowledged() {
    let Some(disk) = Disk::mount() else {
        println!("not checked: a small disk cannot be mounted by this user");
        return;
    };
    let cluster = cluster_on(disk.directory.path()).await;
    let url = cluster.url(DATABASE);
    let pool = cogo_db::connect(&PoolSettings::new(&url, "disk")).unwrap();
    cogo_db::migrate(&pool).await.unwrap();
    let mut stage = Stage::on(pool.clone(), url);
    let bus = stage.local("w");
    bus.enqueue_many(&plain(20)).await.unwrap();
    let claimed = claim(&bus, "w", 10, LEASE).await;

    disk.fill(1 << 20);
    let mut chance = cogo_bus_check::Chance::new(crate::support::seed());
    let mut refused = 0;
    let mut completed = 0;
    for round in 0..400_usize {
        let noise: String = (0..4_000).map(|_| format!("{:016x}", chance.number())).collect();
        let large = vec![message(serde_json::json!({"act": "plain", "noise": noise})); 4];
        refused += usize::from(bus.enqueue_many(&large).await.is_err());
        if let Some(message) = claimed.get(round / 4) {
            completed += usize::from(bus.complete(&message.fence(), "w", &Completion::default()).await.is_ok());
        }
        if refused > 5 {
            break;
        }
    }
    assert!(refused > 5, "the disk was never full, {completed} completed");

    fs::remove_file(disk.ballast()).unwrap();
    // a server that could not write its log has ended itself
    cluster.ensure_running().await.unwrap();
    while sqlx::query("select 1").execute(&pool).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bus.enqueue_many(&plain(5)).await.unwrap();
    let fences: Vec<_> = claimed.iter().map(cogo_bus_core::Claimed::fence).collect();
    bus.release(&fences, "w").await.unwrap();
    stage.workers(2).await;
    stage.keepers(1).await;
    stage.holds().await;
    cluster.stop(StopMode::Immediate).await.unwrap();
}
