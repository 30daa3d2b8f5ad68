//! A minimal HTTP/1.1 server for scrapers, health checks and curl: one request, one response, then
//! the connection is closed.
//!
//! The response to HEAD never has a body, even if it is an error (RFC 9110, section 9.3.2). The
//! target of a request is a path, or a URI with a path (RFC 9112, section 3.2.2).

use std::fmt::Write as _;

/// The maximum length of a request head, in bytes.
pub(super) const HEAD_MAX: usize = 8 << 10;
/// The maximum number of headers, more than any scraper sends.
const HEADERS_MAX: usize = 64;

/// The requested page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// `/`, or `/?pause`: the HTML status page.
    Home {
        /// Whether the browser reloads it.
        refreshing: bool,
    },
    /// `/style.css`
    Style,
    /// `/metrics`
    Metrics,
    /// `/healthz`
    Health,
    /// `/ready`
    Ready,
    /// `/serving`
    Serving,
}

/// A request with a complete head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) page: Page,
    /// Whether only the head of the answer is wanted.
    pub(super) head_only: bool,
}

/// The result of parsing the bytes received so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The head is incomplete.
    Partial,
    /// A valid request.
    Request(Request),
    /// A request that is refused.
    Refused(Refused),
}

/// A request that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) why: Refusal,
    /// Whether only the head of the answer is wanted.
    pub(super) head_only: bool,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Bad,
    NotFound,
    Method,
    Timeout,
    TooLarge,
}

impl Refusal {
    fn status(self) -> &'static str {
        match self {
            Self::Bad => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::Method => "405 Method Not Allowed",
            Self::Timeout => "408 Request Timeout",
            Self::TooLarge => "431 Request Header Fields Too Large",
        }
    }
}

/// Parses the head of a request.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let judged = match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_MAX => Err(Refusal::TooLarge),
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => Err(Refusal::TooLarge),
        Err(_) => Err(Refusal::Bad),
        Ok(httparse::Status::Complete(_)) => judge(&request),
    };
    match judged {
        Ok(page) => Parsed::Request(Request { page, head_only: is_head(bytes) }),
        Err(why) => Parsed::Refused(Refused { why, head_only: is_head(bytes) }),
    }
}

/// Whether a request, complete or not, is a HEAD.
pub(super) fn is_head(bytes: &[u8]) -> bool {
    // A parser skips empty lines before the request (RFC 9112, section 2.2).
    let first = bytes.iter().position(|byte| !b"\r\n".contains(byte));
    bytes[first.unwrap_or(bytes.len())..].starts_with(b"HEAD ")
}

fn judge(request: &httparse::Request<'_, '_>) -> Result<Page, Refusal> {
    let target = origin_form(request.path.unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let page = match path {
        "/" => Page::Home { refreshing: query != "pause" },
        "/style.css" => Page::Style,
        "/metrics" => Page::Metrics,
        "/healthz" => Page::Health,
        "/ready" => Page::Ready,
        "/serving" => Page::Serving,
        _ => return Err(Refusal::NotFound),
    };
    match request.method {
        Some("GET" | "HEAD") => Ok(page),
        _ => Err(Refusal::Method),
    }
}

/// The path and query of a target. A proxy may send a full URI (`http://host:9100/metrics`); there
/// is only one site, whatever its name is.
fn origin_form(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once("://") else { return target };
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return target;
    }
    rest.find(['/', '?']).map_or("/", |authority_end| &rest[authority_end..])
}

/// The media type of the metrics, in the version that every Prometheus supports.
pub(super) const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
/// Nothing but the style sheet is loaded, and no script runs, whatever the page contains.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// The response with the HTML status page, which the browser loads again after `refresh` seconds.
pub(super) fn page(html: &str, refresh: Option<u32>, head_only: bool) -> Vec<u8> {
    let refresh = refresh.map(|seconds| seconds.to_string());
    let mut fields = vec![("Content-Security-Policy", POLICY)];
    fields.extend(refresh.iter().map(|seconds| ("Refresh", &**seconds)));
    respond("200 OK", HTML, &fields, html.as_bytes(), head_only)
}

/// The response with the style sheet of that page.
pub(super) fn style(css: &str, head_only: bool) -> Vec<u8> {
    respond("200 OK", CSS, &[], css.as_bytes(), head_only)
}

/// A response with a body of this media type.
pub(super) fn answer(status: &str, media_type: &str, body: &[u8], head_only: bool) -> Vec<u8> {
    respond(status, media_type, &[], body, head_only)
}

fn respond(
    status: &str,
    media_type: &str,
    fields: &[(&str, &str)],
    body: &[u8],
    head_only: bool,
) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\n");
    let mut field = |name: &str, value: &str| {
        write!(head, "{name}: {value}\r\n").expect("invariant: writing to a String never fails");
    };
    field("Content-Type", media_type);
    field("Content-Length", &body.len().to_string());
    field("Cache-Control", "no-store");
    field("X-Content-Type-Options", "nosniff");
    field("Connection", "close");
    fields.iter().for_each(|(name, value)| field(name, value));
    if status.starts_with("405") {
        field("Allow", "GET, HEAD");
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    if !head_only {
        bytes.extend_from_slice(body);
    }
    bytes
}

/// A health response: 200 if `fault` is none, else 503 with the fault.
pub(super) fn verdict(fault: Option<&str>, head_only: bool) -> Vec<u8> {
    let (status, text) = match fault {
        None => ("200 OK", "ok"),
        Some(fault) => ("503 Service Unavailable", fault),
    };
    answer(status, PLAIN, format!("{text}\n").as_bytes(), head_only)
}

