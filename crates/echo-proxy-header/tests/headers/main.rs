//! The crate as its callers see it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod cases;
