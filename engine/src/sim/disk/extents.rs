//! A file's bytes, as runs of shared data.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::contents::{Contents, Gathering, Place};

/// Runs of bytes by their offset; gaps between them are holes, which read as zeros.
#[derive(Clone, Default)]
pub(super) struct Extents {
    runs: BTreeMap<u64, Run>,
    allocated: u64,
}

#[derive(Clone)]
struct Run {
    len: u64,
    data: Data,
}

/// Location of a run's bytes.
#[derive(Clone)]
pub(super) enum Data {
    /// In a shared content.
    Known(Place),
    Bytes(Bytes),
    Zeros,
}

impl Data {
    /// Bytes in their cheapest form.
    pub(super) fn of(contents: &Contents, bytes: Bytes) -> Self {
        contents.locate(&bytes).map_or(Self::Bytes(bytes), Self::Known)
    }

    /// A part of the data: `len` bytes from `begin` on.
    pub(super) fn part(&self, begin: u64, len: u64) -> Self {
        match self {
            Self::Known(place) => Self::Known(Place {
                offset: place.offset + begin,
                ..*place
            }),
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(begin as usize..(begin + len) as usize)),
            Self::Zeros => Self::Zeros,
        }
    }

    /// Whether `next` continues this data, so that both can be one run.
    fn leads_to(&self, len: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Known(a), Self::Known(b)) => a.content == b.content && a.offset + len == b.offset,
            (Self::Zeros, Self::Zeros) => true,
            _ => false,
        }
    }
}

