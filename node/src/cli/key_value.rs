//! `get`, `put` and `del`.

use comfy_table::Table;
use quorate_client::error::Error;
use quorate_wire::codec::Blob;
use quorate_wire::{Evidence, Found, Key, NotApplied, QuorumReport, Read, Role, Write, Written};
use serde_json::{Map, Value, json};

use super::args::{DelArgs, GetArgs, PutArgs};
use super::connection::{Cluster, context_text, parse_context};
use super::failure::{Exit, Failure, Outcome, SIBLINGS_HINT, merge_hint};
use super::ndjson::Text;
use super::output::{Output, readable, table};
use super::settings::Settings;
use super::value::Source;

/// `get KEY`.
pub(crate) async fn get(args: &GetArgs, settings: &Settings, output: &Output) -> Outcome {
    let key = args.key.bytes()?;
    let cluster = Cluster::connect(settings).await?;
    let read = Read {
        key: Key::plain(&key),
        r: settings.r(),
        strict: args.strict || settings.strict(),
        monotonic: args.monotonic,
        explain: args.explain,
    };
    let found = cluster.read(read).await.map_err(Failure::of_read)?;
    if let Some(number) = args.sibling.filter(|_| !found.values.is_empty()) {
        return sibling(number, &found, output);
    }
    if output.is_json() {
        output.json(&found_json(&key, &found)?)?;
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
        0 => Err(not_found(&key)),
        count => {
            if !output.is_json() {
                output.say(&format!(
                    "{} has {count} siblings: their writers did not know of each other",
                    readable(&key, 64)
                ));
                // Values that were not shown cannot be merged.
                let hint =
                    if args.context { SIBLINGS_HINT.to_owned() } else { merge_hint(&context_text(&found.context)?) };
                output.say(&format!("hint: {hint}"));
            }
            Ok(Exit::Siblings)
        }
    }
}

/// The exact bytes of one of several values.
fn sibling(number: u32, found: &Found, output: &Output) -> Outcome {
    let count = found.values.len();
    let Some(value) = found.values.get(number as usize - 1) else {
        return Err(Failure::usage(
            format!("there is no value {number}: the key has {count}"),
            "they are counted from 1, as `quorate get KEY` lists them",
        ));
    };
    if output.is_json() {
        output.json(&named("value", value))?;
    } else {
        output.raw(value)?;
    }
    Ok(Exit::Done)
}

