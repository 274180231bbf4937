//! Which span a record comes from: W3C Trace Context (version 00) in its headers.
//!
//! Only sampled contexts travel. A record without one costs nothing, and nobody makes a span for it.
//!
//! Deliberately absent: what is sampled, and where spans go. Both are the process's, behind OpenTelemetry's global provider.

use std::fmt;
use std::str::{self, FromStr as _};

use bytes::Bytes;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use crate::seam::Headers;

/// The header that names the span.
pub const TRACEPARENT: &str = "traceparent";
/// The header of what tracing systems add to it.
pub const TRACESTATE: &str = "tracestate";

/// `00-` trace id `-` span id `-` flags, the ids and flags in lower-case hex.
const LENGTH: usize = 55;
/// A longer `tracestate` is left behind, as the recommendation allows (section 3.3.1.5).
const LONGEST_STATE: usize = 512;
/// One record may continue this many traces; more are left behind.
pub const MOST: usize = 8;

/// A sampled span, as `traceparent` names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace: TraceId,
    span: SpanId,
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceParent({}/{})", self.trace, self.span)
    }
}

impl TraceParent {
    /// The span of a context; `None` unless it is valid and sampled.
    pub fn of(context: &SpanContext) -> Option<Self> {
        (context.is_valid() && context.is_sampled())
            .then(|| Self { trace: context.trace_id(), span: context.span_id() })
    }

    /// From a header's value; `None` unless it is valid and sampled. The flags are looked at first.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let flags = *value.get(LENGTH - 1).filter(|_| value.len() == LENGTH)?;
        let sampled = char::from(flags).to_digit(16)? & 1 == 1;
        let text = str::from_utf8(value).ok().filter(|text| sampled && text.starts_with("00-"))?;
        let (trace, span) = text.get(3..LENGTH - 3)?.split_once('-')?;
        let lower = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if trace.len() != 32 || !lower(trace) || !lower(span) {
            return None;
        }
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        (trace != TraceId::INVALID && span != SpanId::INVALID).then_some(Self { trace, span })
    }

    /// The spans that a record comes from, at most [`MOST`].
    pub fn all(headers: &[(String, Bytes)]) -> impl Iterator<Item = Self> + '_ {
        let parents = headers.iter().filter(|(name, _)| name == TRACEPARENT);
        parents.filter_map(|(_, value)| Self::parse(value)).take(MOST)
    }

    /// As a header's value.
    pub fn value(self) -> Bytes {
        format!("00-{}-{}-01", self.trace, self.span).into()
    }

    /// As a record's header.
    pub fn header(self) -> (&'static str, Bytes) {
        (TRACEPARENT, self.value())
    }

    /// As the context of a remote parent.
    pub fn context(self, state: TraceState) -> SpanContext {
        SpanContext::new(self.trace, self.span, TraceFlags::SAMPLED, true, state)
    }
}

/// The headers that let a record continue the trace of `context`; none unless it is sampled.
pub fn headers(context: &SpanContext) -> Headers {
    let Some(parent) = TraceParent::of(context) else { return Headers::new() };
    let state = context.trace_state().header();
    let state = (!state.is_empty() && state.len() <= LONGEST_STATE).then(|| (TRACESTATE, Bytes::from(state)));
    std::iter::once(parent.header()).chain(state).collect()
}

/// What tracing systems added to a record's context.
pub(crate) fn state(headers: &[(String, Bytes)]) -> TraceState {
    let value = headers.iter().find(|(name, value)| name == TRACESTATE && value.len() <= LONGEST_STATE);
    let text = value.and_then(|(_, value)| str::from_utf8(value).ok());
    text.and_then(|text| TraceState::from_str(text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_sampled_comes_back() {
        let parent = TraceParent::parse(SAMPLED.as_bytes()).unwrap();
        assert_eq!(parent.value(), SAMPLED);
        let state = TraceState::from_str("vendor=1,other=2").unwrap();
        let written = headers(&parent.context(state.clone()));
        let read: Vec<_> = written.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(TraceParent::all(&read).collect::<Vec<_>>(), [parent]);
        assert_eq!(super::state(&read).header(), state.header());
    }

    #[test]
    fn what_is_not_sampled_or_not_valid_is_nothing() {
        let unsampled = SAMPLED.replace("-01", "-00");
        let upper = SAMPLED.replace("af", "AF");
        let no_trace = SAMPLED.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let no_span = SAMPLED.replace("b7ad6b7169203331", &"0".repeat(16));
        let signs = SAMPLED.replace("b7ad6b7169203331", "+7ad6b7169203331");
        let shifted = SAMPLED.replace("c-b", "-cb");
        let wide = "00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01".to_owned();
        let other = SAMPLED.replacen("00", "ff", 1);
        let long = format!("{SAMPLED}-more");
        for value in [unsampled, upper, no_trace, no_span, signs, shifted, wide, other, long, String::new()] {
            assert_eq!(TraceParent::parse(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn a_record_continues_few_traces() {
        let headers = vec![(TRACEPARENT.to_owned(), Bytes::from_static(SAMPLED.as_bytes())); 3 * MOST];
        assert_eq!(TraceParent::all(&headers).count(), MOST);
    }
}
