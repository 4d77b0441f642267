//! Putting a config in force: one reload at a time, each in one instant.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::oneshot;

use super::{
    Daemon, Ended,
    load::{self, Prepared},
    plan, profile,
};
use crate::{
    config::Problems,
    service::{
        ReloadFault, Reloaded,
        snapshot::{Profile, Snapshot},
    },
};

/// Where somebody waits for the outcome of a reload. SIGHUP has none.
pub(super) type Answer = oneshot::Sender<Result<Reloaded, ReloadFault>>;

/// Who waits for which reload.
#[derive(Default)]
pub(super) struct Queue {
    /// The one that is under way.
    current: Option<Vec<Answer>>,
    /// The one after it.
    next: Option<Vec<Answer>>,
}

/// Whether a reload is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Now,
    Later,
}

impl Queue {
    fn ask(&mut self, answer: Option<Answer>) -> Turn {
        let (waiting, turn) = match &self.current {
            None => (self.current.insert(Vec::new()), Turn::Now),
            Some(_) => (self.next.get_or_insert_default(), Turn::Later),
        };
        waiting.extend(answer);
        turn
    }

    /// Tells all who waited for the one under way.
    fn done(&mut self, outcome: &Result<Reloaded, ReloadFault>) -> Turn {
        for answer in self.current.take().into_iter().flatten() {
            // Who asked may have gone; the reload is done all the same.
            let _gone = answer.send(outcome.clone());
        }
        self.current = self.next.take();
        if self.current.is_some() { Turn::Now } else { Turn::Later }
    }
}

impl Daemon {
    /// Reloads, and tells `answer` what it did. Whoever asks while one is under way shares the one after it, which reads
    /// what is written by then.
    pub(super) fn ask_reload(&mut self, answer: Option<Answer>) {
        if self.reloads.ask(answer) == Turn::Now {
            self.reloaded.send_modify(|reloads| reloads.began += 1);
            self.prepare_reload();
        }
    }

    fn prepare_reload(&mut self) {
        let (read, workshop, own_uid) = (Arc::clone(&self.read), Arc::clone(&self.workshop), self.own_uid);
        let built =
            self.running.iter().map(|(name, running)| (name.clone(), running.built.clone())).collect();
        let running = self.config.clone();
        self.tasks.spawn("reload", async move {
            Ended::Prepared(Box::new(load::prepare(&read, &workshop, own_uid, built, Some(running)).await))
        });
    }

    /// A reload has been read: puts it in force, or says why not; then begins the next one.
    pub(super) async fn prepared(&mut self, prepared: Result<Prepared, Problems>) {
        let outcome = match prepared {
            Ok(prepared) => self.commit(prepared).await,
            Err(faults) => Err(faults),
        };
        match &outcome {
            Ok(done) => tracing::info!(
                added = done.added.join(" "),
                replaced = done.replaced.join(" "),
                removed = done.removed.join(" "),
                "reloaded"
            ),
            Err(faults) => {
                tracing::error!(
                    faults = faults.as_slice().len(),
                    "not reloaded: the config has faults, and the running one stays"
                );
                for fault in faults.as_slice() {
                    tracing::error!("{fault}");
                }
            }
        }
        let refused = outcome.as_ref().err().map(|faults| faults.as_slice().len());
        let outcome = outcome.map_err(|faults| ReloadFault::Config(faults.to_string()));
        let turn = self.reloads.done(&outcome);
        self.reloaded.send_modify(|reloads| {
            reloads.ended += 1;
            reloads.began += u64::from(turn == Turn::Now);
            reloads.refused = refused;
        });
        if turn == Turn::Now {
            self.prepare_reload();
        }
    }

