//! What the process before this one has left with the manager: each descriptor is read once, judged and closed.
//!
//! Nothing is taken over here, and nothing removed: see [`super::Keeper`].

use std::collections::BTreeMap;

use crate::{
    clock::Timestamp,
    locked::LockedPages,
    sealed,
    stored::{BootId, MAX_RECORD, Record},
    systemd::StoredDescriptor,
};

/// FileDescriptorStoreMax= of the unit, for managers that do not say it ($FDSTORE, systemd 254).
const STORE_MAX: usize = 512;

/// What the manager has kept for us, and what has to be known of it.
#[derive(Debug, Default)]
pub struct Found {
    /// The descriptors of the process before this one.
    pub descriptors: Vec<StoredDescriptor>,
    /// This boot; without it nothing can be kept.
    pub boot: Option<BootId>,
    /// How many descriptors the manager takes at most.
    pub most: usize,
}

impl Found {
    /// With the facts of this host. The sandbox of the unit hides /proc/sys, so the unit says the boot id
    /// (`Environment=BLOOM_AGENT_BOOT_ID=%b`).
    pub fn on_this_host(descriptors: Vec<StoredDescriptor>) -> Self {
        let said = std::env::var("BLOOM_AGENT_BOOT_ID").ok();
        let boot = said.or_else(|| std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok());
        let most = std::env::var("FDSTORE").ok().and_then(|most| most.parse().ok());
        let boot = boot.and_then(|boot| BootId::parse(&boot).ok());
        Self { descriptors, boot, most: most.unwrap_or(STORE_MAX) }
    }

    /// Reads and closes them all; tokens go to `pages`.
    pub(super) fn read(self, now: Timestamp, pages: &LockedPages) -> Readings {
        let mut by_name = BTreeMap::<_, Vec<_>>::new();
        for StoredDescriptor { name, descriptor } in self.descriptors {
            by_name.entry(name).or_default().push(descriptor);
        }
        let mut readings = Readings::default();
        for (name, mut descriptors) in by_name {
            let judged = match (descriptors.pop(), descriptors.is_empty(), &self.boot) {
                (_, _, None) => Err("the boot id of this host is not known".to_owned()),
                (Some(descriptor), true, Some(boot)) => {
                    sealed::open(descriptor, MAX_RECORD).map_err(|why| why.to_string()).and_then(|bytes| {
                        let record = Record::parse(&bytes, boot, now, |token| pages.copy(token));
                        record.map_err(|why| why.to_string())
                    })
                }
                // A removal by name would take them all, and nobody says which is right.
                _ => Err("there are several of its name".to_owned()),
            };
            let judged = judged.and_then(|record| {
                let is_named = record.name.to_string() == name;
                if is_named { Ok(record) } else { Err("it has another record's name".to_owned()) }
            });
            match judged {
                Ok(record) => readings.records.push(record),
                Err(why) => readings.unusable.push((name, why)),
            }
        }
        readings
    }
}

/// What [`Found::read`] has found.
#[derive(Default)]
pub(super) struct Readings {
    /// Records of this boot, of any profile.
    pub(super) records: Vec<Record>,
    /// The names of the others, and why each is none.
    pub(super) unusable: Vec<(String, String)>,
}
