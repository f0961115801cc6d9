//! The certificate that a node shows: until when it is valid, and a warning in time.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use quorate_transport::tls::Credentials;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::coordinator::WallClock;
use crate::metrics::Sample;

/// What is warned of: certificates that end so soon.
pub const WARNED_BEFORE: Duration = Duration::from_secs(30 * 86_400);

/// The certificate in use. Clones share it.
#[derive(Clone)]
pub(crate) struct Certificate(Arc<Inner>);

struct Inner {
    ends: Mutex<Ends>,
    renewed: Notify,
    wall_clock: WallClock,
}

#[derive(Clone)]
struct Ends {
    holder: String,
    certificate: SystemTime,
    authority: SystemTime,
}

impl Ends {
    fn of(credentials: &Credentials) -> Self {
        Self {
            holder: credentials.subject().to_string(),
            certificate: credentials.not_after(),
            authority: credentials.authority_not_after(),
        }
    }
}

impl Certificate {
    pub(crate) fn new(credentials: &Credentials, wall_clock: WallClock) -> Self {
        Self(Arc::new(Inner { ends: Mutex::new(Ends::of(credentials)), renewed: Notify::new(), wall_clock }))
    }

    /// Another one is in use from now on.
    pub(crate) fn renewed(&self, credentials: &Credentials) {
        *self.ends() = Ends::of(credentials);
        self.0.renewed.notify_one();
    }

    /// Seconds until it ends, and until the cluster's authority does; below 0 afterwards.
    pub(crate) fn left_s(&self) -> (i64, i64) {
        let now = (self.0.wall_clock)();
        let ends = self.ends();
        (left_s(ends.certificate, now), left_s(ends.authority, now))
    }

    /// Warns once a day while it, or the authority, ends soon.
    pub(crate) async fn watch(self) {
        let mut warned: Option<Instant> = None;
        loop {
            if warned.is_none_or(|at| at.elapsed() >= WARN_AGAIN) && self.warn() {
                warned = Some(Instant::now());
            }
            tokio::select! {
                biased;
                () = self.0.renewed.notified() => warned = None,
                () = sleep(LOOK_PAUSE) => {}
            }
        }
    }

    fn warn(&self) -> bool {
        let (certificate, authority) = self.left_s();
        let holder = self.ends().holder.clone();
        let warned = WARNED_BEFORE.as_secs() as i64;
        for (what, left_s) in [("the certificate", certificate), ("the cluster's CA certificate", authority)] {
            if left_s <= 0 {
                tracing::error!(%holder, "{what} has expired: connections that run go on, new ones are refused");
            } else if left_s < warned {
                tracing::warn!(%holder, "{what} expires in {}: make a new one (`quorate cert renew`) and send this process SIGHUP",
                    days(left_s));
            }
        }
        certificate.min(authority) < warned
    }

    /// For the node's metrics.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        let (certificate, authority) = self.left_s();
        let seconds = |left: i64| u64::try_from(left).unwrap_or(0);
        vec![
            Sample::gauge(
                "certificate_seconds_left",
                "Seconds until the certificate of the node expires, 0 if it has",
                seconds(certificate),
            ),
            Sample::gauge(
                "authority_seconds_left",
                "Seconds until the CA certificate of the cluster expires, 0 if it has",
                seconds(authority),
            ),
        ]
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.ends.lock().expect("nothing panics while it is locked")
    }
}

/// Seconds from now until then; below 0 if it is over.
pub fn left_s(then: SystemTime, now: SystemTime) -> i64 {
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    then.duration_since(now).map_or_else(|over| -seconds(over.duration()), seconds)
}

/// A time that is left, in days and hours.
pub fn days(left_s: i64) -> String {
    match left_s.unsigned_abs() {
        seconds @ 172_800.. => format!("{} days", seconds / 86_400),
        seconds => format!("{} hours", seconds / 3600),
    }
}

/// How often it is looked at.
const LOOK_PAUSE: Duration = Duration::from_secs(3600);

/// How often it is warned of.
const WARN_AGAIN: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn what_is_left_is_counted_down_and_below_zero() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!((left_s(at(10), at(4)), left_s(at(4), at(10))), (6, -6));
        assert_eq!(
            (days(86_400 * 29 + 5), days(3600 * 23), days(-7200)),
            ("29 days".into(), "23 hours".into(), "2 hours".into())
        );
    }
}