/// The response to a request that is refused.
pub(super) fn refuse(refused: Refused) -> Vec<u8> {
    let Refused { why, head_only } = refused;
    let status = why.status();
    let text = match why {
        Refusal::NotFound => {
            format!("{status}: the paths are /, /metrics, /healthz, /ready and /serving\n")
        }
        _ => format!("{status}\n"),
    };
    answer(status, PLAIN, text.as_bytes(), head_only)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(page: Page, head_only: bool) -> Parsed {
        Parsed::Request(Request { page, head_only })
    }

    fn refused(why: Refusal) -> Parsed {
        Parsed::Refused(Refused { why, head_only: false })
    }

    fn refused_head(why: Refusal) -> Parsed {
        Parsed::Refused(Refused { why, head_only: true })
    }

    #[test]
    fn requests_are_told_apart() {
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(HEAD_MAX));
        let many = format!("GET /ready HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX + 1));
        for (text, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", request(Page::Metrics, false)),
            ("HEAD /healthz HTTP/1.0\r\n\r\n", request(Page::Health, true)),
            ("GET /ready?verbose HTTP/1.1\r\n\r\nrest", request(Page::Ready, false)),
            ("GET /serving HTTP/1.1\r\n\r\n", request(Page::Serving, false)),
            ("GET /metr", Parsed::Partial),
            ("GET /metrics HTTP/1.1\r\nHost", Parsed::Partial),
            ("GET / HTTP/1.1\r\n\r\n", request(Page::Home { refreshing: true }, false)),
            ("GET /?pause HTTP/1.1\r\n\r\n", request(Page::Home { refreshing: false }, false)),
            ("GET /style.css HTTP/1.1\r\n\r\n", request(Page::Style, false)),
            ("GET /index.html HTTP/1.1\r\n\r\n", refused(Refusal::NotFound)),
            ("POST /metrics HTTP/1.1\r\n\r\n", refused(Refusal::Method)),
            ("\0\u{1}nonsense\r\n\r\n", refused(Refusal::Bad)),
            ("GET /metrics HTTP/3.7\r\n\r\n", refused(Refusal::Bad)),
            ("GET http://host:9100/metrics HTTP/1.1\r\n\r\n", request(Page::Metrics, false)),
            ("GET HTTPS://[::1]/ready?a=/b HTTP/1.1\r\n\r\n", request(Page::Ready, false)),
            ("HEAD http://host/healthz HTTP/1.1\r\n\r\n", request(Page::Health, true)),
            ("GET http://host HTTP/1.1\r\n\r\n", request(Page::Home { refreshing: true }, false)),
            ("GET http://host?/metrics HTTP/1.1\r\n\r\n", refused(Refusal::NotFound)),
            ("GET ftp://host/metrics HTTP/1.1\r\n\r\n", refused(Refusal::NotFound)),
            ("GET /other?http://host/metrics HTTP/1.1\r\n\r\n", refused(Refusal::NotFound)),
            ("HEAD /x HTTP/1.1\r\n\r\n", refused_head(Refusal::NotFound)),
            ("\r\nHEAD /x HTTP/1.1\r\n\r\n", refused_head(Refusal::NotFound)),
            ("HEAD / HTTP/1.1\r\n\r\n", request(Page::Home { refreshing: true }, true)),
            ("HEAD /metrics HTTP/3.7\r\n\r\n", refused_head(Refusal::Bad)),
            (&long.replace("GET", "HEAD"), refused_head(Refusal::TooLarge)),
            (&many.replace("GET", "HEAD"), refused_head(Refusal::TooLarge)),
            ("HEADER /metrics HTTP/1.1\r\n\r\n", refused(Refusal::Method)),
            (&long, refused(Refusal::TooLarge)),
            (&many, refused(Refusal::TooLarge)),
        ] {
            assert_eq!(parse(text.as_bytes()), expected, "{text:.60}");
        }
    }

    /// Goal: the page can neither run a script nor load anything from elsewhere.
    #[test]
    fn the_page_comes_with_a_policy() {
        let text = |refresh| String::from_utf8(page("<p>", refresh, false)).unwrap();
        let reloaded = text(Some(5));
        for field in [
            "Content-Type: text/html; charset=utf-8\r\n",
            "Content-Security-Policy: default-src 'none'; style-src 'self'; ",
            "X-Content-Type-Options: nosniff\r\n",
            "Refresh: 5\r\n",
        ] {
            assert!(reloaded.contains(field), "{field} is missing:\n{reloaded}");
        }
        assert!(!text(None).contains("Refresh"));
        assert!(reloaded.ends_with("\r\n\r\n<p>"));
    }

    #[test]
    fn an_answer_tells_its_length_and_ends_the_connection() {
        let text =
            String::from_utf8(refuse(Refused { why: Refusal::Method, head_only: false })).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{head}");
        for field in ["Allow: GET, HEAD", "Connection: close"] {
            assert!(head.contains(field), "{field} is missing:\n{head}");
        }
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        for (bytes, length) in [
            (verdict(None, true), 3),
            (verdict(Some("draining"), true), 9),
            (refuse(Refused { why: Refusal::TooLarge, head_only: true }), 36),
        ] {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(&format!("Content-Length: {length}\r\n")), "{text}");
            assert!(text.ends_with("\r\n\r\n"), "a body: {text}");
        }
    }
}
