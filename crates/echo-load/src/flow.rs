//! The state of one flow: which of its datagrams are in flight, and what a received one
//! is. It knows no socket and no clock.
//!
//! Datagrams may be lost, arrive late, twice or out of order. Each started datagram is therefore in
//! one of three states: *in flight*; *lost*, because it was not echoed within the timeout; or
//! *settled*. Only the first two are stored, so memory does not grow with the run.

use std::collections::VecDeque;

use crate::datagram::{Format, NAMED, Name};

/// The number of lost datagrams that a flow remembers, to recognize their late echoes.
const LOST_MAX: usize = 4096;
/// How many settled datagrams are compared with one that is too short to name its number.
const SETTLED_EXAMINED: u64 = 64;

/// A datagram in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its number in its flow, from 0.
    pub(crate) sequence: u64,
    /// When it was sent, in nanoseconds of the run.
    pub(crate) started: u64,
    pub(crate) length: usize,
}

/// What a received datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A complete and correct echo of a datagram in flight, which is settled now.
    Echo { message: Message, reordered: bool },
    /// A correct echo of a datagram that had been lost.
    Late,
    /// A correct echo of a datagram that is settled.
    Duplicated { sequence: u64 },
    /// The echo of a datagram of which this was known too long ago.
    Forgotten,
    /// The beginning of a datagram. If that was in flight, it is settled now.
    Truncated { sequence: u64, message: Option<Message> },
    /// Bytes that were not sent: from this offset on, or all of an unknown datagram. If the
    /// datagram is known and was in flight, it is settled now.
    Corrupted { sequence: Option<u64>, message: Option<Message>, offset: usize },
    /// A datagram of another flow, or if that is unknown, of another run.
    Foreign { flow: Option<u64> },
}

/// One flow, with a socket of its own.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Its number in the run.
    pub(crate) number: u64,
    /// What each of its datagrams begins with, and is not echoed: a PROXY header or nothing.
    pub(crate) header: Vec<u8>,
    /// Its turn among the flows of its thread, in an open loop.
    pub(crate) rank: u64,
    /// The total number of datagrams started, which is the number of the next one.
    pub(crate) started: u64,
    /// Oldest first.
    in_flight: VecDeque<Message>,
    /// The numbers of lost datagrams and their lengths, oldest first.
    lost: VecDeque<(u64, usize)>,
    /// Of lost datagrams before this number nothing is known any more.
    forgotten: u64,
    /// The highest number of a settled datagram, plus one.
    settled_end: u64,
    /// The round-trip time of the last echo.
    pub(crate) last_time: Option<u64>,
    /// Echoes in the measured time, and their total latency in nanoseconds.
    pub(crate) echoes: u64,
    pub(crate) echo_time: u64,
    /// When the first message ended after the measured time.
    pub(crate) freed: Option<u64>,
    /// True exactly while the socket has no room for another datagram.
    pub(crate) is_blocked: bool,
    /// True exactly while it waits after a send that failed.
    pub(crate) is_resting: bool,
}

impl Flow {
    /// The number of datagrams in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The oldest datagram in flight.
    pub(crate) fn oldest(&self) -> Option<Message> {
        self.in_flight.front().copied()
    }

    /// The number of datagrams in flight that were sent at `moment` or later.
    pub(crate) fn in_flight_since(&self, moment: u64) -> usize {
        self.in_flight.iter().rev().take_while(|message| message.started >= moment).count()
    }

    /// The next datagram was sent.
    pub(crate) fn sent(&mut self, now: u64, length: usize) {
        self.in_flight.push_back(Message { sequence: self.started, started: now, length });
        self.started += 1;
    }

    /// The next datagram could not be sent, and never will be.
    pub(crate) fn skip(&mut self) {
        self.started += 1;
    }

    /// Gives up the oldest datagram in flight if it was sent before `before`.
    pub(crate) fn expire(&mut self, before: u64) -> Option<Message> {
        let message = self.oldest().filter(|message| message.started < before)?;
        self.in_flight.pop_front();
        if self.lost.len() == LOST_MAX
            && let Some((sequence, _)) = self.lost.pop_front()
        {
            self.forgotten = sequence + 1;
        }
        self.lost.push_back((message.sequence, message.length));
        Some(message)
    }

