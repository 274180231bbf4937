//! One partition's readable extent and its newest records in memory.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;

use super::lock;
use crate::seam::FetchLimits;

struct State {
    /// Below it nothing is given out.
    floor: u64,
    /// At and above it nothing is readable.
    end: u64,
    /// From here on `tail` holds all there is.
    tail_from: u64,
    tail: VecDeque<(u64, Bytes)>,
    tail_bytes: usize,
}

pub(super) struct Shelf {
    state: Mutex<State>,
    capacity: usize,
}

/// What a reader finds.
pub(super) enum Found {
    Nothing,
    InMemory(Vec<(u64, Bytes)>),
    /// Between these offsets, the second excluded, on disk.
    OnDisk(u64, u64),
}

impl Shelf {
    pub(super) fn new(floor: u64, end: u64, capacity: usize) -> Self {
        let state = State { floor, end, tail_from: end, tail: VecDeque::new(), tail_bytes: 0 };
        Self { state: Mutex::new(state), capacity }
    }

    /// (floor, end)
    pub(super) fn extent(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.floor, state.end)
    }

    /// Makes durable records readable.
    pub(super) fn publish(&self, records: impl IntoIterator<Item = (u64, Bytes)>, end: u64) {
        let mut state = lock(&self.state);
        for (offset, value) in records {
            state.tail_bytes += value.len();
            state.tail.push_back((offset, value));
        }
        state.end = end;
        while state.tail_bytes > self.capacity {
            let Some((offset, value)) = state.tail.pop_front() else { break };
            state.tail_bytes -= value.len();
            state.tail_from = offset + 1;
        }
    }

    /// Gives out nothing below `floor` any more.
    pub(super) fn raise(&self, floor: u64) {
        let mut state = lock(&self.state);
        state.floor = state.floor.max(floor);
        while let Some((_, value)) = state.tail.pop_front_if(|(offset, _)| *offset < floor) {
            state.tail_bytes -= value.len();
        }
        state.tail_from = state.tail_from.max(floor);
    }

    /// Forgets one record that compaction removed.
    pub(super) fn forget(&self, offset: u64) {
        let mut state = lock(&self.state);
        if let Ok(at) = state.tail.binary_search_by_key(&offset, |(offset, _)| *offset)
            && let Some((_, value)) = state.tail.remove(at)
        {
            state.tail_bytes -= value.len();
        }
    }

    pub(super) fn find(&self, from: u64, limits: FetchLimits) -> Found {
        let state = lock(&self.state);
        let from = from.max(state.floor);
        if from >= state.end {
            return Found::Nothing;
        }
        if from < state.tail_from {
            return Found::OnDisk(from, state.end);
        }
        let first = state.tail.partition_point(|(offset, _)| *offset < from);
        let mut bytes = 0;
        let within = |(_, value): &&(u64, Bytes)| {
            let fits = bytes == 0 || bytes + value.len() <= limits.bytes;
            bytes += value.len();
            fits
        };
        let records: Vec<_> =
            state.tail.range(first..).take(limits.records.max(1)).take_while(within).cloned().collect();
        if records.is_empty() { Found::Nothing } else { Found::InMemory(records) }
    }
}