impl Extents {
    /// Allocated bytes.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated
    }

    /// The end offset of the last run.
    pub(super) fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(offset, run)| offset + run.len)
    }

    /// Number of unallocated bytes in `offset..offset + len`.
    pub(super) fn unallocated(&self, offset: u64, len: u64) -> u64 {
        let end = offset + len;
        let taken = self
            .touched(offset, end)
            .map(|(begin, run_end)| run_end.min(end) - begin.max(offset));
        len - taken.sum::<u64>()
    }

    /// The runs that overlap a range, as begin and end offsets.
    fn touched(&self, offset: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = self
            .runs
            .range(..=offset)
            .next_back()
            .map_or(offset, |(begin, _)| *begin);
        let runs = self
            .runs
            .range(first..end)
            .map(|(begin, run)| (*begin, begin + run.len));
        runs.filter(move |(_, run_end)| *run_end > offset)
    }

    /// Writes bytes, replacing earlier ones.
    pub(super) fn write(&mut self, offset: u64, len: u64, data: Data) {
        if len == 0 {
            return;
        }
        self.cut_out(offset, offset + len);
        self.allocated += len;
        let (mut begin, mut run) = (offset, Run { len, data });
        if let Some((&before, previous)) = self.runs.range_mut(..offset).next_back()
            && before + previous.len == offset
            && previous.data.leads_to(previous.len, &run.data)
        {
            run = Run {
                len: previous.len + len,
                data: previous.data.clone(),
            };
            begin = before;
        }
        let end = begin + run.len;
        if let Some(next) = self.runs.get(&end)
            && run.data.leads_to(run.len, &next.data)
        {
            run.len += next.len;
            self.runs.remove(&end);
        }
        self.runs.insert(begin, run);
    }

    /// Allocates the holes before `len`.
    pub(super) fn reserve(&mut self, len: u64) {
        let mut holes = Vec::new();
        let mut at = 0;
        for (begin, end) in self.touched(0, len) {
            if begin > at {
                holes.push((at, begin - at));
            }
            at = end;
        }
        if at < len {
            holes.push((at, len - at));
        }
        for (offset, len) in holes {
            self.write(offset, len, Data::Zeros);
        }
    }

    /// Removes everything from `len` on.
    pub(super) fn truncate(&mut self, len: u64) {
        let end = self.end();
        if end > len {
            self.cut_out(len, end);
        }
    }

    fn cut_out(&mut self, offset: u64, end: u64) {
        let touched: Vec<(u64, u64)> = self.touched(offset, end).collect();
        for (begin, run_end) in touched {
            let Some(run) = self.runs.remove(&begin) else { continue };
            self.allocated -= run_end.min(end) - begin.max(offset);
            if begin < offset {
                let len = offset - begin;
                let data = run.data.part(0, len);
                self.runs.insert(begin, Run { len, data });
            }
            if run_end > end {
                let len = run_end - end;
                let data = run.data.part(end - begin, len);
                self.runs.insert(end, Run { len, data });
            }
        }
    }

    /// Appends a range to `gathering`; holes are zeros.
    pub(super) fn read(&self, contents: &Contents, offset: u64, len: u64, gathering: &mut Gathering) {
        let end = offset + len;
        let mut at = offset;
        for (begin, run_end) in self.touched(offset, end) {
            if begin > at {
                gathering.zeros(contents, (begin - at) as usize);
            }
            let from = begin.max(offset);
            let count = run_end.min(end) - from;
            match self.runs[&begin].data.part(from - begin, count) {
                Data::Known(place) => gathering.known(contents, place, count as usize),
                Data::Bytes(bytes) => gathering.bytes(contents, &bytes),
                Data::Zeros => gathering.zeros(contents, count as usize),
            }
            at = run_end.min(end);
        }
        if at < end {
            gathering.zeros(contents, (end - at) as usize);
        }
    }

    /// Whether a range has no holes.
    pub(super) fn covers(&self, offset: u64, len: u64) -> bool {
        self.unallocated(offset, len) == 0
    }

    #[cfg(test)]
    pub(super) fn run_count(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::random::Random;

    use super::*;

    /// Compares extents with a plain file: after any writes, truncations and reservations, reads return the same bytes,
    /// and the allocated space is right.
    #[test]
    fn extents_are_a_file() {
        let mut random = Random::from_seed([1; 32]);
        for _ in 0..300 {
            let mut contents = Contents::default();
            let known = Bytes::from(random.bytes::<64>().to_vec());
            contents.add(&known);
            let (mut extents, mut plain) = (Extents::default(), vec![None; 100]);
            for _ in 0..20 {
                let offset = random.below(60);
                let len = 1 + random.below(30);
                let begin = random.below(64 - len);
                let bytes = known.slice(begin..begin + len);
                match random.below(8) {
                    0 => {
                        extents.truncate(offset as u64);
                        plain[offset..].fill(None);
                    }
                    1 => {
                        extents.reserve(offset as u64);
                        plain[..offset].iter_mut().for_each(|byte| *byte = byte.or(Some(0)));
                    }
                    number => {
                        let bytes = if number < 5 {
                            bytes
                        } else {
                            Bytes::copy_from_slice(&bytes)
                        };
                        (0..len).for_each(|i| plain[offset + i] = Some(bytes[i]));
                        let data = Data::of(&contents, bytes);
                        extents.write(offset as u64, len as u64, data);
                    }
                }
                let mut gathering = Gathering::default();
                extents.read(&contents, 0, 100, &mut gathering);
                let expected: Vec<u8> = plain.iter().map(|byte| byte.unwrap_or(0)).collect();
                assert_eq!(gathering.finish(&contents), expected);
                assert_eq!(extents.allocated() as usize, plain.iter().flatten().count());
                let end = plain.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
                assert_eq!(extents.end() as usize, end);
            }
        }
    }

    #[test]
    fn contiguous_content_is_one_run() {
        let mut contents = Contents::default();
        let known = Bytes::from(vec![7; 1000]);
        contents.add(&known);
        let mut extents = Extents::default();
        for begin in [0, 200, 100, 300] {
            let data = Data::of(&contents, known.slice(begin..begin + 100));
            extents.write(begin as u64, 100, data);
        }
        assert_eq!(
            (extents.run_count(), extents.covers(0, 400), extents.covers(0, 401)),
            (1, true, false)
        );
        let mut gathering = Gathering::default();
        extents.read(&contents, 50, 300, &mut gathering);
        assert_eq!(gathering.finish(&contents).as_ptr(), known[50..].as_ptr());
    }
}
