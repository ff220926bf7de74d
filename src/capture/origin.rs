//! Who causes a change, as the writer says: the setting `pg_outbox.origin`, else the request
//! header `x-outbox-origin` that PostgREST leaves in `request.headers`.

use crate::gucs;
use crate::pg::setting;

/// Bytes that an origin may have; a longer header is no origin, because a writer must not fail.
pub const ORIGIN_BYTES_MAX: usize = 64;

#[derive(Default)]
pub struct Origin {
    /// Of this transaction's request; looked up once, since a request is one transaction.
    header: Option<Option<Box<str>>>,
}

impl Origin {
    pub fn current(&mut self) -> Option<Box<str>> {
        if let Some(origin) = gucs::origin() {
            return Some(origin);
        }
        self.header.get_or_insert_with(from_headers).clone()
    }
}

fn from_headers() -> Option<Box<str>> {
    const HEADER: &str = "x-outbox-origin";
    let headers = setting::custom(c"request.headers")?;
    if !headers.contains(HEADER) {
        return None;
    }
    let headers: serde_json::Value = serde_json::from_str(&headers).ok()?;
    let origin = headers.get(HEADER)?.as_str()?;
    (!origin.is_empty() && origin.len() <= ORIGIN_BYTES_MAX).then(|| origin.into())
}
