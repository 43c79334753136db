//! Contexts of jobs: the data that a feature keeps about a request until the result arrives.

use bevy_ecs::prelude::*;
use slotmap::{Key, KeyData, SlotMap, new_key_type};

use crate::port::{JobTag, Purpose};

new_key_type! {
    /// The key of a context. The keys of ended jobs find nothing, even if their slots are in use again.
    struct JobKey;
}

/// The contexts of a feature's jobs.
///
/// A feature adds a context when it sends a request, and takes it when the result arrives. The number of contexts is
/// that of the requests under way, so the limit on these bounds both.
///
/// ```
/// use ecs_torrent_engine::jobs::Jobs;
/// use ecs_torrent_engine::port::Purpose;
/// use ecs_torrent_engine::purpose;
///
/// const READ: Purpose = purpose!("read cover images");
///
/// let mut reads: Jobs<&str> = Jobs::default();
/// let tag = reads.add(READ, "front.jpg");
/// // ... the request leaves with the tag, and the event brings the tag back.
/// assert_eq!(reads.take(tag), Some("front.jpg"));
/// assert_eq!(reads.take(tag), None, "a second answer finds nothing");
/// ```
#[derive(Resource, Debug)]
pub struct Jobs<C: Send + Sync + 'static> {
    contexts: SlotMap<JobKey, C>,
}

impl<C: Send + Sync + 'static> Default for Jobs<C> {
    fn default() -> Self {
        let contexts = SlotMap::with_key();
        Self { contexts }
    }
}

impl<C: Send + Sync + 'static> Jobs<C> {
    /// Adds the context of a job, and returns the tag for its request. The tag names no owner.
    pub fn add(&mut self, purpose: Purpose, context: C) -> JobTag {
        let key = self.contexts.insert(context);
        JobTag {
            number: key.data().as_ffi(),
            ..JobTag::new(purpose, Entity::PLACEHOLDER)
        }
    }

    /// Returns the context of a job that is not over.
    pub fn get(&self, tag: JobTag) -> Option<&C> {
        self.contexts.get(key(tag))
    }

    /// Returns the context of a job that is not over, to be changed.
    pub fn get_mut(&mut self, tag: JobTag) -> Option<&mut C> {
        self.contexts.get_mut(key(tag))
    }

    /// Ends a job and returns its context; `None` if the job is over already.
    pub fn take(&mut self, tag: JobTag) -> Option<C> {
        self.contexts.remove(key(tag))
    }

    /// Returns the number of jobs under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.contexts.len()
    }

    /// Returns whether no job is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.contexts.is_empty()
    }
}

fn key(tag: JobTag) -> JobKey {
    KeyData::from_ffi(tag.number).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::purpose;

    const TEST: Purpose = purpose!("test");

    proptest! {
        /// In any order of jobs, a tag finds its own context until the job ends, and nothing after that.
        #[test]
        fn a_tag_finds_its_own_context_until_its_job_ends(ends in proptest::collection::vec(any::<Option<u8>>(), 1..200)) {
            let mut jobs = Jobs::default();
            let mut running: BTreeMap<usize, JobTag> = BTreeMap::new();
            let mut ended = Vec::new();
            for (number, end) in ends.into_iter().enumerate() {
                running.insert(number, jobs.add(TEST, number));
                if let Some(choice) = end {
                    let (&first, &tag) = running.iter().nth(usize::from(choice) % running.len()).unwrap();
                    prop_assert_eq!(jobs.take(tag), Some(first));
                    running.remove(&first);
                    ended.push(tag);
                }
                prop_assert_eq!(jobs.len(), running.len());
                for (context, tag) in &running {
                    prop_assert_eq!(jobs.get(*tag), Some(context));
                }
                for tag in &ended {
                    prop_assert_eq!(jobs.get(*tag), None);
                    prop_assert_eq!(jobs.get_mut(*tag), None);
                    prop_assert_eq!(jobs.take(*tag), None);
                }
            }
        }

        /// An answer with an arbitrary number is safe.
        #[test]
        fn numbers_that_no_job_has_find_nothing(number: u64) {
            let mut jobs: Jobs<u8> = Jobs::default();
            let tag = jobs.add(TEST, 1);
            prop_assume!(number != tag.number);
            prop_assert_eq!(jobs.take(JobTag { number, ..tag }), None);
            prop_assert_eq!(jobs.take(tag), Some(1));
        }
    }
}
