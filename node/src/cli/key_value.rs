//! `get`, `put` and `del`.

use comfy_table::Table;
use quorate_client::codec::Blob;
use quorate_client::error::Error;
use quorate_client::wire::{Evidence, Found, NotApplied, QuorumReport, Read, Role, Write, Written};
use serde_json::{Map, Value, json};

use super::args::{DelArgs, GetArgs, PutArgs};
use super::connection::{Cluster, blob, context_text, parse_context};
use super::failure::{Exit, Failure, Outcome, SIBLINGS_HINT};
use super::ndjson::Text;
use super::output::{Output, readable, rendered, table};
use super::settings::Settings;
use super::value::Source;

/// `get KEY`.
pub(crate) async fn get(args: &GetArgs, settings: &Settings, output: &Output) -> Outcome {
    let cluster = Cluster::connect(settings).await?;
    let read = Read {
        key: blob(&args.key),
        r: settings.r(),
        strict: args.strict,
        monotonic: args.monotonic,
        explain: args.explain,
    };
    let found = cluster.read(read).await?;
    if output.is_json() {
        output.json(&found_json(&args.key, &found)?)?;
    } else {
        explain(found.evidence.as_deref(), output);
        warn_of(&found.quorum, "read", output);
        if args.context {
            output.line(&context_text(&found.context)?)?;
        } else {
            match &found.values[..] {
                [] => {}
                [value] => output.raw(value)?,
                several => output.table(&siblings_table(several))?,
            }
        }
    }
    match found.values.len() {
        1 => Ok(Exit::Done),
        // The JSON says it; a program looks at the exit code.
        0 if output.is_json() => Ok(Exit::NotFound),
        0 => Err(not_found(&args.key)),
        count => {
            if !output.is_json() {
                output.say(&format!(
                    "{} has {count} siblings: their writers did not know of each other",
                    readable(args.key.as_bytes(), 64)
                ));
                output.say(&format!("hint: {SIBLINGS_HINT}"));
            }
            Ok(Exit::Siblings)
        }
    }
}

/// `put KEY VALUE`.
pub(crate) async fn put(args: &PutArgs, settings: &Settings, output: &Output) -> Outcome {
    // All that can be wrong on this side comes before the first packet.
    let value = Source::of(&args.value).read()?;
    let named = args.context.as_deref().map(parse_context).transpose()?;
    let cluster = Cluster::connect(settings).await?;
    let context = match named {
        Some(context) => Some(context),
        None if args.blind => None,
        None => {
            let read =
                Read { key: blob(&args.key), r: settings.r(), strict: args.strict, monotonic: false, explain: false };
            let found = cluster.read(read).await.map_err(|error| {
                // A blind write helps only where it is the read that finds too few replicas.
                let too_few =
                    matches!(error, Error::NotApplied(NotApplied::Unavailable { .. } | NotApplied::TimedOut { .. }));
                let failure = Failure::from(error);
                let message = format!("the read before the write: {}", failure.message);
                let hint = if too_few { BLIND_HINT.to_owned() } else { failure.hint };
                Failure { message, hint, ..failure }
            });
            Some(found?.context)
        }
    };
    let write = Write {
        key: blob(&args.key),
        value: Some(Blob(value)),
        context,
        op_id: cluster.op_id(),
        first_sent_ms: None,
        w: settings.w(),
        strict: args.strict,
        explain: args.explain,
    };
    let op_id = write.op_id;
    let written = cluster.write(write).await?;
    if output.is_json() {
        output.json(&written_json("quorate.put.v1", &args.key, &op_id.to_string(), &written)?)?;
    } else {
        explain(written.evidence.as_deref(), output);
        warn_of_write(&written, output);
        output.line(&context_text(&written.context)?)?;
        output.hint(&format!(
            "written, {}; the line above is the context of this write, for a later put or del --context",
            acks_text(&written.quorum)
        ));
    }
    if written.siblings > 1 {
        if !output.is_json() {
            output.say(&format!(
                "{} now has {} siblings: this value was stored beside what it did not name as its cause",
                readable(args.key.as_bytes(), 64),
                written.siblings
            ));
            output.say(&format!("hint: {SIBLINGS_HINT}"));
        }
        // Who writes blindly has asked for it.
        return Ok(if args.blind { Exit::Done } else { Exit::Siblings });
    }
    Ok(Exit::Done)
}

