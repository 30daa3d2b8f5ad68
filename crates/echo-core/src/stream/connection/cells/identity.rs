//! Connections that are told the identity of their listener: at what moment, and what follows.

use super::{Bench, Cells, Situation, check};

/// What is possible behind an identity and elsewhere.
const EVENTS: [&str; 12] = [
    "identify failed",
    "received",
    "end of stream",
    "stopped",
    "receive reset",
    "due",
    "drain deadline",
    "drain end",
    "quiesce",
    "header announced",
    "header local",
    "header denied",
];

const SITUATIONS: [Situation; 6] = [
    ("told", &["identity, end"]),
    ("told, quiescing", &["identity, end", "quiesce"]),
    ("told, echo", &["identity, echo"]),
    ("told, closing", &["identity, echo", "drain end"]),
    ("preface", &["proxied", "identity, end"]),
    ("preface, echo", &["proxied", "identity, echo"]),
];

#[rustfmt::skip]
const CELLS: [Cells; 6] = [
    ("told", &[
        ("identify failed", "shut down, -> Closing(Reset) Armed Idle"),
        ("received", "free b0, receive, -> Lingering(Identified) Armed Idle"),
        ("end of stream", "close"),
        ("stopped", "receive, -> Lingering(Identified) Armed Idle"),
        ("receive reset", "abort"),
        ("due", "shut down, -> Closing(Identified) Armed Idle"),
        ("drain deadline", "-> Lingering(Identified) Armed Idle"),
        ("drain end", "shut down, -> Closing(Drained) Armed Idle"),
        ("quiesce", "cancel, -> Lingering(Identified) Stopping Idle"),
    ]),
    ("told, quiescing", &[
        ("identify failed", "shut down, -> Closing(Reset) Stopping Idle"),
        ("received", "free b0, -> Lingering(Identified) Off Idle"),
        ("end of stream", "close"),
        ("stopped", "-> Lingering(Identified) Off Idle"),
        ("receive reset", "abort"),
        ("due", "shut down, -> Closing(Identified) Stopping Idle"),
        ("drain deadline", "-> Lingering(Identified) Stopping Idle"),
        ("drain end", "shut down, -> Closing(Drained) Stopping Idle"),
        ("quiesce", "-> Lingering(Identified) Stopping Idle"),
    ]),
    ("told, echo", &[
        ("identify failed", "shut down, -> Closing(Reset) Armed Idle"),
        ("received", "send b0 5, receive, -> Open Armed Trying b0 5"),
        ("end of stream", "close"),
        ("stopped", "receive, -> Open Armed Idle"),
        ("receive reset", "abort"),
        ("due", "FIN, -> Lingering(Idle) Armed Idle"),
        ("drain deadline", "FIN, -> Lingering(Drained) Armed Idle"),
        ("drain end", "shut down, -> Closing(Drained) Armed Idle"),
        ("quiesce", "cancel, -> Open Stopping Idle"),
    ]),
    ("told, closing", &[
        ("identify failed", "-> Closing(Drained) Armed Idle"),
        ("received", "free b0, close"),
        ("end of stream", "close"),
        ("stopped", "close"),
        ("receive reset", "close"),
        ("drain deadline", "-> Closing(Drained) Armed Idle"),
        ("drain end", "-> Closing(Drained) Armed Idle"),
        ("quiesce", "-> Closing(Drained) Armed Idle"),
    ]),
    ("preface", &[
        ("end of stream", "close"),
        ("stopped", "read header, -> Preface(Awaited) Preface Idle"),
        ("receive reset", "abort"),
        ("due", "shut down, -> Refusing(HeaderTimeout) Preface Idle"),
        ("drain deadline", "FIN, -> Lingering(Drained) Preface Idle"),
        ("drain end", "shut down, -> Closing(Drained) Preface Idle"),
        ("quiesce", "cancel, -> Preface(Awaited) Stopping Idle"),
        ("header announced", "identify, FIN, receive, -> Lingering(Identified) Armed Idle"),
        ("header local", "identify, FIN, receive once, -> Lingering(Identified) Once Idle"),
        ("header denied", "close"),
    ]),
    ("preface, echo", &[
        ("end of stream", "close"),
        ("stopped", "read header, -> Preface(Awaited) Preface Idle"),
        ("receive reset", "abort"),
        ("due", "shut down, -> Refusing(HeaderTimeout) Preface Idle"),
        ("drain deadline", "FIN, -> Lingering(Drained) Preface Idle"),
        ("drain end", "shut down, -> Closing(Drained) Preface Idle"),
        ("quiesce", "cancel, -> Preface(Awaited) Stopping Idle"),
        ("header announced", "identify, receive, -> Open Armed Idle"),
        ("header local", "identify, relay Readable, -> Open Relay(Readable) Idle"),
        ("header denied", "close"),
    ]),
];

#[test]
fn every_cell_of_an_identity() {
    check(&SITUATIONS, &EVENTS, &CELLS);
}

/// Goal: the identity is the first that a peer is sent, as soon as it is known who that is, and
/// nothing is received before.
#[test]
fn a_peer_is_told_as_soon_as_it_is_known() {
    for (script, opening) in [
        (&["identity, end"][..], "identify, FIN, receive, -> Lingering(Identified) Armed Idle"),
        (&["identity, echo"], "identify, receive, -> Open Armed Idle"),
        (&["proxied", "identity, end"], "read header, -> Preface(Awaited) Preface Idle"),
        (&[], "receive, -> Open Armed Idle"),
    ] {
        assert_eq!(Bench::new(script).opening, opening, "{script:?}");
    }
}

/// Goal: connections that are sent the identity are counted; a refused one is sent none.
#[test]
fn who_is_told_is_counted() {
    let told = |script| Bench::new(script).resources.listeners[0].identities;
    assert_eq!(told(&["identity, end"]), 1);
    assert_eq!(told(&["proxied", "identity, echo", "header announced"]), 1);
    assert_eq!(told(&["proxied", "identity, echo", "header denied"]), 0);
    assert_eq!(told(&[]), 0);
}