    /// Forgets what was lost so far; late echoes of it count as nothing.
    pub(crate) fn forget_lost(&mut self) {
        if let Some((last, _)) = self.lost.back() {
            self.forgotten = last + 1;
        }
        self.lost.clear();
    }

    /// Judges a received datagram.
    pub(crate) fn receive(&mut self, format: &Format, bytes: &[u8]) -> Verdict {
        let found = if bytes.len() < NAMED {
            self.find_short(format, bytes)
        } else {
            match format.name(self.number, bytes) {
                Name::Known { flow, sequence } if flow == format.flow(self.number) => {
                    format.whole(sequence, self.started)
                }
                Name::Known { flow, .. } => return Verdict::Foreign { flow: Some(flow) },
                Name::AnotherRun => return Verdict::Foreign { flow: None },
                Name::Unknown => None,
            }
        };
        match found {
            Some(sequence) => self.judge(format, sequence, bytes),
            None => Verdict::Corrupted { sequence: None, message: None, offset: 0 },
        }
    }

    /// Judges a datagram whose number is known.
    fn judge(&mut self, format: &Format, sequence: u64, bytes: &[u8]) -> Verdict {
        let message = self.settle(sequence);
        let lost = self.lost.binary_search_by_key(&sequence, |it| it.0).ok();
        let sent = message.map(|it| it.length).or(lost.map(|index| self.lost[index].1));
        let sent = sent.unwrap_or(bytes.len());
        let compared = &bytes[..bytes.len().min(sent)];
        if !format.matches(self.number, sequence, compared) || bytes.len() > sent {
            let offset = format.matching(self.number, sequence, compared);
            return Verdict::Corrupted { sequence: Some(sequence), message, offset };
        }
        if bytes.len() < sent {
            return Verdict::Truncated { sequence, message };
        }
        match (message, lost) {
            (Some(message), _) => {
                let reordered = sequence + 1 < self.settled_end;
                self.settled_end = self.settled_end.max(sequence + 1);
                Verdict::Echo { message, reordered }
            }
            (None, Some(index)) => {
                self.lost.remove(index);
                Verdict::Late
            }
            (None, None) if sequence < self.forgotten => Verdict::Forgotten,
            (None, None) => Verdict::Duplicated { sequence },
        }
    }

    /// Removes a datagram from those in flight.
    fn settle(&mut self, sequence: u64) -> Option<Message> {
        let index = match self.in_flight.front() {
            Some(message) if message.sequence == sequence => 0,
            _ => self.in_flight.binary_search_by_key(&sequence, |it| it.sequence).ok()?,
        };
        self.in_flight.remove(index)
    }