/// `del KEY`.
pub(crate) async fn del(args: &DelArgs, settings: &Settings, output: &Output) -> Outcome {
    let named = args.context.as_deref().map(parse_context).transpose()?;
    let cluster = Cluster::connect(settings).await?;
    let context = match named {
        Some(context) => context,
        None => {
            let read = Read {
                key: blob(&args.key),
                r: settings.r(),
                strict: args.strict,
                monotonic: false,
                explain: args.explain,
            };
            let found = cluster.read(read).await?;
            if found.values.is_empty() {
                if output.is_json() {
                    output.json(&json!({
                        "schema": "quorate.del.v1",
                        "key": args.key,
                        "deleted": 0,
                        "context": context_text(&found.context)?,
                        "quorum": found.quorum,
                        "evidence": found.evidence,
                    }))?;
                    return Ok(Exit::NotFound);
                }
                explain(found.evidence.as_deref(), output);
                return Err(not_found(&args.key));
            }
            found.context
        }
    };
    let write = Write {
        key: blob(&args.key),
        value: None,
        context: Some(context),
        op_id: cluster.op_id(),
        first_sent_ms: None,
        w: settings.w(),
        strict: args.strict,
        explain: args.explain,
    };
    let op_id = write.op_id;
    let written = cluster.write(write).await?;
    if output.is_json() {
        output.json(&written_json("quorate.del.v1", &args.key, &op_id.to_string(), &written)?)?;
    } else {
        explain(written.evidence.as_deref(), output);
        warn_of_write(&written, output);
        output.hint(&format!("deleted, {}", acks_text(&written.quorum)));
    }
    match (written.siblings, written.replaced) {
        // Without --context the read has seen values, and whoever removed them meanwhile did what was asked for.
        (0, 0) if args.context.is_some() && output.is_json() => Ok(Exit::NotFound),
        (0, 0) if args.context.is_some() => Err(Failure {
            message: format!("nothing that the context covers was left of {}", readable(args.key.as_bytes(), 64)),
            ..not_found(&args.key)
        }),
        (0, _) => Ok(Exit::Done),
        (left, _) => {
            if !output.is_json() {
                output.say(&format!("{left} values stay: they were written by somebody whom this delete had not seen"));
                output.say("hint: look at them with `quorate get`, and delete again if they are to go too");
            }
            Ok(Exit::Siblings)
        }
    }
}

fn not_found(key: &str) -> Failure {
    Failure {
        exit: Exit::NotFound,
        ..Failure::new(
            format!("key {} is not there", readable(key.as_bytes(), 64)),
            "check the spelling; `quorate get KEY --explain` shows which replicas said so",
        )
    }
}

fn found_json(key: &str, found: &Found) -> Outcome<Value> {
    let values: Vec<_> = found.values.iter().map(|value| named("value", value)).collect();
    Ok(json!({
        "schema": "quorate.get.v1",
        "key": key,
        "found": !found.values.is_empty(),
        "values": values,
        "context": context_text(&found.context)?,
        "quorum": found.quorum,
        "evidence": found.evidence,
    }))
}

fn written_json(schema: &str, key: &str, op_id: &str, written: &Written) -> Outcome<Value> {
    let mut json = json!({
        "schema": schema,
        "key": key,
        "context": context_text(&written.context)?,
        "op_id": op_id,
        "siblings": written.siblings,
        "synced": written.synced,
        "context_large": written.context_large,
        "quorum": written.quorum,
        "evidence": written.evidence,
    });
    json[if schema == "quorate.del.v1" { "deleted" } else { "replaced" }] = written.replaced.into();
    Ok(json)
}

/// `{"value": ".."}`, or `{"value_b64": ".."}` for what is no text, as in NDJSON.
pub(crate) fn named(name: &str, bytes: &[u8]) -> Value {
    let mut map = Map::new();
    match Text::of(bytes) {
        Text::Utf8(text) => map.insert(name.to_owned(), text.into()),
        Text::Base64(text) => map.insert(format!("{name}_b64"), text.into()),
    };
    map.into()
}

fn siblings_table(values: &[Blob]) -> Table {
    let mut table = table(&["#", "BYTES", "VALUE"]);
    for (index, value) in values.iter().enumerate() {
        table.add_row([(index + 1).to_string(), value.len().to_string(), readable(value, VALUE_SHOWN_MAX)]);
    }
    table
}

