//! Where a process runs and what it may use there, as far as the machine tells.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::available_parallelism,
};

use cogo_contracts::{Environment, Location};
use sysinfo::System;

/// Files that container engines put into a container.
const CONTAINER_FILES: [&str; 2] = [".dockerenv", "run/.containerenv"];
/// Variables that only exist inside a container or a function.
const CONTAINER_VARIABLES: [&str; 3] = ["KUBERNETES_SERVICE_HOST", "container", "ECS_CONTAINER_METADATA_URI_V4"];
/// Parts of a control group's path that name a container engine.
const CONTAINER_GROUPS: [&str; 6] = ["docker", "kubepods", "containerd", "libpod", "lxc", "garden"];
/// What the firmware of a cloud machine calls itself, in small letters.
const CLOUD_NAMES: [&str; 14] = [
    "amazon ec2",
    "google compute engine",
    "digitalocean",
    "hetzner",
    "openstack",
    "alibaba cloud",
    "oraclecloud",
    "scaleway",
    "vultr",
    "linode",
    "akamai",
    "ovhcloud",
    "upcloud",
    "exoscale",
];
/// Azure's asset tag; its vendor name is also that of every Hyper-V guest.
const AZURE_ASSET_TAG: &str = "7783-7084-3265-9085-8269-3286-77";
const FIRMWARE_FILES: [&str; 5] = ["sys_vendor", "product_name", "board_vendor", "bios_vendor", "chassis_asset_tag"];
/// Variables that tell the region, our own first.
const REGION_VARIABLES: [&str; 9] = [
    "AGENT_REGION",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "GOOGLE_CLOUD_REGION",
    "CLOUDSDK_COMPUTE_REGION",
    "REGION_NAME",
    "FLY_REGION",
    "RAILWAY_REPLICA_REGION",
    "VERCEL_REGION",
];
/// Longest region that is believed; the names in use have less than 30 characters.
const REGION_LENGTH: usize = 64;

/// Finds out where this process runs. `variable` reads the environment.
#[must_use]
pub fn detect_location(variable: impl Fn(&str) -> Option<String>) -> Location {
    detect_below(Path::new("/"), variable)
}

fn detect_below(root: &Path, variable: impl Fn(&str) -> Option<String>) -> Location {
    Location {
        environment: environment(root, &variable),
        host: host(root),
        region: region(&variable),
        // honours the quota of control groups and the affinity mask
        cpus: available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory_bytes(root),
        pid: std::process::id(),
    }
}

fn environment(root: &Path, variable: &impl Fn(&str) -> Option<String>) -> Environment {
    let by_file = CONTAINER_FILES.iter().any(|file| root.join(file).exists());
    let by_variable = CONTAINER_VARIABLES.iter().any(|name| variable(name).is_some_and(|value| !value.is_empty()));
    let first_group = read(root, "proc/1/cgroup");
    if by_file || by_variable || CONTAINER_GROUPS.iter().any(|name| first_group.contains(name)) {
        return Environment::Container;
    }
    let firmware = FIRMWARE_FILES.map(|file| read(root, &format!("sys/class/dmi/id/{file}")).to_lowercase());
    let in_cloud = firmware
        .iter()
        .any(|line| line.trim() == AZURE_ASSET_TAG || CLOUD_NAMES.iter().any(|name| line.contains(name)));
    if in_cloud { Environment::Cloud } else { Environment::Host }
}

fn host(root: &Path) -> String {
    let name = read(root, "proc/sys/kernel/hostname").trim().to_owned();
    if !name.is_empty() {
        return name;
    }
    System::host_name().unwrap_or_else(|_| "unknown".to_owned())
}

fn region(variable: &impl Fn(&str) -> Option<String>) -> Option<String> {
    REGION_VARIABLES.iter().filter_map(|name| variable(name)).map(|value| value.trim().to_owned()).find(|region| {
        let printable = region.chars().all(|letter| letter.is_ascii_graphic() || letter == ' ');
        !region.is_empty() && region.len() <= REGION_LENGTH && printable
    })
}

fn memory_bytes(root: &Path) -> u64 {
    let machine = memory_total(&read(root, "proc/meminfo")).unwrap_or_else(|| {
        System::new().map_or(0, |mut system| {
            system.refresh_memory();
            system.total_memory()
        })
    });
    group_limits(root).into_iter().fold(machine, u64::min)
}