    /// Puts a config in force. Whatever can fail comes first, and changes nothing if it does.
    pub(super) async fn commit(&mut self, prepared: Prepared) -> Result<Reloaded, Problems> {
        let Prepared { config, found, mut built } = prepared;
        let directory = self.directory_after(found);
        let now = self.time.now();
        let plan = plan::plan(&self.config.tokens, &config.tokens);
        let mut fresh = BTreeMap::new();
        for name in plan.keys() {
            if !self.running.contains_key(name)
                && let Some(built) = built.remove(name)
            {
                let identity = self.new_identity();
                let made = profile::rotator(name, identity, built, self.preserve(), &self.time, now);
                let made = made.map_err(|error| {
                    let wrong = format!("can have no timer ({error})");
                    config.problem(&format!("tokens.{name}"), wrong, "raise LimitNOFILE=")
                })?;
                fresh.insert(name.clone(), made);
            }
        }

        // From here on nothing fails.
        let warnings = config.warnings.iter().map(ToString::to_string).collect();
        let mut done = Reloaded { warnings, ..Reloaded::default() };
        let mut told = Vec::new();
        let mut gone = Vec::new();
        for (name, change) in plan {
            match change {
                plan::Change::Added => done.added.push(name.as_str().to_owned()),
                plan::Change::Replaced => done.replaced.push(name.as_str().to_owned()),
                plan::Change::Removed => done.removed.push(name.as_str().to_owned()),
                plan::Change::Kept => {}
            }
            if change == plan::Change::Removed {
                if let Some(keeper) = &self.keeper {
                    keeper.forget(&name);
                }
                gone.extend(self.running.remove(&name));
                continue;
            }
            if let Some((running, mut rotator)) = fresh.remove(&name) {
                if let Some((state, settings)) = self.follow(&name, running.identity, &running.built) {
                    rotator.restore(state, settings);
                }
                self.running.insert(name.clone(), running);
                self.spawn_rotator(name, rotator);
                continue;
            }
            let identity = (change == plan::Change::Replaced).then(|| self.new_identity());
            let preserve = self.preserve();
            if let (Some(running), Some(built)) = (self.running.get_mut(&name), built.remove(&name)) {
                running.identity = identity.unwrap_or(running.identity);
                running.built = built;
                if let Some(keeper) = &self.keeper {
                    // All that was found is of the start, and was asked for then.
                    let _nothing = keeper.follow(&name, running.identity, &running.built);
                }
                told.push((running.rotator.clone(), running.built.task(&name, running.identity, preserve)));
            }
        }
        self.config = config;
        self.directory = directory;
        if let Some(log) = &self.log {
            log.set(load::log_config(&self.config.log));
        }
        let limits = self.config.limits;
        let each = 1 + self.units.capture().descriptors();
        let (limits, capped) =
            self.descriptors.map_or((limits, None), |limit| limits.within(limit, self.running.len(), each));
        if let Some(capped) = capped {
            tracing::warn!("{capped}");
        }
        self.book.replace(limits);
        self.metrics.set_profiles(self.running.keys());
        self.configured = now;
        self.commits += 1;
        self.swap();
        if self.snapshot.borrow().access.names_units() {
            self.units.announce();
        }
        // In force. The rotators hear of it last: the readers withhold a token of an old identity by themselves.
        for (rotator, task) in told {
            // One that is gone has panicked: an event of the loop, which replaces it by what is in force now.
            let _gone = rotator.reconfigure(task).await;
        }
        for running in gone {
            running.rotator.stop().await;
        }
        for warning in &done.warnings {
            tracing::warn!("{warning}");
        }
        Ok(done)
    }

    /// Publishes what is in force as the next version.
    pub(super) fn swap(&mut self) {
        let profiles = self.running.iter().filter_map(|(name, running)| {
            let config = self.config.tokens.get(name)?;
            let profile = Profile {
                name: name.clone(),
                identity: running.identity,
                allow: config
                    .rules
                    .selectors()
                    .iter()
                    .map(|line| line.as_written().as_ref().into())
                    .collect(),
                scopes: config.client.scopes.clone(),
                audience: config.client.audience.clone(),
                token_url: config.client.endpoint.without_query().into(),
                secret_source: running.built.secret_source(),
                reader: running.reader.clone(),
                rotator: running.rotator.clone(),
            };
            Some((name.clone(), Arc::new(profile)))
        });
        let next = Snapshot {
            version: self.snapshot.borrow().version + 1,
            configured_at: self.configured.wall,
            access: self.config.access_rules(self.own_uid, self.directory.clone()),
            profiles: profiles.collect(),
        };
        self.snapshot.send_replace(Arc::new(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_during_a_reload_shares_the_one_after_it() {
        let mut queue = Queue::default();
        let (first, mut heard_first) = oneshot::channel();
        assert_eq!(queue.ask(Some(first)), Turn::Now);
        let waiting: Vec<_> = (0..900)
            .map(|_| {
                let (answer, heard) = oneshot::channel();
                assert_eq!(queue.ask(Some(answer)), Turn::Later);
                heard
            })
            .collect();
        assert_eq!(queue.ask(None), Turn::Later);
        assert_eq!(queue.done(&Ok(Reloaded::default())), Turn::Now);
        assert!(heard_first.try_recv().is_ok());
        assert_eq!(queue.done(&Err(ReloadFault::Stopping)), Turn::Later);
        assert!(waiting.into_iter().all(|mut heard| heard.try_recv() == Ok(Err(ReloadFault::Stopping))));
        assert_eq!(queue.ask(None), Turn::Now);
    }
}