/// What `--explain` shows.
fn explain(evidence: Option<&Evidence>, output: &Output) {
    let Some(evidence) = evidence else { return };
    let preference: Vec<_> = evidence
        .preference
        .iter()
        .enumerate()
        .map(|(place, node)| if place < usize::from(evidence.n) { node.to_string() } else { format!("({node})") })
        .collect();
    let forwarded = evidence.forwarded_by.map(|by| format!(", forwarded by {by}")).unwrap_or_default();
    let decided = evidence.decided_by.map(|by| format!(", decided by the answer of {by}")).unwrap_or_default();
    output.say(&format!(
        "coordinator {}{forwarded}, partition {}, {} us{decided}",
        evidence.coordinator, evidence.partition, evidence.took_us
    ));
    output.say(&format!("preference list: {}", preference.join(" ")));
    let mut asked = table(&["NODE", "ROLE", "ASKED AT", "ANSWERED AT", "SAID", "COUNTED"]);
    for question in &evidence.asked {
        asked.add_row([
            question.node.to_string(),
            match question.role {
                Role::Primary => "primary".to_owned(),
                Role::Fallback => match question.instead_of {
                    Some(primary) => format!("fallback for {primary}"),
                    None => "fallback".to_owned(),
                },
            },
            format!("{} us", question.sent_us),
            question.answered_us.map_or_else(|| "-".to_owned(), |us| format!("{us} us")),
            question.said.clone(),
            if question.counted { "yes" } else { "no" }.to_owned(),
        ]);
    }
    output.say(&rendered(&asked));
    if evidence.hedges > 0 {
        output.say(&format!("hedges: {} asked because others were late", evidence.hedges));
    }
    for (holder, target) in &evidence.hints {
        output.say(&format!("hint: {holder} keeps this write for {target} until it can be handed over"));
    }
    if !evidence.repairs.is_empty() {
        let names: Vec<&str> = evidence.repairs.iter().map(|node| node.as_str()).collect();
        output.say(&format!("read repair: {} lacked something and get it now", names.join(" ")));
    }
    if !evidence.dots.is_empty() {
        output.say(&format!("dots: {}", evidence.dots.join(" ")));
    }
}

/// A degraded reply must not pass in silence: its promise is a weaker one.
fn warn_of(quorum: &QuorumReport, what: &str, output: &Output) {
    if quorum.degraded {
        output.say(&format!(
            "warning: degraded: stand-ins answered for owners ({}), another {what} may miss this; --strict insists on owners",
            acks_text(quorum)
        ));
    }
    if quorum.below_floor {
        output.hint("below the layout's floor: what this quorum promises does not hold across a change of the layout");
    }
}

fn warn_of_write(written: &Written, output: &Output) {
    warn_of(&written.quorum, "read", output);
    if !written.synced {
        output.hint("acknowledged before it was synced to disk (durability `interval`)");
    }
    if written.context_large {
        output.hint("the key's context has grown above 1 KiB: very many different coordinators have written it");
    }
}

fn acks_text(quorum: &QuorumReport) -> String {
    match quorum.acks.fallback {
        0 => format!("{} owners acknowledged, {} were needed", quorum.acks.primary, quorum.need),
        fallback => {
            format!("{} owners and {fallback} stand-ins acknowledged, {} were needed", quorum.acks.primary, quorum.need)
        }
    }
}

/// What to do when a put cannot read first.
const BLIND_HINT: &str = "try again; read with a smaller --r; or, if W replicas can be reached, write without having looked: --blind (a \
                          value that is there becomes a sibling)";

/// How much of a sibling a table shows, in characters; `-o json` has all of it.
const VALUE_SHOWN_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_client::ids::LayoutVersion;
    use quorate_client::wire::Acks;

    use super::*;

    fn quorum() -> QuorumReport {
        QuorumReport {
            need: 2,
            acks: Acks { primary: 2, fallback: 0 },
            degraded: false,
            below_floor: false,
            layout: LayoutVersion(1),
        }
    }

    fn bytes(bytes: &'static [u8]) -> Blob {
        Blob(Bytes::from_static(bytes))
    }

    #[test]
    fn the_json_of_a_get_keeps_its_schema() {
        let found = Found {
            values: vec![bytes(b"milk"), bytes(b"\xff\x00")],
            context: bytes(b"ctx"),
            quorum: quorum(),
            evidence: None,
        };
        let expected = json!({
            "schema": "quorate.get.v1",
            "key": "cart",
            "found": true,
            "values": [{ "value": "milk" }, { "value_b64": "/wA=" }],
            "context": "Y3R4",
            "quorum": { "need": 2, "acks": { "primary": 2, "fallback": 0 }, "degraded": false, "below_floor": false, "layout": 1 },
            "evidence": null,
        });
        assert_eq!(found_json("cart", &found).expect("a legal context"), expected);
    }

    #[test]
    fn the_json_of_a_put_and_a_del_keeps_its_schema() {
        let written = Written {
            context: bytes(b"ctx"),
            siblings: 1,
            replaced: 2,
            synced: true,
            context_large: false,
            quorum: quorum(),
            evidence: None,
        };
        let put = written_json("quorate.put.v1", "k", "00", &written).expect("a legal context");
        assert_eq!(
            (&put["schema"], &put["replaced"], &put["context"]),
            (&json!("quorate.put.v1"), &json!(2), &json!("Y3R4"))
        );
        assert!(put.get("deleted").is_none());
        let del = written_json("quorate.del.v1", "k", "00", &written).expect("a legal context");
        assert_eq!((&del["deleted"], del.get("replaced")), (&json!(2), None));
    }

    #[test]
    fn siblings_are_listed_without_harm_to_the_terminal() {
        let text = siblings_table(&[bytes(b"milk"), bytes(b"\x1b[2J")]).to_string();
        assert!(text.contains("milk") && text.contains("\\x1b[2J") && !text.contains('\x1b'), "{text}");
    }
}
