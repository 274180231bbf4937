//! Calls as they are counted and traced: by method, and by the code that their answer begins with.
//!
//! Deliberately absent: what a stream comes to after it was opened. Its role measures that.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::Response;
use metrics::{Counter, Gauge, Histogram, SharedString, counter, gauge, histogram};
use tonic::Code;
use wardline_proto::reason::code_name;

use crate::measures as names;
use crate::trace::Ongoing;

/// One method's metrics.
#[derive(Debug)]
pub(crate) struct Calls {
    method: Arc<str>,
    seconds: Histogram,
    waiting: Gauge,
    /// By the number of the code; made when first needed, since most methods never see most codes.
    codes: [OnceLock<Counter>; 17],
}

impl Calls {
    pub(crate) fn of(method: String) -> Arc<Self> {
        let method: Arc<str> = method.into();
        let label = SharedString::from(Arc::clone(&method));
        let seconds = histogram!(names::RPC_SECONDS, "method" => label.clone());
        let waiting = gauge!(names::RPC_WAITING, "method" => label);
        Arc::new(Self { method, seconds, waiting, codes: Default::default() })
    }

    /// The method's path, or what stands for what is none of ours.
    pub(crate) fn method(&self) -> &str {
        &self.method
    }

    fn count(&self, code: Code) {
        let Some(counted) = self.codes.get(code as usize) else { return };
        let label = || SharedString::from(Arc::clone(&self.method));
        counted
            .get_or_init(|| counter!(names::RPC_REQUESTS, "method" => label(), "code" => code_name(code)))
            .increment(1);
    }
}

/// One call until its answer begins. Dropped before that, it was given up by its caller.
pub(crate) struct Counting {
    calls: Arc<Calls>,
    trace: Ongoing,
    began: Instant,
    code: Code,
}

impl Counting {
    pub(crate) fn begin(calls: &Arc<Calls>, trace: Ongoing) -> Self {
        calls.waiting.increment(1);
        Self { calls: Arc::clone(calls), trace, began: Instant::now(), code: Code::Cancelled }
    }

    /// The answer begins: an error has its code in the headers, all else is well so far.
    pub(crate) fn answered<B>(mut self, response: Response<B>) -> Response<B> {
        let status = response.headers().get("grpc-status");
        self.code = status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
        response
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.calls.waiting.decrement(1);
        self.calls.seconds.record(self.began.elapsed());
        self.calls.count(self.code);
        self.trace.answered(self.code);
    }
}