/// `put KEY VALUE`.
pub(crate) async fn put(args: &PutArgs, settings: &Settings, output: &Output) -> Outcome {
    // All that can be wrong on this side comes before the first packet.
    let key = args.key.bytes()?;
    let value = Source::of(&args.value).read()?;
    let named = args.context.as_deref().map(parse_context).transpose()?;
    let cluster = Cluster::connect(settings).await?;
    let (context, replaces) = match named {
        Some(context) => (Some(context), Vec::new()),
        None if args.blind => (None, Vec::new()),
        None => {
            let read = Read {
                key: Key::plain(&key),
                r: settings.r(),
                strict: args.strict || settings.strict(),
                monotonic: false,
                explain: false,
            };
            let found = cluster.read(read).await.map_err(|error| {
                // A blind write helps only where it is the read that finds too few replicas.
                let too_few =
                    matches!(error, Error::NotApplied(NotApplied::Unavailable { .. } | NotApplied::TimedOut { .. }));
                let failure = Failure::from(error);
                let message = format!("the read before the write: {}", failure.message);
                let hint = if too_few { BLIND_HINT.to_owned() } else { failure.hint };
                Failure { message, hint, ..failure }
            })?;
            if found.values.len() > 1 && !args.replace_all {
                return siblings_stand("quorate.put.v1", "written", &key, &found, output);
            }
            (Some(found.context), found.values)
        }
    };
    let write = Write {
        key: Key::plain(&key),
        value: Some(Blob(value)),
        context,
        op_id: cluster.op_id(),
        first_sent_ms: None,
        w: settings.w(),
        strict: args.strict || settings.strict(),
        explain: args.explain,
    };
    let op_id = write.op_id;
    let written = cluster.write(write).await?;
    let tell = || -> Outcome<()> {
        if output.is_json() {
            output.json(&written_json("quorate.put.v1", &key, &op_id.to_string(), &written, &replaces)?)?;
        } else {
            explain(written.evidence.as_deref(), output);
            warn_of_write(&written, output);
            tell_replaced("replaced", &written, &replaces, output);
            output.line(&context_text(&written.context)?)?;
            output.hint(&format!(
                "written, {}; the line above is the context of this write, for a later put or del --context",
                acks_text(&written.quorum)
            ));
        }
        Ok(())
    };
    tell().map_err(Failure::after_write)?;
    if written.siblings > 1 {
        if !output.is_json() {
            output.say(&format!(
                "{} now has {} siblings: this value was stored beside what it did not name as its cause",
                readable(&key, 64),
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
    let key = args.key.bytes()?;
    let named = args.context.as_deref().map(parse_context).transpose()?;
    let cluster = Cluster::connect(settings).await?;
    let (context, replaces) = match named {
        Some(context) => (context, Vec::new()),
        None => {
            let read = Read {
                key: Key::plain(&key),
                r: settings.r(),
                strict: args.strict || settings.strict(),
                monotonic: false,
                explain: args.explain,
            };
            let found = cluster.read(read).await?;
            if found.values.is_empty() {
                if output.is_json() {
                    let mut json = with_key("quorate.del.v1", &key);
                    json["deleted"] = 0.into();
                    json["context"] = context_text(&found.context)?.into();
                    json["quorum"] = json!(found.quorum);
                    json["evidence"] = json!(found.evidence);
                    output.json(&json)?;
                    return Ok(Exit::NotFound);
                }
                explain(found.evidence.as_deref(), output);
                return Err(not_found(&key));
            }
            if found.values.len() > 1 && !args.replace_all {
                return siblings_stand("quorate.del.v1", "deleted", &key, &found, output);
            }
            (found.context, found.values)
        }
    };
    let write = Write {
        key: Key::plain(&key),
        value: None,
        context: Some(context),
        op_id: cluster.op_id(),
        first_sent_ms: None,
        w: settings.w(),
        strict: args.strict || settings.strict(),
        explain: args.explain,
    };
    let op_id = write.op_id;
    let written = cluster.write(write).await?;
    if output.is_json() {
        let json = written_json("quorate.del.v1", &key, &op_id.to_string(), &written, &replaces);
        json.and_then(|json| Ok(output.json(&json)?)).map_err(Failure::after_write)?;
    } else {
        explain(written.evidence.as_deref(), output);
        warn_of_write(&written, output);
        tell_replaced("deleted", &written, &replaces, output);
        output.hint(&format!("deleted, {}", acks_text(&written.quorum)));
    }
    match (written.siblings, written.replaced) {
        // Without --context the read has seen values, and whoever removed them meanwhile did what was asked for.
        (0, 0) if args.context.is_some() && output.is_json() => Ok(Exit::NotFound),
        (0, 0) if args.context.is_some() => Err(Failure {
            message: format!("nothing that the context covers was left of {}", readable(&key, 64)),
            ..not_found(&key)
        }),
        (0, _) => Ok(Exit::Done),
        (left, _) => {
            if !output.is_json() {
                output.say(&format!("{left} values stay: their writers came after what this delete has seen"));
                output.say("hint: look at them with `quorate get`, and delete again if they are to go too");
            }
            Ok(Exit::Siblings)
        }
    }
}

/// The key has several values, and one write would discard what nobody has looked at: they are shown, and nothing is changed.
fn siblings_stand(schema: &str, done: &str, key: &[u8], found: &Found, output: &Output) -> Outcome {
    let count = found.values.len();
    if output.is_json() {
        let mut json = with_key(schema, key);
        json[done] = if done == "deleted" { 0.into() } else { false.into() };
        json["siblings"] = count.into();
        json["values"] = values_json(&found.values);
        json["context"] = context_text(&found.context)?.into();
        json["quorum"] = json!(found.quorum);
        output.json(&json)?;
        return Ok(Exit::Siblings);
    }
    output.say(&output.rendered(&siblings_table(&found.values)));
    let merge = if done == "deleted" { "delete all of them" } else { "replace all of them" };
    Err(Failure {
        exit: Exit::Siblings,
        ..Failure::new(
            format!("{} has {count} values (siblings), nothing was {done}", readable(key, 64)),
            format!("{merge} with --replace-all; or {}", merge_hint(&context_text(&found.context)?)),
        )
    })
}

/// What a write has replaced is worth a word when it was more than one expects.
fn tell_replaced(what: &str, written: &Written, values: &[Blob], output: &Output) {
    match (values, written.replaced) {
        ([], 0) => {}
        ([], count) => output.say(&replaced_text(what, count)),
        ([value], _) => output.hint(&format!("{what} {}", readable(value, VALUE_SHOWN_MAX))),
        (several, _) => {
            output.say(&format!("{what} {} values:", several.len()));
            output.say(&output.rendered(&siblings_table(several)));
        }
    }
}

/// Of values that this command has not read.
fn replaced_text(what: &str, count: u32) -> String {
    format!("{what} {count} {}: all that the context covers", if count == 1 { "value" } else { "values" })
}

fn not_found(key: &[u8]) -> Failure {
    Failure {
        exit: Exit::NotFound,
        ..Failure::new(
            format!("key {} is not there", readable(key, 64)),
            "check the spelling; `quorate get KEY --explain` shows which replicas said so",
        )
    }
}

/// An object that begins with its schema and the key: `key`, or `key_b64` for what is no text.
pub(crate) fn with_key(schema: &str, key: &[u8]) -> Value {
    let mut json = named("key", key);
    json["schema"] = schema.into();
    json
}

fn values_json(values: &[Blob]) -> Value {
    values.iter().map(|value| named("value", value)).collect()
}

fn found_json(key: &[u8], found: &Found) -> Outcome<Value> {
    let mut json = with_key("quorate.get.v1", key);
    json["found"] = (!found.values.is_empty()).into();
    json["values"] = values_json(&found.values);
    json["context"] = context_text(&found.context)?.into();
    json["quorum"] = json!(found.quorum);
    json["evidence"] = json!(found.evidence);
    Ok(json)
}

fn written_json(schema: &str, key: &[u8], op_id: &str, written: &Written, replaces: &[Blob]) -> Outcome<Value> {
    let mut json = with_key(schema, key);
    json["context"] = context_text(&written.context)?.into();
    json["op_id"] = op_id.into();
    json["siblings"] = written.siblings.into();
    json["synced"] = written.synced.into();
    json["context_large"] = written.context_large.into();
    json["quorum"] = json!(written.quorum);
    json["evidence"] = json!(written.evidence);
    // What the read before the write has seen. With --context there was none, and nobody knows what was replaced.
    let replaced_values = if replaces.is_empty() && written.replaced > 0 { Value::Null } else { values_json(replaces) };
    if schema == "quorate.del.v1" {
        json["deleted"] = written.replaced.into();
        json["deleted_values"] = replaced_values;
    } else {
        json["written"] = true.into();
        json["replaced"] = written.replaced.into();
        json["replaced_values"] = replaced_values;
    }
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
    output.say(&output.rendered(&asked));
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
    use quorate_wire::Acks;
    use quorate_wire::ids::LayoutVersion;

    use super::super::args::OutputFormat;
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
        assert_eq!(found_json(b"cart", &found).expect("a legal context"), expected);
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
        let put = written_json("quorate.put.v1", b"k", "00", &written, &[bytes(b"old"), bytes(b"\xff")])
            .expect("a legal context");
        assert_eq!(
            (&put["schema"], &put["replaced"], &put["context"]),
            (&json!("quorate.put.v1"), &json!(2), &json!("Y3R4"))
        );
        assert!(put.get("deleted").is_none());
        assert_eq!(put["replaced_values"], json!([{ "value": "old" }, { "value_b64": "/w==" }]));
        let del = written_json("quorate.del.v1", b"k\xff", "00", &written, &[]).expect("a legal context");
        assert_eq!((&del["deleted"], del.get("replaced")), (&json!(2), None));
        assert_eq!(del["deleted_values"], Value::Null, "not read, so not known");
        let none = Written { replaced: 0, ..written };
        let put = written_json("quorate.put.v1", b"k", "00", &none, &[]).expect("a legal context");
        assert_eq!((&put["replaced"], &put["replaced_values"]), (&json!(0), &json!([])));
        assert_eq!(replaced_text("replaced", 1), "replaced 1 value: all that the context covers");
        assert_eq!(replaced_text("deleted", 2), "deleted 2 values: all that the context covers");
        assert_eq!((&del["key_b64"], del.get("key")), (&json!("a/8="), None));
    }

    #[test]
    fn a_refused_write_says_the_context_of_the_values_that_it_shows() {
        let found = Found {
            values: vec![bytes(b"milk"), bytes(b"eggs")],
            context: bytes(b"ctx"),
            quorum: quorum(),
            evidence: None,
        };
        for (schema, done) in [("quorate.put.v1", "written"), ("quorate.del.v1", "deleted")] {
            let refused = siblings_stand(schema, done, b"k", &found, &Output::new(OutputFormat::Text));
            let failure = refused.expect_err("two values");
            assert!(failure.hint.ends_with("--context Y3R4") && failure.hint.contains("--replace-all"), "{failure:?}");
            assert!((failure.exit, failure.may_have_applied) == (Exit::Siblings, false), "{failure:?}");
        }
        assert!(!SIBLINGS_HINT.contains("$("), "a context that is read later covers what nobody has merged");
    }

    #[test]
    fn siblings_are_listed_without_harm_to_the_terminal() {
        let text = siblings_table(&[bytes(b"milk"), bytes(b"\x1b[2J")]).to_string();
        assert!(text.contains("milk") && text.contains("\\x1b[2J") && !text.contains('\x1b'), "{text}");
    }
}