/// Memory of the machine in bytes, from `/proc/meminfo`.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The limits of the control group of this process and of all above it, in either version of the interface.
fn group_limits(root: &Path) -> Vec<u64> {
    let mut limits = Vec::new();
    for line in read(root, "proc/self/cgroup").lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (base, file) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        let relative = PathBuf::from(path.trim_start_matches('/'));
        let limit = |group: &Path| fs::read_to_string(root.join(base).join(group).join(file)).ok();
        // "max" stands for no limit and is no number
        limits.extend(relative.ancestors().filter_map(limit).filter_map(|text| text.trim().parse::<u64>().ok()));
    }
    limits
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn check(files: &[(&str, &str)], variables: &[(&str, &str)], expected: Environment) {
        let root = machine(files);
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(environment(root.path(), &variable), expected, "{files:?} {variables:?}");
    }

    #[test]
    fn containers_are_known_by_file_variable_or_control_group() {
        check(&[(".dockerenv", "")], &[], Environment::Container);
        check(&[("run/.containerenv", "")], &[], Environment::Container);
        check(&[], &[("KUBERNETES_SERVICE_HOST", "10.0.0.1")], Environment::Container);
        check(&[("proc/1/cgroup", "0::/kubepods.slice/pod1\n")], &[], Environment::Container);
        check(&[("proc/1/cgroup", "0::/init.scope\n")], &[("container", "")], Environment::Host);
    }

    #[test]
    fn clouds_are_known_by_their_firmware() {
        check(&[("sys/class/dmi/id/sys_vendor", "Amazon EC2\n")], &[], Environment::Cloud);
        check(&[("sys/class/dmi/id/product_name", "Google Compute Engine\n")], &[], Environment::Cloud);
        check(&[("sys/class/dmi/id/chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n")], &[], Environment::Cloud);
        check(&[("sys/class/dmi/id/sys_vendor", "Microsoft Corporation\n")], &[], Environment::Host);
        check(&[("sys/class/dmi/id/sys_vendor", "LENOVO\n")], &[], Environment::Host);
    }

    #[test]
    fn a_container_in_a_cloud_is_a_container_that_knows_its_region() {
        let root = machine(&[(".dockerenv", ""), ("sys/class/dmi/id/sys_vendor", "Amazon EC2\n")]);
        let location = detect_below(root.path(), |name| (name == "AWS_REGION").then(|| " eu-central-1 ".to_owned()));
        assert_eq!(location.environment, Environment::Container);
        assert_eq!(location.region.as_deref(), Some("eu-central-1"));
    }

    #[test]
    fn our_own_region_variable_wins_and_nonsense_is_no_region() {
        let told = |name: &str| match name {
            "AGENT_REGION" => Some("home".to_owned()),
            "AWS_REGION" => Some("eu-central-1".to_owned()),
            _ => None,
        };
        assert_eq!(region(&told).as_deref(), Some("home"));
        assert_eq!(region(&|_: &str| Some("a\nb".to_owned())), None);
        assert_eq!(region(&|_: &str| Some("x".repeat(65))), None);
        assert_eq!(region(&|_: &str| None), None);
    }

    #[test]
    fn memory_is_the_smallest_of_machine_and_control_groups() {
        let meminfo = ("proc/meminfo", "MemTotal:       8000 kB\nMemFree: 1 kB\n");
        let group = ("proc/self/cgroup", "0::/outer/inner\n");
        assert_eq!(memory_bytes(machine(&[meminfo]).path()), 8_192_000);
        let no_limit = [meminfo, group, ("sys/fs/cgroup/outer/inner/memory.max", "max\n")];
        assert_eq!(memory_bytes(machine(&no_limit).path()), 8_192_000);
        let outer_limit = [no_limit[0], no_limit[1], no_limit[2], ("sys/fs/cgroup/outer/memory.max", "4096\n")];
        assert_eq!(memory_bytes(machine(&outer_limit).path()), 4096);
        let version_one = [
            meminfo,
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/y\n"),
            ("sys/fs/cgroup/memory/y/memory.limit_in_bytes", "2048\n"),
        ];
        assert_eq!(memory_bytes(machine(&version_one).path()), 2048);
    }

    #[test]
    fn this_machine_has_processors_memory_and_a_name() {
        let location = detect_location(|_| None);
        assert!(location.cpus >= 1 && location.memory_bytes > 1 << 20 && !location.host.is_empty(), "{location:?}");
        assert_eq!(location.pid, std::process::id());
    }
}