    /// The number of a datagram that is too short to name it: the oldest in flight that was sent
    /// with these bytes; or the oldest of which they are the beginning; or a lost one; or one that
    /// was settled a short time ago.
    fn find_short(&self, format: &Format, bytes: &[u8]) -> Option<u64> {
        let matches = |sequence: u64| format.matches(self.number, sequence, bytes);
        let fitting = |is_whole: bool| {
            let fits = |it: &&Message| (it.length == bytes.len()) == is_whole;
            let mut candidates = self.in_flight.iter().filter(fits).map(|it| it.sequence);
            candidates.find(|sequence| matches(*sequence))
        };
        let settled = || {
            let recent = self.started.saturating_sub(SETTLED_EXAMINED)..self.started;
            recent.rev().find(|sequence| matches(*sequence))
        };
        fitting(true)
            .or_else(|| fitting(false))
            .or_else(|| self.lost.iter().map(|it| it.0).find(|sequence| matches(*sequence)))
            .or_else(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Pattern;

    const LENGTH: usize = 64;

    fn format() -> Format {
        Format::new(Pattern::new(7), 10, LENGTH, true)
    }

    /// Flow 3 with `count` datagrams in flight, sent at 0, 1, 2, …
    fn flow(count: u64, length: usize) -> Flow {
        let mut flow = Flow { number: 3, ..Flow::default() };
        (0..count).for_each(|now| flow.sent(now, length));
        flow
    }

    fn datagram(number: u64, sequence: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        format().fill(number, sequence, &mut bytes);
        bytes
    }

    fn receive(flow: &mut Flow, sequence: u64) -> Verdict {
        flow.receive(&format(), &datagram(3, sequence, LENGTH))
    }

    fn message(sequence: u64) -> Message {
        Message { sequence, started: sequence, length: LENGTH }
    }

    #[test]
    fn echoes_in_order_and_out_of_order() {
        let mut flow = flow(4, LENGTH);
        for (sequence, reordered) in [(0, false), (2, false), (1, true), (3, false)] {
            let echo = Verdict::Echo { message: message(sequence), reordered };
            assert_eq!(receive(&mut flow, sequence), echo);
            assert_eq!(receive(&mut flow, sequence), Verdict::Duplicated { sequence });
        }
        assert_eq!(flow.in_flight(), 0);
    }

    #[test]
    fn a_late_echo_is_late_once() {
        let mut flow = flow(3, LENGTH);
        assert_eq!(flow.expire(2), Some(message(0)));
        assert_eq!(flow.expire(2), Some(message(1)));
        assert_eq!(flow.expire(2), None);
        assert_eq!(receive(&mut flow, 1), Verdict::Late);
        assert_eq!(receive(&mut flow, 1), Verdict::Duplicated { sequence: 1 });
        flow.forget_lost();
        assert_eq!(receive(&mut flow, 0), Verdict::Forgotten);
        assert_eq!(receive(&mut flow, 2), Verdict::Echo { message: message(2), reordered: false });
    }

    #[test]
    fn what_is_forgotten_is_bounded() {
        let mut flow = Flow { number: 3, ..Flow::default() };
        for now in 0..2 * LOST_MAX as u64 {
            flow.sent(now, LENGTH);
            flow.expire(u64::MAX);
        }
        assert_eq!(flow.lost.len(), LOST_MAX);
        assert_eq!(receive(&mut flow, 5), Verdict::Forgotten);
        assert_eq!(receive(&mut flow, LOST_MAX as u64), Verdict::Late);
    }

    #[test]
    fn damaged_datagrams_are_settled() {
        let mut flow = flow(4, LENGTH);
        let cut = datagram(3, 0, LENGTH - 1);
        let message = |sequence| Some(message(sequence));
        let truncated = Verdict::Truncated { sequence: 0, message: message(0) };
        assert_eq!(flow.receive(&format(), &cut), truncated);
        let mut wrong = datagram(3, 1, LENGTH);
        wrong[40] ^= 1;
        let corrupted = |sequence, offset| Verdict::Corrupted {
            sequence: Some(sequence),
            message: message(sequence),
            offset,
        };
        assert_eq!(flow.receive(&format(), &wrong), corrupted(1, 40));
        let mut long = datagram(3, 2, LENGTH);
        long.push(0);
        assert_eq!(flow.receive(&format(), &long), corrupted(2, LENGTH));
        assert_eq!(
            flow.receive(&format(), &[]),
            Verdict::Truncated { sequence: 3, message: message(3) }
        );
        assert_eq!(flow.in_flight(), 0);
    }

    #[test]
    fn what_was_never_sent_settles_nothing() {
        let mut flow = flow(2, LENGTH);
        let unknown = Verdict::Corrupted { sequence: None, message: None, offset: 0 };
        assert_eq!(receive(&mut flow, 2), unknown);
        assert_eq!(flow.receive(&format(), &[0; LENGTH]), unknown);
        let other = datagram(4, 0, LENGTH);
        assert_eq!(flow.receive(&format(), &other), Verdict::Foreign { flow: Some(4) });
        assert_eq!(flow.in_flight(), 2);
    }

    #[test]
    fn short_datagrams_are_found_by_their_bytes() {
        let mut flow = flow(100, 7);
        for sequence in 0..100 {
            let verdict = flow.receive(&format(), &datagram(3, sequence, 7));
            assert!(
                matches!(verdict, Verdict::Echo { message, .. } if message.sequence == sequence),
                "{sequence}: {verdict:?}"
            );
        }
        let again = flow.receive(&format(), &datagram(3, 99, 7));
        assert_eq!(again, Verdict::Duplicated { sequence: 99 });
    }

    #[test]
    fn empty_datagrams_are_counted() {
        let mut flow = flow(2, 0);
        for sequence in 0..2 {
            let message = Message { sequence, started: sequence, length: 0 };
            assert_eq!(flow.receive(&format(), &[]), Verdict::Echo { message, reordered: false });
        }
        assert!(matches!(flow.receive(&format(), &[]), Verdict::Duplicated { .. }));
    }
}
