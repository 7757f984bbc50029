//! The words of EXPOSE: `port[-port][/protocol]`.

use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// `port/protocol` for every port of the word.
pub(super) fn parse(
    text: &str,
    span: Span,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Vec<String>, Diagnostic> {
    let invalid = || {
        Diagnostic::error(span, format!("invalid port `{text}`"))
            .help("write `port`, `port/udp` or `first-last`, with ports from 0 to 65535")
    };
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let lower = protocol.to_lowercase();
    if !["tcp", "udp", "sctp"].contains(&lower.as_str()) {
        return Err(Diagnostic::error(span, format!("unknown protocol `{protocol}`"))
            .help("the protocols are tcp, udp and sctp"));
    }
    if lower != protocol {
        let message = format!("protocol `{protocol}` is not in lower case");
        warnings
            .push(Diagnostic::warning("ExposeProtoCasing", span, message).help(format!("write `{lower}`")));
    }
    let ports = match ports.rsplit_once(':') {
        Some((_, container)) => {
            let message = "EXPOSE names ports of the container only";
            warnings.push(
                Diagnostic::warning("ExposeInvalidFormat", span, message)
                    .help(format!("write `{container}/{lower}`")),
            );
            container
        }
        None => ports,
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) => (port(first).ok_or_else(invalid)?, port(last).ok_or_else(invalid)?),
        None => {
            let only = port(ports).ok_or_else(invalid)?;
            (only, only)
        }
    };
    if first > last {
        return Err(invalid());
    }
    Ok((first..=last).map(|port| format!("{port}/{lower}")).collect())
}
